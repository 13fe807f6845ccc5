// `portway forwards`: host ports that lead to ports of an instance.
#include "client/commands/parts.h"

#include <array>

#include "base/forward.h"
#include "client/capture.h"
#include "client/output.h"
#include "client/request.h"
#include "client/watch.h"

namespace portway {
namespace {

constexpr std::int64_t kBytesPerSecondMax = 1'000'000'000'000;  // the API's

const Parameter kLabel{.name = "--label",
                       .help = "A human-readable name, up to 63 bytes.",
                       .place = Place::kBody,
                       .field = "label"};

const Parameter kIdempotencyKey{
    .name = "--idempotency-key",
    .help =
        "Makes the command safe to repeat: the server answers the same key with the "
        "first answer and creates nothing twice. The key is refused once the "
        "forward that it created has ended.",
    .place = Place::kHeader,
    .field = "Idempotency-Key"};

/// Limits and source mode of a forward, in the body.
const std::array<Parameter, 6> kTraffic = {
    Parameter{.name = "--allowed-cidr",
              .help = "Only clients in this network may connect; repeatable.",
              .value = "CIDR",
              .place = Place::kBody,
              .field = "allowed_cidrs",
              .repeatable = true},
    Parameter{.name = "--max-connections",
              .help = "Concurrent connections; further clients are reset.",
              .kind = Kind::kCount,
              .value = "N",
              .place = Place::kBody,
              .field = "max_connections"},
    Parameter{.name = "--max-per-source",
              .help = "Concurrent connections from one client address.",
              .kind = Kind::kCount,
              .value = "N",
              .place = Place::kBody,
              .field = "max_connections_per_source"},
    Parameter{.name = "--max-new-per-second",
              .help = "New connections per second, with bursts of the same size.",
              .kind = Kind::kCount,
              .value = "N",
              .place = Place::kBody,
              .field = "max_new_connections_per_second"},
    Parameter{.name = "--max-bytes-per-second",
              .help = "Bytes per second in each direction, for all connections together.",
              .kind = Kind::kCount,
              .value = "N",
              .place = Place::kBody,
              .field = "max_bytes_per_second",
              .most = kBytesPerSecondMax},
    Parameter{
        .name = "--source-mode",
        .help = "The client address that the guest sees: transparent (the client's own), plain (the node's), "
                "proxy_v2 (the client's own in a PROXY header), auto (the node's setting).",
        .value = "MODE",
        .place = Place::kBody,
        .field = "source_mode"}};

/// What a forward leads to if it is no TCP port, in the body.
const std::array<Parameter, 3> kTarget = {
    Parameter{.name = "--target",
              .help = "Lead to a Unix socket of the node, or to the guest's vsock through the socket of its "
                      "Firecracker (admin); tcp: to GUEST_PORT, whatever the instance's own target is.",
              .value = "KIND",
              .place = Place::kBody,
              .field = "target.kind",
              .choices = {"tcp", "unix", "firecracker_vsock"}},
    Parameter{.name = "--socket",
              .help = "The socket's absolute path, below one of guests.socket_directories.",
              .kind = Kind::kFile,
              .value = "FILE",
              .place = Place::kBody,
              .field = "target.socket"},
    Parameter{.name = "--vsock-port",
              .help = "The port that the service in the guest listens on, with firecracker_vsock.",
              .kind = Kind::kCount,
              .value = "N",
              .place = Place::kBody,
              .field = "target.port",
              .most = kVsockPortMax}};

const Parameter kNoLimit{.name = "--no-limit",
                         .help = "Remove this limit; repeatable.",
                         .value = "LIMIT",
                         .place = Place::kBodyNull,
                         .repeatable = true,
                         .choices = {"allowed-cidr", "max-connections", "max-per-source",
                                     "max-new-per-second", "max-bytes-per-second"}};

const std::vector<Column> kForwardColumns = {{"ID", "id"},
                                             {"ENDPOINT", "endpoint"},
                                             {"LISTENS AT", "bind_addresses"},
                                             {"GUEST PORT", "guest_port"},
                                             {"TARGET", "target"},
                                             {"LABEL", "label"},
                                             {"STATE", "state"},
                                             {"REASON", "reason"},
                                             {"CREATED", "created_at"}};

}  // namespace

std::vector<Command> forward_commands() {
  return {
      {.noun = "forwards",
       .verb = "create",
       .summary = "Forward a host port to a guest port and print the public host name and port.",
       .parameters = {kInstance,
                      {.name = "GUEST_PORT",
                       .help =
                           "The TCP port that the service in the guest listens on. Left out with --target "
                           "unix or firecracker_vsock, or if the instance's own target says where forwards "
                           "lead; if that is a vsock, it is the vsock's port.",
                       .kind = Kind::kPort,
                       .place = Place::kBody,
                       .field = "guest_port",
                       .optional = true},
                      kLabel,
                      {.name = "--host-port",
                       .help = "Use this host port instead of a random one; not every key may choose.",
                       .kind = Kind::kPort,
                       .value = "PORT",
                       .place = Place::kBody,
                       .field = "host_port"},
                      kTraffic[0],
                      kTraffic[1],
                      kTraffic[2],
                      kTraffic[3],
                      kTraffic[4],
                      kTraffic[5],
                      kTarget[0],
                      kTarget[1],
                      kTarget[2],
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
                       .help = "List only the forwards with this label.",
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
       .summary = "Change a forward in place; its ports stay the same. Only an admin can change limits that "
                  "an admin has set (admin_limits).",
       .parameters = {kInstance, kForward, kLabel, kTraffic[0], kTraffic[1], kTraffic[2], kTraffic[3],
                      kTraffic[4], kTraffic[5], kNoLimit},
       .method = "PATCH",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}",
       .envelope = "port_forward",
       .show = show_resource,
       .run = run_request},
      {.noun = "forwards",
       .verb = "delete",
       .summary = "Delete a forward and release its host port.",
       .parameters =
           {kInstance,
            kForward,
            {.name = "--connections",
             .help = "What happens to established connections: keep leaves them open (the default, as with "
                     "DNAT), drain gives them the configured time to finish, reset resets them at once.",
             .value = "WHAT",
             .place = Place::kQuery,
             .field = "connections",
             .choices = {"keep", "drain", "reset"}}},
       .method = "DELETE",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}",
       .run = run_request},
      {.noun = "forwards",
       .verb = "watch",
       .summary = "List an instance's forwards with their traffic, at regular intervals.",
       .parameters = {kInstance, kInterval, kUpdates},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards",
       .paged = true,
       .envelope = "port_forwards",
       .columns = {{"ID", "id"},
                   {"ENDPOINT", "endpoint"},
                   {"GUEST PORT", "guest_port"},
                   {"TARGET", "target"},
                   {"LABEL", "label"},
                   {"STATE", "state"},
                   {"REASON", "reason"},
                   {"ACTIVE", "connections_active"},
                   {"CONNECTIONS", "connections_total"},
                   {"RECEIVED", "received_bytes"},
                   {"SENT", "sent_bytes"}},
       .show = show_forwards,
       .run = run_watch},
      {.noun = "forwards",
       .verb = "check",
       .summary = "Check a forward step by step, from the listener to the guest's answer; exits with 1 if a "
                  "step is not ok.",
       .parameters = {kInstance,
                      kForward,
                      {.name = "--client",
                       .help = "Check whether a client with this address would be admitted and answered.",
                       .value = "ADDRESS",
                       .place = Place::kQuery,
                       .field = "client"}},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}/check",
       .envelope = "check",
       .show = show_check,
       .verdict = "ok",
       .run = run_request},
      {.noun = "forwards",
       .verb = "capture",
       .summary = "Capture a forward's packets between node and guest as a pcap file (admin).",
       .parameters =
           {kInstance,
            kForward,
            {.name = "--seconds",
             .help = "The longest duration, up to 60.",
             .kind = Kind::kCount,
             .value = "N",
             .place = Place::kQuery,
             .field = "seconds",
             .fallback = "10"},
            {.name = "--max-bytes",
             .help = "The largest file, up to 16777216.",
             .kind = Kind::kCount,
             .value = "N",
             .place = Place::kQuery,
             .field = "max_bytes",
             .fallback = "1000000"},
            {.name = "--write",
             .help = "The file to write, named FILE.part until it is complete; without it, standard output.",
             .kind = Kind::kFile,
             .value = "FILE"}},
       .method = "POST",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}/capture",
       .run = run_capture},
  };
}

}  // namespace portway
