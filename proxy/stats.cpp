#include "proxy/stats.h"

namespace portway {
namespace {

constexpr auto kCloseSideNames = std::to_array<std::string_view>({"client", "guest", "node"});
static_assert(kCloseSideNames.size() == kCloseSides, "every CloseSide has its name, in the same order");

constexpr auto kCloseHowNames = std::to_array<std::string_view>({"fin",
                                                                 "reset",
                                                                 "refused",
                                                                 "connect_timeout",
                                                                 "connect_error",
                                                                 "idle_timeout",
                                                                 "half_close_timeout",
                                                                 "keepalive_timeout",
                                                                 "forward_deleted",
                                                                 "shutdown",
                                                                 "resources",
                                                                 "instance_stopped",
                                                                 "tap_gone",
                                                                 "device_gone",
                                                                 "killed",
                                                                 "evicted",
                                                                 "address_changed",
                                                                 "forward_disabled",
                                                                 "forward_expired",
                                                                 "limit"});
static_assert(kCloseHowNames.size() == kCloseHows, "every CloseHow has its name, in the same order");

constexpr auto kConnectErrorNames = std::to_array<std::string_view>(
    {"refused", "timeout", "unreachable", "device_gone", "resources", "source_ports", "other"});
static_assert(kConnectErrorNames.size() == kConnectErrors,
              "every ConnectError has its name, in the same order");

constexpr auto kRejectReasonNames = std::to_array<std::string_view>(
    {"connections_max", "forward_gone", "draining", "source_not_allowed", "forward_connections_max",
     "source_connections_max", "new_connection_rate", "source_address", "instance_share", "forward_share",
     "source_share", "owner_connections_max", "client_gone"});
static_assert(kRejectReasonNames.size() == kRejectReasons,
              "every RejectReason has its name, in the same order");

}  // namespace

std::string_view to_string(CloseSide side) {
  return kCloseSideNames[static_cast<std::size_t>(side)];
}
std::string_view to_string(CloseHow how) {
  return kCloseHowNames[static_cast<std::size_t>(how)];
}
std::string_view to_string(ConnectError error) {
  return kConnectErrorNames[static_cast<std::size_t>(error)];
}
std::string_view to_string(RejectReason reason) {
  return kRejectReasonNames[static_cast<std::size_t>(reason)];
}
}  // namespace portway
