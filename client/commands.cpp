// The table of commands. The paths and members are the REST API's.
#include <array>

#include "client/command.h"
#include "client/completion.h"
#include "client/config_check.h"
#include "client/doctor.h"
#include "client/events.h"
#include "client/man_page.h"
#include "client/output.h"
#include "client/request.h"
#include "client/version.h"
#include "client/watch.h"

namespace portway {
namespace {

const Parameter kInstance{.name = "INSTANCE", .help = "The instance's id.", .place = Place::kPath};
const Parameter kForward{.name = "FORWARD", .help = "The forward's id.", .place = Place::kPath};
const Parameter kLabel{
    .name = "--label", .help = "A name for people, up to 63 bytes.", .place = Place::kBody, .field = "label"};
const Parameter kIdempotencyKey{.name = "--idempotency-key",
                                .help =
                                    "Makes it safe to repeat the command: the server answers the same "
                                    "key with the first answer, and makes nothing twice.",
                                .place = Place::kHeader,
                                .field = "Idempotency-Key"};
const Parameter kUpdates{.name = "--count",
                         .help = "End after this many; without it, runs until interrupted.",
                         .kind = Kind::kCount,
                         .value = "N"};

const std::vector<Column> kForwardColumns = {
    {"ID", "id"},       {"ENDPOINT", "endpoint"}, {"GUEST PORT", "guest_port"}, {"LABEL", "label"},
    {"STATE", "state"}, {"REASON", "reason"},     {"CREATED", "created_at"}};

std::vector<Command> instance_commands() {
  return {
      {.noun = "instances",
       .verb = "list",
       .summary = "List the instances that your key may see.",
       .method = "GET",
       .path = "/instances",
       .paged = true,
       .envelope = "instances",
       .columns = {{"ID", "id"},
                   {"STATE", "state"},
                   {"GUEST ADDRESS", "guest_address"},
                   {"TAP", "tap"},
                   {"OWNER", "owner"},
                   {"PROFILE", "profile"},
                   {"FORWARDS", "port_forwards.current"},
                   {"LIMIT", "port_forwards.limit"},
                   {"SOURCE MODE", "source_mode"}},
       .show = show_list,
       .run = run_request},
      {.noun = "instances",
       .verb = "get",
       .summary = "Show one instance.",
       .parameters = {kInstance},
       .method = "GET",
       .path = "/instances/{INSTANCE}",
       .envelope = "instance",
       .show = show_resource,
       .run = run_request},
      {.noun = "instances",
       .verb = "put",
       .summary = "Tell that the instance's VM runs; a registration that differs begins a new session and "
                  "ends the forwards of the old one (admin).",
       .parameters = {kInstance,
                      {.name = "--guest-address",
                       .help = "The guest's address behind the tap.",
                       .value = "ADDRESS",
                       .place = Place::kBody,
                       .field = "guest_address",
                       .required = true},
                      {.name = "--tap",
                       .help = "The node's network device to the guest.",
                       .value = "DEVICE",
                       .place = Place::kBody,
                       .field = "tap",
                       .required = true},
                      {.name = "--owner",
                       .help = "Whose keys see the instance.",
                       .place = Place::kBody,
                       .field = "owner",
                       .required = true},
                      {.name = "--profile",
                       .help = "The limits' name in the node's configuration; \"default\" when absent.",
                       .place = Place::kBody,
                       .field = "profile"},
                      {.name = "--vmm-pid",
                       .help = "The VMM's process: when it ends, so does the session.",
                       .kind = Kind::kCount,
                       .value = "PID",
                       .place = Place::kBody,
                       .field = "vmm_pid"}},
       .method = "PUT",
       .path = "/instances/{INSTANCE}",
       .envelope = "instance",
       .show = show_resource,
       .run = run_request},
      {.noun = "instances",
       .verb = "stop",
       .summary = "Tell that the VM stopped: its forwards go, their connections are reset (admin).",
       .parameters = {kInstance},
       .method = "POST",
       .path = "/instances/{INSTANCE}/stop",
       .run = run_request},
      {.noun = "instances",
       .verb = "delete",
       .summary = "Forget an instance, with its forwards and their connections (admin).",
       .parameters = {kInstance},
       .method = "DELETE",
       .path = "/instances/{INSTANCE}",
       .run = run_request},
  };
}

std::vector<Command> forward_commands() {
  return {
      {.noun = "forwards",
       .verb = "create",
       .summary = "Forward a host port to a guest port; prints the public host name and port.",
       .parameters = {kInstance,
                      {.name = "GUEST_PORT",
                       .help = "The TCP port that the service in the guest listens on.",
                       .kind = Kind::kPort,
                       .place = Place::kBody,
                       .field = "guest_port"},
                      kLabel,
                      {.name = "--host-port",
                       .help = "This host port instead of a random one; not every key may choose.",
                       .kind = Kind::kPort,
                       .value = "PORT",
                       .place = Place::kBody,
                       .field = "host_port"},
                      {.name = "--allowed-cidr",
                       .help = "Only clients of this network may connect; repeatable.",
                       .value = "CIDR",
                       .place = Place::kBody,
                       .field = "allowed_cidrs",
                       .repeatable = true},
                      kIdempotencyKey},
       .method = "POST",
       .path = "/instances/{INSTANCE}/port-forwards",
       .envelope = "port_forward",
       .show = show_endpoint,
       .run = run_request},
      {.noun = "forwards",
       .verb = "list",
       .summary = "List an instance's forwards.",
       .parameters = {kInstance,
                      {.name = "--label",
                       .help = "Only those with this label.",
                       .place = Place::kQuery,
                       .field = "label"}},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards",
       .paged = true,
       .envelope = "port_forwards",
       .columns = kForwardColumns,
       .show = show_forwards,
       .run = run_request},
      {.noun = "forwards",
       .verb = "get",
       .summary = "Show one forward.",
       .parameters = {kInstance, kForward},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}",
       .envelope = "port_forward",
       .show = show_resource,
       .run = run_request},
      {.noun = "forwards",
       .verb = "update",
       .summary = "Change a forward in place; its ports stay.",
       .parameters = {kInstance, kForward, kLabel},
       .method = "PATCH",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}",
       .envelope = "port_forward",
       .show = show_resource,
       .run = run_request},
      {.noun = "forwards",
       .verb = "delete",
       .summary = "End a forward and give its host port back.",
       .parameters = {kInstance,
                      kForward,
                      {.name = "--connections",
                       .help = "What becomes of the established ones: keep lets them run on (the default, as "
                               "with DNAT), drain gives them the configured time to end, reset ends them.",
                       .value = "WHAT",
                       .place = Place::kQuery,
                       .field = "connections",
                       .choices = {"keep", "drain", "reset"}}},
       .method = "DELETE",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}",
       .run = run_request},
      {.noun = "forwards",
       .verb = "watch",
       .summary = "Show an instance's forwards and what they carry, again and again.",
       .parameters = {kInstance,
                      {.name = "--interval",
                       .help = "Seconds between two looks.",
                       .kind = Kind::kCount,
                       .value = "SECONDS",
                       .fallback = "2"},
                      kUpdates},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards",
       .paged = true,
       .envelope = "port_forwards",
       .columns = {{"ID", "id"},
                   {"ENDPOINT", "endpoint"},
                   {"GUEST PORT", "guest_port"},
                   {"LABEL", "label"},
                   {"STATE", "state"},
                   {"REASON", "reason"},
                   {"ACTIVE", "connections_active"},
                   {"CONNECTIONS", "connections_total"},
                   {"RECEIVED", "received_bytes"},
                   {"SENT", "sent_bytes"}},
       .show = show_forwards,
       .run = run_watch},
  };
}

std::vector<Command> key_commands() {
  return {
      {.noun = "keys",
       .verb = "create",
       .summary = "Make an API key; prints its secret, which is not shown again (admin).",
       .parameters = {{.name = "--owner",
                       .help = "Whose instances the key sees.",
                       .place = Place::kBody,
                       .field = "owner",
                       .required = true},
                      {.name = "--role",
                       .help = "A tenant's key sees its owner's instances, an admin's all.",
                       .value = "ROLE",
                       .place = Place::kBody,
                       .field = "role",
                       .fallback = "tenant",
                       .choices = {"tenant", "admin"}},
                      kIdempotencyKey},
       .method = "POST",
       .path = "/api-keys",
       .envelope = "api_key",
       .show = show_secret,
       .run = run_request},
      {.noun = "keys",
       .verb = "list",
       .summary = "List the API keys, without their secrets (admin).",
       .method = "GET",
       .path = "/api-keys",
       .envelope = "api_keys",
       .columns = {{"ID", "id"}, {"ROLE", "role"}, {"OWNER", "owner"}, {"CREATED", "created_at"}},
       .show = show_list,
       .run = run_request},
      {.noun = "keys",
       .verb = "delete",
       .summary = "Delete an API key: it is refused from now on (admin).",
       .parameters = {{.name = "KEY", .help = "The key's id, not its secret.", .place = Place::kPath}},
       .method = "DELETE",
       .path = "/api-keys/{KEY}",
       .run = run_request},
  };
}

std::vector<Command> node_commands() {
  return {
      {.noun = "profiles",
       .verb = "list",
       .summary = "List the profiles and their limits.",
       .method = "GET",
       .path = "/profiles",
       .envelope = "profiles",
       .show = show_list,
       .run = run_request},
      {.noun = "events",
       .verb = "",
       .summary = "Follow what happens on the node, a line an event; goes on where it was after a lost "
                  "connection (admin).",
       .parameters = {{.name = "--since",
                       .help = "Begin after the event with this id.",
                       .value = "ID",
                       .place = Place::kHeader,
                       .field = "Last-Event-ID"},
                      kUpdates},
       .method = "GET",
       .path = "/events",
       .run = run_events},
      {.noun = "config",
       .verb = "check",
       .summary = "Check a configuration file of portwayd; asks no server.",
       .parameters = {{.name = "FILE", .help = "The TOML file.", .kind = Kind::kFile}},
       .run = run_config_check},
      {.noun = "doctor",
       .verb = "",
       .summary =
           "Check this node: kernel, limits, ports, devices, files and the daemon, each with a remedy.",
       .parameters = {{.name = "--config",
                       .help = "The daemon's configuration.",
                       .kind = Kind::kFile,
                       .value = "FILE",
                       .fallback = kDefaultConfigFile}},
       .run = run_doctor},
      {.noun = "completion",
       .verb = "",
       .summary = "Print a shell's completion script.",
       .parameters = {{.name = "SHELL", .help = "The shell it is for.", .choices = {"bash", "zsh", "fish"}}},
       .run = run_completion},
      {.noun = "version",
       .verb = "",
       .summary = "Print the client's and the server's version.",
       .run = run_version},
      {.noun = "man-page",
       .verb = "",
       .summary = "Print a manual page (troff), for the build.",
       .parameters = {{.name = "PAGE", .help = "Which one.", .choices = {"portway.1", "portway.toml.5"}}},
       .run = run_man_page,
       .hidden = true},
  };
}

}  // namespace

std::span<const Command> commands() {
  static const std::vector<Command> all = [] {
    std::vector<Command> table;
    for (auto part : {instance_commands, forward_commands, key_commands, node_commands}) {
      for (Command& command : part()) table.push_back(std::move(command));
    }
    return table;
  }();
  return all;
}

std::span<const Noun> nouns() {
  static constexpr auto kNouns = std::to_array<Noun>({
      {"instances", "Virtual machines whose ports can be forwarded."},
      {"forwards", "Host ports that lead to an instance's ports."},
      {"keys", "API keys."},
      {"profiles", "Limits of instances, by name."},
      {"config", "The daemon's configuration."},
  });
  return kNouns;
}

std::span<const Parameter> global_parameters() {
  static const std::vector<Parameter> parameters = {
      {.name = "--server",
       .help = "http://HOST:PORT, https://HOST[:PORT][/PATH] or unix:/PATH.",
       .value = "URL",
       .fallback = "http://127.0.0.1:8080",
       .environment = "PORTWAY_SERVER"},
      {.name = "--key-file",
       .help = "The file with the API key. The key itself is taken from PORTWAY_API_KEY, and never from the "
               "command line, where others could read it.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_API_KEY_FILE"},
      {.name = "--output",
       .help = "table, or json: the API's answers, and on standard error its problem documents.",
       .value = "FORMAT",
       .letter = 'o',
       .fallback = "table",
       .choices = {"table", "json"}},
      {.name = "--ca",
       .help = "Trust the certificate authorities in this PEM file instead of the system's.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_CA_FILE"},
      {.name = "--cert",
       .help = "The client's certificate chain (PEM), for a server that asks for one.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_CERT_FILE"},
      {.name = "--cert-key",
       .help = "Its private key (PEM); not needed when it is in the same file.",
       .kind = Kind::kFile,
       .value = "FILE",
       .environment = "PORTWAY_CERT_KEY_FILE"},
      {.name = "--timeout",
       .help = "Seconds without progress after which a request has failed.",
       .kind = Kind::kCount,
       .value = "SECONDS",
       .fallback = "30"},
  };
  return parameters;
}

}  // namespace portway
