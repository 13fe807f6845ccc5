// Counts of the API, of the server in front of it and of the port pool. Written and read by the control
// thread only: no atomics needed.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "metrics/stats.h"

namespace portway {

/// Why a host port could not be given.
enum class PortAllocationError : std::uint8_t {
  kTaken,      // a requested port somebody has
  kExhausted,  // no port of the range is left
  kResources,  // descriptors or memory ran out while binding
};
inline constexpr std::size_t kPortAllocationErrors = 3;
std::string_view to_string(PortAllocationError error);

inline constexpr std::array<double, 10> kRequestBoundsS = {0.0005, 0.001, 0.0025, 0.005, 0.01,
                                                           0.025,  0.05,  0.1,    0.5,   2.5};

/// The server in front of the API, since start.
struct ServerStats {
  std::uint64_t connections = 0;                  // open now
  std::uint64_t connections_total = 0;            // accepted, whatever became of them
  std::uint64_t connections_refused_network = 0;  // came from a refused network
  std::uint64_t connections_refused_limit = 0;    // over connections_max, with none idle
  std::uint64_t connections_evicted = 0;          // idle ones that made room for new ones
  std::uint64_t handshakes_failed = 0;            // TLS: no common ground, no certificate, or given up
  std::uint64_t streams = 0;                      // answers without an end that are open now
  std::uint64_t streams_refused = 0;              // over streams_max
  std::uint64_t requests_refused = 0;             // answered with 4xx by the server itself
  std::uint64_t accept_pauses = 0;                // descriptors or memory had run out
  std::time_t tls_certificate_expiry = 0;         // when the certificate in use ends; 0: no TLS
};

/// Answers on their way to their readers (api/answer_budget.h).
struct AnswerStats {
  std::uint64_t bytes = 0;      // taken now
  std::uint64_t bytes_max = 0;  // for all
  std::uint64_t refused = 0;    // did not fit
};

struct ApiStats {
  /// Counts an answer. `route` is the pattern out of the router's table ("/instances/{id}"), or "other" where
  /// none matched, never the path a caller sent: so routes times status codes bounds the number of series.
  void count_request(std::string_view route, unsigned code, std::chrono::nanoseconds duration);
  void count_port_allocation_error(PortAllocationError error) {
    ++port_allocation_errors[static_cast<std::size_t>(error)];
  }

  std::map<std::pair<std::string, unsigned>, std::uint64_t> requests;  // by route and status code
  Histogram<kRequestBoundsS.size()> request_duration;
  std::array<std::uint64_t, kPortAllocationErrors> port_allocation_errors{};
  std::uint64_t streams_refused = 0;  // over their owner's share, or the node's
};

}  // namespace portway
