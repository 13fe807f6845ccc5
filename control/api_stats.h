// Counts of the API and of the port pool. Written and read by the control thread only: no atomics needed.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "base/counter.h"

namespace portway {

/// Why a host port could not be given.
enum class PortAllocationError : std::uint8_t {
  kTaken,      // a requested port somebody has
  kExhausted,  // no port of the range is left
  kResources,  // descriptors or memory ran out while binding
};
inline constexpr std::size_t kPortAllocationErrors = 3;
std::string_view to_string(PortAllocationError error);

/// Why a request was answered 429 (api/fair_use.h).
enum class ThrottleReason : std::uint8_t {
  kOwner,     // the keys of a tenant's owner have used up their share
  kAdmin,     // an admin key, or a user of the Unix socket, has
  kWrongKey,  // too many wrong keys from its source
};
inline constexpr std::size_t kThrottleReasons = 3;
std::string_view to_string(ThrottleReason reason);

inline constexpr std::array<double, 10> kRequestBoundsS = {0.0005, 0.001, 0.0025, 0.005, 0.01,
                                                           0.025,  0.05,  0.1,    0.5,   2.5};

struct ApiStats {
  /// Counts an answer. `route` is the pattern out of the router's table ("/instances/{id}"), or "other" where
  /// none matched, never the path a caller sent: so routes times status codes bounds the number of series.
  void count_request(std::string_view route, unsigned code, std::chrono::nanoseconds duration);
  void count_port_allocation_error(PortAllocationError error) {
    ++port_allocation_errors[static_cast<std::size_t>(error)];
  }

  void count_throttled(ThrottleReason reason) { ++throttled[static_cast<std::size_t>(reason)]; }

  std::map<std::pair<std::string, unsigned>, std::uint64_t> requests;  // by route and status code
  Histogram<kRequestBoundsS.size()> request_duration;
  std::array<std::uint64_t, kPortAllocationErrors> port_allocation_errors{};
  std::array<std::uint64_t, kThrottleReasons> throttled{};
  std::uint64_t streams_refused = 0;  // over their owner's share, or the node's
};

}  // namespace portway
