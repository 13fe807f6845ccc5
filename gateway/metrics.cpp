#include "gateway/metrics.h"

#include <array>
#include <cstdint>

#include "gateway/entries.h"

namespace portway {
namespace {

void emit_view(Sink& sink, const FleetView& view) {
  std::uint64_t up = 0;
  std::uint64_t draining = 0;
  std::uint64_t lost = 0;
  for (const auto& [id, node] : view.nodes()) {
    const auto state = state_of(node);
    ++(state == "up" ? up : state == "draining" ? draining : lost);
  }
  {
    Family nodes(
        sink, MetricType::Gauge, "portway_gateway_nodes",
        "Nodes of the fleet: up, draining (they take nothing new), lost (their leases have ended, and "
        "there is still something of them in etcd).",
        {"state"});
    nodes.label(0, "up").add(up);
    nodes.label(0, "draining").add(draining);
    nodes.label(0, "lost").add(lost);
  }
  emit(sink, MetricType::Gauge, "portway_gateway_instances", "Instances of the fleet.",
       std::uint64_t{view.instance_count()});
  emit(sink, MetricType::Gauge, "portway_gateway_forwards", "Forwards of the fleet.",
       std::uint64_t{view.forward_count()});
  emit(sink, MetricType::Gauge, "portway_gateway_bad_values",
       "Keys in etcd with a value that this gateway does not understand; should be 0.",
       std::uint64_t{view.bad_values()});
}

void emit_etcd(Sink& sink, const FollowerStats& fleet) {
  emit(sink, MetricType::Gauge, "portway_gateway_warm",
       "1 once the fleet was read from etcd; until then the gateway answers 503.", std::uint64_t{fleet.warm});
  emit(sink, MetricType::Gauge, "portway_gateway_stale",
       "1 while etcd cannot be reached or is being read again: lists are as they were last; should be 0.",
       std::uint64_t{fleet.stale});
  emit(sink, MetricType::Counter, "portway_gateway_listings_total",
       "How often the whole fleet was read from etcd: at the start, and if changes may have been missed.",
       fleet.listings);
  emit(sink, MetricType::Counter, "portway_gateway_changes_total", "Changes of the fleet that etcd has told.",
       fleet.events);
}

void emit_nodes(Sink& sink, const NodeClientStats& nodes) {
  emit(sink, MetricType::Counter, "portway_gateway_node_requests_total", "Requests sent on to nodes.",
       nodes.requests);
  {
    Family errors(
        sink, MetricType::Counter, "portway_gateway_node_errors_total",
        "Requests to nodes without a good answer: unreachable and timeout (of what can be repeated), "
        "unknown_outcome (sent, and not answered to the end), busy (too many were under way), "
        "bad_answer, closed.",
        {"kind"});
    for (std::size_t i = 0; i < kNodeErrorKinds; ++i)
      errors.label(0, to_string(static_cast<NodeErrorKind>(i))).add(nodes.errors[i]);
  }
  emit(sink, MetricType::Counter, "portway_gateway_node_streams_broken_total",
       "Answers of nodes without a known end that broke off.", nodes.streams_broken);
  emit(sink, MetricType::Counter, "portway_gateway_node_connections_total", "Connections opened to nodes.",
       nodes.connections_opened);
  emit(sink, MetricType::Gauge, "portway_gateway_node_connections", "Connections to nodes, idle ones too.",
       std::uint64_t{nodes.connections_open});
}

}  // namespace

void emit_gateway(Sink& sink, const GatewayNumbers& numbers) {
  emit_view(sink, numbers.view);
  emit_etcd(sink, numbers.fleet);
  emit_nodes(sink, numbers.nodes);
  emit_api(sink, numbers.api);
  emit_process(sink, numbers.faults);
}

}  // namespace portway
