#include "proxy/listen_socket.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace portway {
namespace {

void enable(int fd, int level, int option, int value = 1) {
  ::setsockopt(fd, level, option, &value, sizeof value);
}

Error refused(const Endpoint& endpoint, int error) {
  const std::string where = to_string(endpoint);
  switch (error) {
    case EADDRINUSE:
      return {
          .code = ErrorCode::kHostPortTaken,
          .detail = fmt::format("{} is in use by another socket on this host; choose another port", where),
          .field = "host_port"};
    case EACCES:
      return {.code = ErrorCode::kPrivilegedPort,
              .detail = fmt::format("{} needs CAP_NET_BIND_SERVICE; choose a port of 1024 or above", where),
              .field = "host_port"};
    case EADDRNOTAVAIL:
      return {
          .code = ErrorCode::kInvalidConfig,
          .detail = fmt::format("{} is not an address of this host; correct node.public_addresses", where),
          .field = "node.public_addresses"};
    case EMFILE:
    case ENFILE:
      return {.code = ErrorCode::kResourceExhausted,
              .detail = fmt::format("{}: no descriptor left; raise RLIMIT_NOFILE", where)};
    default:
      return {.code = ErrorCode::kResourceExhausted,
              .detail = fmt::format("{}: {}", where, std::strerror(error))};
  }
}

}  // namespace

Result<Fd> open_listen_socket(const Endpoint& endpoint, const ConnectionOptions& options) {
  const bool v6 = endpoint.address().is_v6();
  Fd fd(::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd) return refused(endpoint, errno);
  // With it, a port whose last connections are in TIME_WAIT is free. A port that somebody listens on never
  // is.
  enable(fd.get(), SOL_SOCKET, SO_REUSEADDR);
  if (v6) enable(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY);
  enable(fd.get(), IPPROTO_TCP, TCP_NODELAY);
  enable(fd.get(), IPPROTO_TCP, TCP_SAVE_SYN);
  if (options.config.keepalive.count() > 0) {
    enable(fd.get(), SOL_SOCKET, SO_KEEPALIVE);
    enable(fd.get(), IPPROTO_TCP, TCP_KEEPIDLE, static_cast<int>(options.config.keepalive.count()));
  }
  if (options.config.unsent_max > 0) {
    enable(fd.get(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, static_cast<int>(options.config.unsent_max));
  }
  if (::bind(fd.get(), endpoint.data(), static_cast<socklen_t>(endpoint.size())) < 0)
    return refused(endpoint, errno);
  // Only listen(2) takes the port exclusively: until then another socket with SO_REUSEADDR can bind it.
  if (::listen(fd.get(), kListenBacklog) < 0) return refused(endpoint, errno);
  return fd;
}

}  // namespace portway
