#include "metrics/control_families.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "metrics/process.h"

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

void emit_faults(Sink& sink, const std::array<std::uint64_t, kFaultParts>& faults) {
  Family family(
      sink, MetricType::Gauge, "portway_fault",
      "Parts that should work but do not, while forwards are served: store (the disk refuses "
      "changes), api (a listener of api.listen), "
      "metrics (that of metrics.listen), certificate (it has expired or cannot be read again), "
      "admin_key, access_log, audit_log, keeper (connections end with the process), worker (a thread "
      "of the data plane hangs), fleet (etcd is not told what it should be); should be 0. GET /v1/node and "
      "the log have the reasons.",
      {"part"});
  for (std::size_t i = 0; i < kFaultParts; ++i) {
    family.label(0, to_string(static_cast<FaultPart>(i))).add(faults[i]);
  }
}

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

void emit_api(Sink& sink, const ApiStats& api) {
  Family requests(sink, MetricType::Counter, "portway_api_requests_total",
                  "Answers of the API, by route pattern and HTTP status code; route \"other\" is a path "
                  "without a route. A pair that never occurred has no series.",
                  {"route", "code"});
  for (const auto& [key, count] : api.requests) {
    requests.label(0, key.first).label(1, std::to_string(key.second)).add(count);
  }
  {
    Family throttled(
        sink, MetricType::Counter, "portway_api_requests_throttled_total",
        "Requests answered 429 rate_limited: owner (the keys of a tenant's owner have used up what "
        "they may ask for), admin (an admin key has), wrong_key (too many requests with keys that "
        "are not valid came from one source).",
        {"reason"});
    for (std::size_t i = 0; i < kThrottleReasons; ++i) {
      throttled.label(0, to_string(static_cast<ThrottleReason>(i))).add(api.throttled[i]);
    }
  }
  const std::array writers = {&api};
  emit_histogram(
      sink, "portway_api_request_duration_seconds",
      "Time from reading a request to handing its answer to the kernel, over all routes.", kRequestBoundsS,
      writers, [](const ApiStats& stats) -> auto& { return stats.request_duration; });
}

void emit_api_server(Sink& sink, const ServerStats& server, const ApiStats& api) {
  emit(sink, MetricType::Gauge, "portway_api_connections", "Open connections to the API.",
       server.connections);
  emit(sink, MetricType::Counter, "portway_api_connections_total",
       "Connections to the API, including refused ones.", server.connections_total);
  {
    Family refused(sink, MetricType::Counter, "portway_api_connections_refused_total",
                   "Refused connections to the API: network (from a guest), limit (too many are open, of all "
                   "clients or of one address), tls "
                   "(the handshake failed), streams (answered 429 or 503, too many streams are open).",
                   {"reason"});
    refused.label(0, "network").add(server.connections_refused_network);
    refused.label(0, "limit").add(server.connections_refused_limit);
    refused.label(0, "tls").add(server.handshakes_failed);
    refused.label(0, "streams").add(server.streams_refused + api.streams_refused);
  }
  {
    Family closed(sink, MetricType::Counter, "portway_api_connections_evicted_total",
                  "Connections to the API that were closed for newcomers: idle (between two requests), "
                  "half_open (with a request that was not complete).",
                  {"state"});
    closed.label(0, "idle").add(server.connections_evicted);
    closed.label(0, "half_open").add(server.half_open_evicted);
  }
  emit(sink, MetricType::Counter, "portway_api_requests_refused_total",
       "Requests that never reached a route: not HTTP, too large or too slow.", server.requests_refused);
  if (server.tls_certificate_expiry == 0) return;
  emit(sink, MetricType::Gauge, "portway_api_tls_certificate_expiry_timestamp_seconds",
       "When the certificate in use expires, in seconds since the epoch.",
       static_cast<double>(server.tls_certificate_expiry));
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

void emit_answers(Sink& sink, const AnswerStats& answers) {
  emit(sink, MetricType::Gauge, "portway_api_answer_bytes",
       "Memory held by answers that clients of the API and of metrics.listen have not read yet.",
       answers.bytes);
  emit(sink, MetricType::Gauge, "portway_api_answer_bytes_max",
       "Limit of that memory; nobody may use more of it than is left for all others.", answers.bytes_max);
  emit(sink, MetricType::Counter, "portway_api_answers_refused_total",
       "Requests answered 503 because there was no memory left for the answer: a client sends requests but "
       "does not read the answers.",
       answers.refused);
}

void emit_bodies(Sink& sink, const AnswerStats& bodies) {
  emit(sink, MetricType::Gauge, "portway_api_body_bytes",
       "Memory held by bodies of requests to the API and to metrics.listen that are being sent or handled.",
       bodies.bytes);
  emit(sink, MetricType::Gauge, "portway_api_body_bytes_max",
       "Limit of that memory; nobody may use more of it than is left for all others.", bodies.bytes_max);
  emit(sink, MetricType::Counter, "portway_api_bodies_refused_total",
       "Requests answered 503 because there was no memory left for their bodies: a client begins many large "
       "requests and does not finish them.",
       bodies.refused);
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

void emit_process(Sink& sink) {
  Family(sink, MetricType::Gauge, "portway_build_info", "Always 1: the running version and its compiler.",
         {"version", "compiler"})
      .label(0, PORTWAY_VERSION)
      .label(1, __VERSION__)
      .add(std::uint64_t{1});
  const ProcessStats process = read_process_stats();
  emit(sink, MetricType::Gauge, "process_open_fds", "Open descriptors; a relayed connection uses two.",
       process.open_fds);
  emit(sink, MetricType::Gauge, "process_max_fds", "The limit on open descriptors (RLIMIT_NOFILE).",
       process.max_fds);
  emit(sink, MetricType::Gauge, "process_resident_memory_bytes",
       "Resident memory in user space; the kernel's socket and pipe buffers come on top.",
       process.resident_bytes);
  emit(sink, MetricType::Counter, "process_cpu_seconds_total",
       "User and system CPU time of all threads; its rate() is the number of cores in use.",
       process.cpu_seconds);
  emit(sink, MetricType::Gauge, "process_start_time_seconds",
       "When the process started and the counters were 0, in seconds since the epoch.",
       process.start_time_seconds);
}

}  // namespace

void emit_control(Sink& sink, const ExporterSources& sources) {
  const NodeNumbers numbers = sources.node.read_numbers();
  for (const NodeNumber& number : kNodeNumbers) {
    emit(sink, number.type, number.name, number.help, numbers.*number.value);
  }
  emit_faults(sink, numbers.faults);
  emit_ports(sink, sources.ports, sources.api);
  emit_api(sink, sources.api);
  emit_api_server(sink, numbers.api_server, sources.api);
  emit_answers(sink, numbers.answers);
  emit_bodies(sink, numbers.bodies);
  emit_handover(sink, numbers.handover);
  if (numbers.fleet) emit_fleet(sink, *numbers.fleet);
  emit_process(sink);
}

}  // namespace portway
