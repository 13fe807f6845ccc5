// What a virtual machine monitor does for a guest's network card, and no more: frames from a tap of this
// network namespace to one of another and back, with the offloads that virtio-net has (checksums, TSO), two
// threads, a system call a frame and direction.
#pragma once

#include <string>

namespace portway::bench {

struct TapBridgeOptions {
  std::string device;           // of this namespace
  std::string guest_device;     // of the other one
  std::string guest_namespace;  // a path to it
};

/// Makes both taps, prints "ready" and carries frames until killed; the taps go with the process. Throws
/// std::system_error.
[[noreturn]] void bridge_taps(const TapBridgeOptions& options);

}  // namespace portway::bench
