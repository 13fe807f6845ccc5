// `portway nodes`: the nodes of a fleet, which its gateways know.
#include "client/commands/parts.h"

#include "client/live_list.h"
#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

const Parameter kNode{.name = "NODE", .help = "The node's id.", .place = Place::kPath};

}  // namespace

std::vector<Command> fleet_commands() {
  return {
      {.noun = "nodes",
       .verb = "list",
       .summary = "List the nodes of the gateway's fleet (admin). \"portway nodes\" does so, too.",
       .parameters = {{.name = "--state",
                       .help = "Only the nodes in this state; lost: etcd has not heard of it for as long as "
                               "its lease.",
                       .value = "STATE",
                       .place = Place::kQuery,
                       .field = "state",
                       .choices = {"any", "up", "draining", "lost"}},
                      kWatch,
                      kUpdates},
       .method = "GET",
       .path = "/nodes",
       .answered_by = AnsweredBy::kGateway,
       .paged = true,
       .envelope = "nodes",
       .columns = {{"ID", "id"},
                   {"STATE", "state"},
                   {"HOSTNAME", "hostname"},
                   {"INSTANCES", "instances"},
                   {"FORWARDS", "load.port_forwards"},
                   {"CONNECTIONS", "load.connections"},
                   {"VERSION", "version"},
                   {"ADDRESS", "address", true},
                   {"HOST PORTS", "capacity.host_ports", true},
                   {"MAX CONNECTIONS", "capacity.connections", true},
                   {"STARTED", "started_at", true}},
       .show = show_list,
       .run = run_list},
      {.noun = "nodes",
       .verb = "show",
       .summary = "Show a node of the gateway's fleet (admin).",
       .parameters = {kNode},
       .method = "GET",
       .path = "/nodes/{NODE}",
       .answered_by = AnsweredBy::kGateway,
       .envelope = "node",
       .show = show_resource,
       .run = run_request},
      {.noun = "nodes",
       .verb = "drain",
       .summary =
           "Let a node take nothing new, until \"portway nodes undrain\" (admin): as \"portway drain\" "
           "at the node itself.",
       .parameters = {kNode},
       .method = "POST",
       .path = "/nodes/{NODE}/drain",
       .answered_by = AnsweredBy::kGateway,
       .envelope = "node",
       .show = show_resource,
       .run = run_request},
      {.noun = "nodes",
       .verb = "undrain",
       .summary = "Let a node take new instances and forwards again (admin).",
       .parameters = {kNode},
       .method = "DELETE",
       .path = "/nodes/{NODE}/drain",
       .answered_by = AnsweredBy::kGateway,
       .envelope = "node",
       .show = show_resource,
       .run = run_request},
  };
}

}  // namespace portway
