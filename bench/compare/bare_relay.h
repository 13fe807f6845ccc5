// The minimal relay in user space: what two sockets and a pipe cost, whoever drives them. It bounds what
// any forwarder of this kind can reach on a machine, so it is measured beside them. One thread, epoll, no
// limits, no timeouts, no records; a reset becomes an end.
#pragma once

#include <string>
#include <vector>

namespace portway::bench {

struct BareRelayOptions {
  std::vector<std::string> forwards;  // "PORT=ADDRESS:PORT"
};

/// Prints "ready" and relays until killed.
[[noreturn]] void relay_bare(const BareRelayOptions& options);

}  // namespace portway::bench
