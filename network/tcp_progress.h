// How far processes have come with a TCP socket's two streams, by the kernel's own counters (TCP_INFO,
// SIOCINQ, SIOCOUTQ; tcp(7)). They are exact whatever has become of the process that read and wrote.
#pragma once

#include <cstdint>
#include <optional>

namespace portway {

struct TcpProgress {
  std::uint64_t read = 0;     // bytes that were read from it
  std::uint64_t written = 0;  // bytes that it has taken
};

/// `opener`: this side connected. `error`: what was read from it as SO_ERROR before any FIN was sent; 0:
/// nothing was. nullopt: the counters do not say, because urgent data waits or is next, or the connection was
/// reset and the error does not say whether a FIN came before, or it is no connected TCP socket.
std::optional<TcpProgress> tcp_progress(int fd, bool opener, int error = 0);

}  // namespace portway
