#include "metrics/api_families.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "metrics/process.h"

namespace portway {
namespace {

void emit_requests(Sink& sink, const ApiStats& api) {
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

void emit_faults(Sink& sink, const std::array<std::uint64_t, kFaultParts>& faults) {
  Family family(
      sink, MetricType::Gauge, "portway_fault",
      "Parts that should work but do not, while forwards are served: store (the disk refuses "
      "changes), api (a listener of api.listen), "
      "metrics (that of metrics.listen), certificate (it has expired or cannot be read again), "
      "admin_key, access_log, audit_log, keeper (connections end with the process), worker (a thread "
      "of the data plane hangs), fleet (etcd is away, or something there is wrong); should be 0. The log "
      "has the reasons, and so has GET /v1/node.",
      {"part"});
  for (std::size_t i = 0; i < kFaultParts; ++i) {
    family.label(0, to_string(static_cast<FaultPart>(i))).add(faults[i]);
  }
}

}  // namespace

void emit_api(Sink& sink, const ApiNumbers& api) {
  emit_requests(sink, api.requests);
  emit_api_server(sink, api.server, api.requests);
  emit_answers(sink, api.answers);
  emit_bodies(sink, api.bodies);
}

void emit_process(Sink& sink, const std::array<std::uint64_t, kFaultParts>& faults) {
  emit_faults(sink, faults);
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

}  // namespace portway
