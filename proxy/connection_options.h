// How connections are treated; the same for all of them.
#pragma once

#include <chrono>
#include <cstdint>

namespace portway {

class ClientRefusals;
class DeviceRequests;
class RoutedConnections;

/// Zero means "never" for the two timeouts of silence.
struct ConnectionOptions {
  std::chrono::milliseconds connect_timeout{5000};
  std::chrono::seconds half_close_timeout{3600};  // without a byte moved, once one direction has ended
  std::chrono::seconds idle_timeout{0};           // without a byte moved
  std::chrono::seconds drain_timeout{30};         // for connections of a forward closed with kDrain
  std::chrono::seconds keepalive{300};            // idle time before the first TCP keepalive probe; 0: none
  std::chrono::seconds user_timeout{900};         // for a guest to answer what was sent; 0: the kernel's
  // What waits in a connection's sockets: a relay has two queues where a router has none.
  std::uint32_t client_receive_buffer = 256 * 1024;  // bytes, see proxy/buffer_fit.h; 0: the kernel's
  std::uint32_t guest_receive_buffer = 96 * 1024;    // the same
  std::uint32_t unsent_max = 64 * 1024;              // TCP_NOTSENT_LOWAT of both sides, bytes; 0: no limit
  bool copy_dscp = true;                             // of the client's SYN to what is sent to the guest
  std::chrono::milliseconds refused_probe{1000};     // see proxy/refusal_gates.h; 0: nobody is refused
  ClientRefusals* client_refusals = nullptr;         // null: single clients cannot be refused
  const RoutedConnections* routed = nullptr;         // null: what clients' own routes carry is not known
  DeviceRequests* device_requests = nullptr;  // null: clients of sessions without a device are reset at once
};

}  // namespace portway
