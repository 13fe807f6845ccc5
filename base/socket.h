// What several parts ask of a socket, or set.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <optional>

#include "base/endpoint.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace portway {

/// `ask` is getsockname(2) or getpeername(2).
template <class Ask>
std::optional<Endpoint> ip_endpoint(int socket, Ask ask) {
  Endpoint endpoint;
  auto size = static_cast<socklen_t>(endpoint.capacity());
  if (ask(socket, endpoint.data(), &size) != 0 || size > endpoint.capacity()) return std::nullopt;
  endpoint.resize(size);
  const int family = endpoint.data()->sa_family;
  return family == AF_INET || family == AF_INET6 ? std::optional(endpoint) : std::nullopt;
}

/// Nothing if it is no socket with an IP address.
inline std::optional<Endpoint> local_endpoint(int socket) {
  return ip_endpoint(socket, ::getsockname);
}

/// Nothing if it is not connected, or to no IP address.
inline std::optional<Endpoint> remote_endpoint(int socket) {
  return ip_endpoint(socket, ::getpeername);
}

/// Of the network namespace that it was made in; 0 before Linux 5.14.
inline std::uint64_t netns_cookie(int socket) {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return ::getsockopt(socket, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) == 0 ? cookie : 0;
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
