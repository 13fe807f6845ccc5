// /instances: what runs in the fleet. One instance is its node's to answer for; the list is the view's.

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <boost/json.hpp>
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
#include "gateway/view_page.h"

namespace portway {
namespace {

using boost::asio::awaitable;

// For the node to have told etcd of a new instance, and etcd this gateway.
constexpr std::chrono::milliseconds kInstanceKnownWithin(1000);

const auto kOnNode = text_parameter("node");

Result<Response> list_fleet_instances(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) return warm.error();
  const FleetView& view = gateway.fleet.view();
  const std::optional<std::string> on_node = call.query[kOnNode];
  const ViewPage page = page_of_view(
      view, call, [&](const FleetViewInstance& instance) { return !on_node || *on_node == instance.node; });
  boost::json::array list;
  boost::json::object body;
  for (const FleetViewInstance* instance : page.instances) list.push_back(entry_of(view, *instance));
  if (page.next_cursor) body["next_cursor"] = *page.next_cursor;
  body["instances"] = std::move(list);
  mark_stale(gateway, body);
  return with_fleet_event_id(gateway, json_response(200, body));
}

struct PutInstance {
  std::string id;
  std::string node;
  std::string session_id = {};  // empty: the node's answer does not say
  std::string owner = {};
};

PutInstance instance_put_on(std::string node, std::string id, std::string_view answer) {
  PutInstance put{.id = std::move(id), .node = std::move(node)};
  boost::system::error_code error;
  const auto body = boost::json::parse(answer, error);
  const auto member = [&](const char* name) {
    const auto* value = error ? nullptr : body.find_pointer(name, error);
    return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
  };
  put.session_id = member("/instance/session_id");
  put.owner = member("/instance/owner");
  return put;
}

/// Until this gateway knows of it, so that the caller, and the owner, can go on with it here.
awaitable<void> wait_until_known(const GatewayContext& gateway, PutInstance put) {
  const auto deadline = std::chrono::steady_clock::now() + kInstanceKnownWithin;
  const auto is_known = [&] {
    const FleetViewInstance* instance = gateway.fleet.view().find_instance(put.id);
    return instance != nullptr && instance->node == put.node && instance->has_session(put.session_id) &&
           (put.owner.empty() || instance->owner == put.owner);
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
  if (!node) {
    // A view that is out of date could begin a session where the instance was before.
    if (auto certain = check_certain(gateway); !certain) {
      Error error = certain.error();
      error.detail += " Or say which node it is to be on, by ?node=ID.";
      co_return error;
    }
    if (known == nullptr) {
      co_return Error{
          ErrorCode::kInvalidRequest,
          "No node has this instance yet: say which one does, by ?node=ID; GET /nodes lists them.", "node"};
    }
    node = known->node;
  }
  std::string target = path_and_query(call.request.target, kOnNode.name);  // the parameter is for the gateway
  auto response = co_await relay(gateway, *node, call, std::move(target));
  if (!response && response.error().code == ErrorCode::kNotFound) {
    Error error = response.error();
    error.code = ErrorCode::kInvalidRequest;
    error.field = "node";
    co_return error;
  }
  if (response && (response->status == 200 || response->status == 201))
    co_await wait_until_known(gateway, instance_put_on(*node, id, response->body));
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
