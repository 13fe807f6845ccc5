// Commands without a resource of their own: profiles, events, checks of the node, and what the program prints
// about itself.
#include "client/commands/parts.h"

#include "client/apply.h"
#include "client/backup.h"
#include "client/completion.h"
#include "client/config_check.h"
#include "client/doctor.h"
#include "client/events.h"
#include "client/healthcheck.h"
#include "client/man_page.h"
#include "client/output.h"
#include "client/request.h"
#include "client/upgrade.h"
#include "client/version.h"

namespace portway {

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
      {.noun = "apply",
       .verb = "",
       .summary = "Make the forwards of instances what a file says: each instance as a whole or not at all.",
       .parameters = {{.name = "--file",
                       .help = "The file, in JSON: {\"instances\": {\"ID\": {\"port_forwards\": "
                               "[{\"guest_port\": 3000, \"label\": \"web\"}]}}}. -: standard input.",
                       .kind = Kind::kFile,
                       .value = "FILE",
                       .letter = 'f',
                       .required = true},
                      {.name = "--dry-run", .help = "Only say what would be changed.", .kind = Kind::kFlag}},
       .run = run_apply},
      {.noun = "events",
       .verb = "",
       .summary = "Follow the events of the node, or of the gateway's fleet, one per line; after a lost "
                  "connection, continues where it "
                  "left off. A tenant's key sees the events of its owner's instances.",
       .parameters = {{.name = "--since",
                       .help = "Start after the event with this id.",
                       .value = "ID",
                       .place = Place::kHeader,
                       .field = "Last-Event-ID"},
                      kUpdates},
       .method = "GET",
       .path = "/events",
       .run = run_events},
      {.noun = "drain",
       .verb = "",
       .summary =
           "Let the node take nothing new, until \"portway undrain\": new instances, sessions and forwards "
           "are refused, what it has goes on (admin). Holds over restarts.",
       .parameters = {kAtNode},
       .method = "POST",
       .path = "/v1/node/drain",
       .answered_by = AnsweredBy::kNode,
       .envelope = "node",
       .show = show_resource,
       .run = run_request},
      {.noun = "undrain",
       .verb = "",
       .summary = "Let the node take new instances and forwards again (admin).",
       .parameters = {kAtNode},
       .method = "DELETE",
       .path = "/v1/node/drain",
       .answered_by = AnsweredBy::kNode,
       .envelope = "node",
       .show = show_resource,
       .run = run_request},
      {.noun = "node",
       .verb = "status",
       .summary =
           "Show the daemon's process, what it has taken over from the one before, and whether the node is "
           "drained (admin).",
       .parameters = {kAtNode},
       .method = "GET",
       .path = "/v1/node",
       .answered_by = AnsweredBy::kNode,
       .envelope = "process",
       .show = show_node,
       .run = run_request},
      {.noun = "node",
       .verb = "upgrade",
       .summary = "Replace the daemon by the binary that is installed now, without losing a connection, and "
                  "wait until that one serves (admin).",
       .parameters = {kAtNode},
       .method = "POST",
       .path = "/v1/node/upgrade",
       .answered_by = AnsweredBy::kNode,
       .envelope = "process",
       .show = show_resource,
       .run = run_upgrade},
      {.noun = "node",
       .verb = "backup",
       .summary = "Copy the daemon's store into a file, while it runs; \"portwayd --restore FILE\" makes a "
                  "store of it again (admin). The file holds hashes of the API keys.",
       .parameters = {{.name = "FILE",
                       .help = "The new file; an existing one is replaced once the new one is complete.",
                       .kind = Kind::kFile},
                      kAtNode},
       .method = "POST",
       .path = "/v1/node/backup",
       .answered_by = AnsweredBy::kNode,
       .run = run_backup},
      {.noun = "healthcheck",
       .verb = "",
       .summary = "Exit with 0 if the daemon answers, else with 1 and the reason in one line. Needs no key; "
                  "--timeout is 3 unless given.",
       .parameters = {{.name = "--ready",
                       .help = "Ask whether it would accept a new forward now (/readyz), not only whether it "
                               "answers (/healthz).",
                       .kind = Kind::kFlag},
                      {.name = "--config",
                       .help =
                           "Ask the daemon of this configuration file and of this environment, on this "
                           "node, in place of --server: at a Unix socket, if it has one, else at the first "
                           "listener that needs no certificate of clients. Any certificate of the "
                           "server will do: no key is sent, and one that has expired is no reason to "
                           "restart a daemon.",
                       .kind = Kind::kFile,
                       .value = "FILE"}},
       .run = run_healthcheck},
      {.noun = "config",
       .verb = "check",
       .summary =
           "Check a configuration file of portwayd and the files that it names, without contacting a server.",
       .parameters = {{.name = "FILE", .help = "The TOML file.", .kind = Kind::kFile}},
       .run = run_config_check},
      {.noun = "doctor",
       .verb = "",
       .summary =
           "Check this node (kernel, limits, ports, devices, files and the daemon) and suggest remedies.",
       .parameters = {{.name = "--config",
                       .help =
                           "The daemon's configuration file. It also gives the address of the API, unless "
                           "--server is given.",
                       .kind = Kind::kFile,
                       .value = "FILE",
                       .fallback = kDefaultConfigFile}},
       .run = run_doctor},
      {.noun = "completion",
       .verb = "",
       .summary = "Print a shell's completion script.",
       .parameters = {{.name = "SHELL", .help = "The shell.", .choices = {"bash", "zsh", "fish"}}},
       .run = run_completion},
      {.noun = "complete-ids",
       .verb = "",
       .summary = "Print ids, for the completion scripts.",
       .parameters = {{.name = "KIND",
                       .help = "Which ones.",
                       .choices = {"instances", "forwards", "keys", "nodes", "contexts"}},
                      {.name = "INSTANCE",
                       .help = "The instance whose forwards are listed; ignored for other kinds."}},
       .run = run_complete_ids,
       .hidden = true},
      {.noun = "version",
       .verb = "",
       .summary = "Print the versions of the client and the server.",
       .run = run_version},
      {.noun = "man-page",
       .verb = "",
       .summary = "Print a manual page in troff, for the build.",
       .parameters = {{.name = "PAGE", .help = "Which one.", .choices = {"portway.1", "portway.toml.5"}}},
       .run = run_man_page,
       .hidden = true},
  };
}

}  // namespace portway
