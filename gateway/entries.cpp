#include "gateway/entries.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <cstdint>
#include <utility>

namespace portway {
namespace {

/// The view has checked that it is an object.
boost::json::object object_in(std::string_view json) {
  return std::move(boost::json::parse(json).as_object());
}

void add_node(boost::json::object& out, const FleetView& view, const FleetViewInstance& instance) {
  out["node"] = instance.node;
  const auto node = view.nodes().find(instance.node);
  out["node_state"] = node == view.nodes().end() ? "lost" : state_of(node->second);
}

}  // namespace

std::string_view state_of(const FleetViewNode& node) {
  if (!node.alive) return "lost";
  return node.registered && node.registered->record.draining ? "draining" : "up";
}

boost::json::object entry_of(const FleetView& view, const FleetViewInstance& instance) {
  boost::json::object out = object_in(instance.json);
  if (auto* forwards = out.if_contains("port_forwards"); forwards != nullptr && forwards->is_object()) {
    boost::json::object& numbers = forwards->get_object();
    const auto current = static_cast<std::int64_t>(instance.forwards.size());
    const auto* limit = numbers.if_contains("limit");  // until a member is added
    const std::int64_t most = limit != nullptr && limit->is_int64() ? limit->get_int64() : -1;
    numbers["current"] = current;
    if (most >= 0) numbers["available"] = std::max<std::int64_t>(most - current, 0);
  }
  add_node(out, view, instance);
  return out;
}

boost::json::object entry_of(const FleetView& view, const FleetViewInstance& instance,
                             const FleetViewForward& forward) {
  boost::json::object out = object_in(forward.json);
  out.erase("session_id");
  add_node(out, view, instance);
  const auto node = view.nodes().find(instance.node);
  if (node != view.nodes().end() && node->second.registered)
    out["hostname"] = node->second.registered->record.hostname;
  return out;
}

boost::json::object entry_of(std::string_view id, const FleetViewNode& node) {
  boost::json::object out{{"id", id}, {"state", state_of(node)}};
  if (node.registered) {
    const NodeRecord& record = node.registered->record;
    out["hostname"] = record.hostname;
    out["address"] = record.address;
    out["version"] = record.version;
    out["started_at"] = to_rfc3339(record.started_at);
    out["capacity"] = {{"connections", record.capacity.connections},
                       {"host_ports", record.capacity.host_ports}};
    out["load"] = {{"instances", record.load.instances},
                   {"port_forwards", record.load.forwards},
                   {"connections", record.load.connections}};
  }
  out["instances"] = node.instances;
  return out;
}

Response with_fleet_event_id(const GatewayContext& gateway, Response response) {
  response.headers.emplace_back("Portway-Event-Id", gateway.events.last_id());
  return response;
}

}  // namespace portway
