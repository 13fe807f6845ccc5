#include "control/api_stats.h"

#include <array>

namespace portway {
namespace {

constexpr auto kPortAllocationErrorNames =
    std::to_array<std::string_view>({"taken", "exhausted", "resources"});
static_assert(kPortAllocationErrorNames.size() == kPortAllocationErrors,
              "every PortAllocationError has its name, in the same order");

constexpr auto kThrottleReasonNames = std::to_array<std::string_view>({"owner", "admin", "wrong_key"});
static_assert(kThrottleReasonNames.size() == kThrottleReasons,
              "every ThrottleReason has its name, in the same order");

}  // namespace

std::string_view to_string(ThrottleReason reason) {
  return kThrottleReasonNames[static_cast<std::size_t>(reason)];
}

std::string_view to_string(PortAllocationError error) {
  return kPortAllocationErrorNames[static_cast<std::size_t>(error)];
}

void ApiStats::count_request(std::string_view route, unsigned code, std::chrono::nanoseconds duration) {
  ++requests[{std::string(route), code}];
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
  request_duration.observe_us(static_cast<std::uint64_t>(us), kRequestBoundsS);
}

}  // namespace portway
