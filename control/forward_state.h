// Whether a client of a forward would be served now, and why not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace portway {

enum class ForwardState : std::uint8_t {
  kListening,
  kFailed,    // promised, and not served; it is tried again
  kDisabled,  // not served, as somebody wished
  kExpired,   // about to be deleted
  // Served, but a client would not get through: its tap is down, its guest does not answer, a limit is
  // reached, ...
  kUnavailable,
};
std::string_view to_string(ForwardState state);
enum class ForwardCause : std::uint8_t {
  kNone,              // a client would be served, as far as is known
  kNotBound,          // its port or its guest's address is not the node's to use now; it is tried again
  kAddressLost,       // the node has none of its public addresses
  kDisabled,          // as somebody wished
  kExpired,           // Forward::expires_at
  kTapDown,           // no virtual machine has the tap open, or nothing can pass it
  kDeviceDown,        // Instance::device is not there
  kNoReturnPath,      // its clients' addresses must be seen, and the guest's answers would be lost
  kGuestRefusing,     // nothing listens on the guest's port
  kGuestUnreachable,  // the guest does not answer
  kLimitReached,      // max_connections, or another limit that turns clients away
  kNodeResources,     // the node is short of descriptors, memory or source ports
};
inline constexpr std::size_t kForwardCauses = static_cast<std::size_t>(ForwardCause::kNodeResources) + 1;
std::string_view to_string(ForwardCause cause);
ForwardState state_of(ForwardCause cause);

}  // namespace portway
