// What several parts ask of a socket, or set.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <optional>

#include "base/endpoint.h"

namespace portway {

/// Nothing if it is no socket with an IP address.
inline std::optional<Endpoint> local_endpoint(int socket) {
  Endpoint endpoint;
  auto size = static_cast<socklen_t>(endpoint.capacity());
  if (::getsockname(socket, endpoint.data(), &size) != 0 || size > endpoint.capacity()) return std::nullopt;
  endpoint.resize(size);
  const int family = endpoint.data()->sa_family;
  return family == AF_INET || family == AF_INET6 ? std::optional(endpoint) : std::nullopt;
}

/// Whether its last close(2) sends RST: what is unread or unacknowledged is lost then. 0, or -1 with errno.
inline int set_reset_at_end(int socket, bool reset) {
  const linger option{.l_onoff = reset ? 1 : 0, .l_linger = 0};
  return ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &option, sizeof option);
}

inline void close_with_reset(int socket) {
  set_reset_at_end(socket, true);
  ::close(socket);
}

}  // namespace portway
