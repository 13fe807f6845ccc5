// /nodes: the machines of the fleet.

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "api/answers.h"
#include "gateway/entries.h"
#include "gateway/relay.h"
#include "gateway/resources.h"

namespace portway {
namespace {

using boost::asio::awaitable;

const auto kNodeState = choice_parameter<std::string_view>(
    "state", {{"any", ""}, {"up", "up"}, {"draining", "draining"}, {"lost", "lost"}});
const Parameter<std::string> kNodeCursor =
    cursor_parameter<std::string>([](std::string_view text) { return std::string(text); });

Result<Response> list_nodes(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) return warm.error();
  const auto& nodes = gateway.fleet.view().nodes();
  const std::string_view wanted = call.query[kNodeState];
  const std::size_t limit = call.query[kPageLimit];
  boost::json::array list;
  boost::json::object body;
  for (auto node = nodes.upper_bound(call.query[kNodeCursor]); node != nodes.end(); ++node) {
    if (!wanted.empty() && wanted != state_of(node->second)) continue;
    if (list.size() == limit) {
      body["next_cursor"] = list.back().at("id");
      break;
    }
    list.push_back(entry_of(node->first, node->second));
  }
  body["nodes"] = std::move(list);
  mark_stale(gateway, body);
  return with_fleet_event_id(gateway, json_response(200, body));
}

Result<Response> get_node(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) return warm.error();
  const auto& nodes = gateway.fleet.view().nodes();
  const auto node = nodes.find(call.path[0]);
  if (node == nodes.end())
    return Error{ErrorCode::kNotFound, "There is no node with this id; GET /nodes lists them."};
  boost::json::object body{{"node", entry_of(node->first, node->second)}};
  mark_stale(gateway, body);
  return with_fleet_event_id(gateway, json_response(200, body));
}

/// The node's own POST and DELETE /v1/node/drain.
awaitable<Result<Response>> drain_node(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) co_return warm.error();
  co_return co_await relay(gateway, call.path[0], call, "/v1/node/drain");
}

}  // namespace

std::vector<GatewayRoute> fleet_node_routes() {
  return {
      {"GET", "/nodes", Access::kAdmin, {kNodeState, kPageLimit, kNodeCursor}, list_nodes},
      {"GET", "/nodes/{node}", Access::kAdmin, {}, get_node},
      {"POST", "/nodes/{node}/drain", Access::kAdmin, {}, drain_node},
      {"DELETE", "/nodes/{node}/drain", Access::kAdmin, {}, drain_node},
  };
}

}  // namespace portway
