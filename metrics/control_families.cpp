#include "metrics/control_families.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "metrics/api_families.h"

namespace portway {
namespace {

/// A family with one number.
struct NodeNumber {
  MetricType type;
  const char* name;
  const char* help;
  std::uint64_t NodeNumbers::*value;
};

constexpr NodeNumber kNodeNumbers[] = {
    {MetricType::Counter, "portway_access_log_dropped_total",
     "Lines of the access log that were lost because the disk was too slow or refused them; should stay 0.",
     &NodeNumbers::access_log_dropped},
    {MetricType::Counter, "portway_audit_log_dropped_total",
     "Lines of the audit log that were lost because the disk was too slow or refused them; should stay 0.",
     &NodeNumbers::audit_log_dropped},
    {MetricType::Counter, "portway_log_lines_dropped_total",
     "Lines of the daemon's own log (standard error) that were lost because the reader was too slow or they "
     "could not be written; should stay 0.",
     &NodeNumbers::log_lines_dropped},
    {MetricType::Gauge, "portway_forwards_failed",
     "Forwards that exist but are not served: another program has the port, or the guest's address is no "
     "longer allowed; should be 0.",
     &NodeNumbers::forwards_failed},
    {MetricType::Gauge, "portway_node_draining",
     "1 while the node is being drained (POST /v1/node/drain): it refuses new sessions and forwards.",
     &NodeNumbers::draining},
    {MetricType::Gauge, "portway_instances_without_return_path",
     "Running instances whose guests see the node's address instead of their clients', because something on "
     "the node blocks the return path of their answers; should be 0. If source_mode transparent was "
     "requested explicitly, clients are rejected instead.",
     &NodeNumbers::instances_without_return_path},
    {MetricType::Gauge, "portway_guest_namespaces",
     "Network namespaces of guests and their taps that are held open: one each, until the last session in it "
     "ends.",
     &NodeNumbers::guest_namespaces},
    {MetricType::Counter, "portway_forged_packets_dropped_total",
     "Packets from guests that were dropped because their source address belongs to another guest of the "
     "node.",
     &NodeNumbers::forged_packets},
    {MetricType::Counter, "portway_seccomp_refused_total",
     "System calls that a confined thread of this process made and was refused (process.sandbox); should "
     "stay 0.",
     &NodeNumbers::refused_calls},
};

void emit_ports(Sink& sink, const PortAllocator& ports, const ApiStats& api) {
  emit(sink, MetricType::Gauge, "portway_ports_allocated",
       "Host ports of the configured range that forwards use.", std::uint64_t{ports.used()});
  emit(sink, MetricType::Gauge, "portway_ports_available",
       "Free host ports of the configured range; at 0 new forwards are refused.",
       std::uint64_t{ports.free()});
  Family errors(sink, MetricType::Counter, "portway_port_allocation_errors_total",
                "Host ports that could not be allocated: taken (the requested one is in use), exhausted "
                "(none of the range is free), resources (descriptors or memory ran out).",
                {"reason"});
  for (std::size_t i = 0; i < kPortAllocationErrors; ++i) {
    errors.label(0, to_string(static_cast<PortAllocationError>(i))).add(api.port_allocation_errors[i]);
  }
}

void emit_handover(Sink& sink, const HandoverStats& handover) {
  emit(sink, MetricType::Gauge, "portway_keeper_up",
       "1 while connections outlive this process, if it dies: its keeper runs. 0: they end with it.",
       std::uint64_t{handover.has_keeper});
  {
    Family handovers(
        sink, MetricType::Counter, "portway_handovers_total",
        "Hand-overs of connections between two processes, as this one has seen them: kind crash or "
        "upgrade; result taken_over (this process continues the work of the one before) or failed "
        "(an upgrade after which this process continued).",
        {"kind", "result"});
    const auto took = [&](bool from_living) {
      return std::uint64_t{handover.taken_over && handover.from_living == from_living};
    };
    handovers.label(0, "crash").label(1, "taken_over").add(took(false));
    handovers.label(0, "upgrade").label(1, "taken_over").add(took(true));
    handovers.label(0, "upgrade").label(1, "failed").add(handover.upgrades_failed);
  }
  emit(sink, MetricType::Counter, "portway_handover_connections_adopted_total",
       "Established connections of the process before that this one continues.",
       std::uint64_t{handover.adopted});
  {
    Family lost(
        sink, MetricType::Counter, "portway_handover_connections_reset_total",
        "Established connections of the process before that were reset: unknown (how far its bytes had "
        "come cannot be told), incomplete (a descriptor is missing), no_forward (its forward is gone), "
        "connections_max (it is lower now), poison (it was being moved at each of several crashes).",
        {"reason"});
    for (std::size_t i = 0; i < kLostReasons; ++i)
      lost.label(0, to_string(static_cast<Lost>(i))).add(std::uint64_t{handover.lost[i]});
  }
  emit(sink, MetricType::Gauge, "portway_handover_descriptors_left_over",
       "Descriptors of the process before that belonged to nothing and were closed.",
       std::uint64_t{handover.left_over});
  emit(sink, MetricType::Gauge, "portway_handover_duration_seconds",
       "Time from getting the descriptors of the process before until everything was served again; 0: there "
       "was none.",
       handover.seconds);
}

void emit_fleet(Sink& sink, const FleetNumbers& fleet) {
  emit(sink, MetricType::Gauge, "portway_fleet_registered",
       "1 while the node's record is in etcd, on a lease that is kept alive; absent if fleet.etcd is empty.",
       std::uint64_t{fleet.registered});
  emit(sink, MetricType::Gauge, "portway_fleet_pending",
       "Instances and forwards of which etcd may not have the present state; should soon be 0.",
       fleet.pending);
  {
    Family writes(sink, MetricType::Counter, "portway_fleet_writes_total",
                  "Transactions to etcd, each about several instances or forwards: ok, claim (an instance's "
                  "claim was not as expected; it was read), failed (it was not carried out, or perhaps).",
                  {"result"});
    writes.label(0, "ok").add(fleet.writes - fleet.claims_refused);
    writes.label(0, "claim").add(fleet.claims_refused);
    writes.label(0, "failed").add(fleet.writes_failed);
  }
  emit(sink, MetricType::Counter, "portway_fleet_registrations_total",
       "How often the node has registered: again after its lease or its record was lost.",
       fleet.registrations);
  emit(sink, MetricType::Counter, "portway_fleet_listings_total",
       "How often all that etcd has of the node was read: after a registration, or if changes were missed.",
       fleet.listings);
  emit(sink, MetricType::Counter, "portway_fleet_sessions_lost_total",
       "Sessions that were ended because another node has a newer one of the instance, or because it was "
       "deleted while this node was away.",
       fleet.sessions_lost);
  emit(sink, MetricType::Gauge, "portway_fleet_clock_ahead_seconds",
       "How far the node's clock is ahead of etcd's, to within a second.", fleet.clock_ahead_seconds);
}

}  // namespace

void emit_control(Sink& sink, const ExporterSources& sources) {
  const NodeNumbers numbers = sources.node.read_numbers();
  for (const NodeNumber& number : kNodeNumbers) {
    emit(sink, number.type, number.name, number.help, numbers.*number.value);
  }
  emit_ports(sink, sources.ports, sources.api);
  emit_api(sink, {sources.api, numbers.api_server, numbers.answers, numbers.bodies});
  emit_handover(sink, numbers.handover);
  if (numbers.fleet) emit_fleet(sink, *numbers.fleet);
  emit_process(sink, numbers.faults);
}

}  // namespace portway
