// `portway connections`: a forward's current and recently closed connections.
#include "client/commands/parts.h"

#include "client/output.h"
#include "client/request.h"
#include "client/watch.h"

namespace portway {
namespace {

const std::vector<Column> kConnectionColumns = {{"ID", "id"},
                                                {"CLIENT", "client"},
                                                {"STATE", "state"},
                                                {"AGE", "age_s"},
                                                {"IDLE", "idle_s"},
                                                {"RECEIVED", "received_bytes"},
                                                {"SENT", "sent_bytes"},
                                                {"QUEUED IN", "received_queued_bytes"},
                                                {"QUEUED OUT", "sent_queued_bytes"},
                                                {"RECEIVED/S", "received_bytes_per_second"},
                                                {"SENT/S", "sent_bytes_per_second"},
                                                {"CLIENT RTT US", "client_rtt_us"},
                                                {"GUEST RTT US", "guest_rtt_us"}};

}  // namespace

std::vector<Command> connection_commands() {
  return {
      {.noun = "connections",
       .verb = "list",
       .summary = "List a forward's current connections.",
       .parameters = {kInstance, kForward},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}/connections",
       .paged = true,
       .envelope = "connections",
       .columns = kConnectionColumns,
       .show = show_list,
       .run = run_request},
      {.noun = "connections",
       .verb = "closed",
       .summary = "List a forward's recently closed connections, and who closed them and how.",
       .parameters = {kInstance,
                      kForward,
                      {.name = "--state",
                       .help = "List only closed connections.",
                       .place = Place::kQuery,
                       .field = "state",
                       .fallback = "closed",
                       .choices = {"closed"}}},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}/connections",
       .envelope = "connections",
       .columns = {{"BEGAN", "time"},
                   {"DURATION", "duration_s"},
                   {"CLIENT", "client"},
                   {"SIDE", "side"},
                   {"HOW", "how"},
                   {"ERROR", "error"},
                   {"RECEIVED", "received_bytes"},
                   {"SENT", "sent_bytes"}},
       .show = show_list,
       .run = run_request},
      {.noun = "connections",
       .verb = "watch",
       .summary = "List a forward's connections at regular intervals.",
       .parameters = {kInstance, kForward, kInterval, kUpdates},
       .method = "GET",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}/connections",
       .paged = true,
       .envelope = "connections",
       .columns = kConnectionColumns,
       .show = show_list,
       .run = run_watch},
      {.noun = "connections",
       .verb = "kill",
       .summary = "Reset one connection.",
       .parameters = {kInstance,
                      kForward,
                      {.name = "CONNECTION", .help = "The connection's id.", .place = Place::kPath}},
       .method = "DELETE",
       .path = "/instances/{INSTANCE}/port-forwards/{FORWARD}/connections/{CONNECTION}",
       .run = run_request},
  };
}

}  // namespace portway
