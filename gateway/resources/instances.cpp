// /instances: what runs in the fleet. One instance is its node's to answer for; the list is the view's.

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <boost/json.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/url.hpp>
#include <optional>
#include <string>
#include <utility>

#include "api/answers.h"
#include "api/instance_page.h"
#include "api/resources.h"
#include "api/selector.h"
#include "gateway/entries.h"
#include "gateway/relay.h"
#include "gateway/resources.h"

namespace portway {
namespace {

using boost::asio::awaitable;

// For the node to have told etcd of a new instance, and etcd this gateway.
constexpr std::chrono::milliseconds kInstanceKnownWithin(1000);
constexpr std::size_t kScanned = 256;  // of the view, at a time

const auto kOnNode = text_parameter("node");

Result<Response> list_fleet_instances(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) return warm.error();
  const FleetView& view = gateway.fleet.view();
  const std::size_t limit = call.query[kPageLimit];
  const Selector selector = call.query[kMetadata];
  const std::optional<std::string> on_node = call.query[kOnNode];
  const auto owner =
      call.caller.role == Role::kAdmin ? std::nullopt : std::optional<std::string_view>(call.caller.owner);
  std::string after = call.query[kInstanceCursor];
  boost::json::array list;
  boost::json::object body;
  for (bool more = true; more;) {
    const auto found = view.instances(owner, after, kScanned);
    more = found.size() == kScanned;
    for (const FleetViewInstance* instance : found) {
      const bool is_wanted = call.caller.sees(instance->owner, instance->id) &&
                             selector.admits(instance->metadata) && (!on_node || *on_node == instance->node);
      if (is_wanted && list.size() == limit) {
        body["next_cursor"] = after;
        more = false;
        break;
      }
      if (is_wanted) list.push_back(entry_of(view, *instance));
      after = instance->id;
    }
  }
  body["instances"] = std::move(list);
  mark_stale(gateway, body);
  return with_fleet_event_id(gateway, json_response(200, body));
}

/// What the node is to get: without the parameter that is for the gateway.
std::string without_node(std::string_view target) {
  auto url = boost::urls::url(boost::urls::parse_uri_reference(target).value());
  url.params().erase(kOnNode.name);
  std::string text(url.encoded_path());
  if (url.has_query() && !url.encoded_query().empty()) text += "?" + std::string(url.encoded_query());
  return text;
}

/// Until this gateway knows that the node has the instance, so that the caller can go on with it here.
awaitable<void> wait_until_known(const GatewayContext& gateway, std::string id, std::string node) {
  const auto deadline = std::chrono::steady_clock::now() + kInstanceKnownWithin;
  const auto is_known = [&] {
    const FleetViewInstance* instance = gateway.fleet.view().find_instance(id);
    return instance != nullptr && instance->node == node;
  };
  while (!is_known()) {  // GCC 12 awaits what is behind a && whatever is before it
    if (!co_await gateway.events.next_change(deadline)) co_return;
  }
}

awaitable<Result<Response>> put_fleet_instance(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) co_return warm.error();
  const std::string& id = call.path[0];
  std::optional<std::string> node = call.query[kOnNode];
  const FleetViewInstance* known = gateway.fleet.view().find_instance(id);
  if (!node && known == nullptr) {
    co_return Error{ErrorCode::kInvalidRequest,
                    "No node has this instance yet: say which one does, by ?node=ID; GET /nodes lists them.",
                    "node"};
  }
  if (!node) node = known->node;
  auto response = co_await relay(gateway, *node, call, without_node(call.request.target));
  if (!response && response.error().code == ErrorCode::kNotFound) {
    Error error = response.error();
    error.code = ErrorCode::kInvalidRequest;
    error.field = "node";
    co_return error;
  }
  if (response && (response->status == 200 || response->status == 201))
    co_await wait_until_known(gateway, id, *node);
  co_return response;
}

}  // namespace

std::vector<GatewayRoute> fleet_instance_routes() {
  QueryParameters of_put{};
  for (const RouteLine& line : node_route_lines()) {
    if (line.method == "PUT" && line.pattern == "/instances/{id}") of_put = line.query.with(kOnNode);
  }
  return {
      {"GET",
       "/instances",
       Access::kTenant,
       {kMetadata, kOnNode, kPageLimit, kInstanceCursor},
       list_fleet_instances},
      {"PUT", "/instances/{id}", Access::kAdmin, of_put, put_fleet_instance},
  };
}

}  // namespace portway
