#include "bench/compare/load_net.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <system_error>

namespace portway::bench {
namespace {

constexpr int kBacklog = 16'384;
constexpr int kConnectTimeoutMs = 10'000;

void set_option(int fd, int level, int option) {
  const int on = 1;
  if (::setsockopt(fd, level, option, &on, sizeof on) != 0) die("setsockopt");
}

in_addr parse_address(const std::string& text) {
  in_addr address{};
  if (::inet_pton(AF_INET, text.c_str(), &address) != 1) die("not an IPv4 address: " + text);
  return address;
}

}  // namespace

void die(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

sockaddr_in parse_endpoint(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) die("not address:port: " + text);
  sockaddr_in endpoint{};
  endpoint.sin_family = AF_INET;
  endpoint.sin_addr = parse_address(text.substr(0, colon));
  endpoint.sin_port = htons(static_cast<std::uint16_t>(std::atoi(text.c_str() + colon + 1)));
  return endpoint;
}

sockaddr_in6 parse_endpoint6(const std::string& text) {
  const std::size_t end = text.find("]:");
  sockaddr_in6 endpoint{};
  endpoint.sin6_family = AF_INET6;
  if (!text.starts_with('[') || end == std::string::npos ||
      ::inet_pton(AF_INET6, text.substr(1, end - 1).c_str(), &endpoint.sin6_addr) != 1) {
    throw std::invalid_argument("not [IPv6 address]:port: " + text);
  }
  endpoint.sin6_port = htons(static_cast<std::uint16_t>(std::atoi(text.c_str() + end + 2)));
  return endpoint;
}

Fd listen_on(std::uint16_t port) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) die("socket");
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR);
  set_option(fd.get(), IPPROTO_TCP, TCP_NODELAY);  // of all that it accepts
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die("bind");
  if (::listen(fd.get(), kBacklog) != 0) die("listen");
  return fd;
}

Fd start_connect(const sockaddr_in& target, const sockaddr_in& source) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) die("socket");
  set_option(fd.get(), IPPROTO_TCP, TCP_NODELAY);
  if (source.sin_addr.s_addr != 0) {
    // The port is chosen by connect, which knows the target and so has all ports again for each source
    // address.
    set_option(fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT);
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&source), sizeof source) != 0)
      die("bind to a source");
  }
  const int result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&target), sizeof target);
  if (result != 0 && errno != EINPROGRESS) fd.reset();
  return fd;
}

Fd start_connect(const sockaddr_in6& target) {
  Fd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) die("socket");
  set_option(fd.get(), IPPROTO_TCP, TCP_NODELAY);
  const int result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&target), sizeof target);
  if (result != 0 && errno != EINPROGRESS) fd.reset();
  return fd;
}

Fd connect_now(const sockaddr_in& target, const sockaddr_in& source) {
  Fd fd = start_connect(target, source);
  if (!fd) die("connect");
  pollfd ready{.fd = fd.get(), .events = POLLOUT, .revents = 0};
  if (::poll(&ready, 1, kConnectTimeoutMs) == 0) {
    errno = ETIMEDOUT;
    die("connect");
  }
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  errno = error;
  if (error != 0) die("connect");
  return fd;
}

bool send_all(int fd, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t sent = ::send(fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent < 0) {
      pollfd room{.fd = fd, .events = POLLOUT, .revents = 0};
      ::poll(&room, 1, -1);
      continue;
    }
    data += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

Sources::Sources(const std::string& first, std::uint32_t count)
    : first_(ntohl(parse_address(first).s_addr)), count_(count) {}

sockaddr_in Sources::next() {
  sockaddr_in source{};
  source.sin_family = AF_INET;
  source.sin_addr.s_addr = htonl(first_ == 0 ? 0 : first_ + at_++ % count_);
  return source;
}

Poller::Poller() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_) die("epoll_create1");
}

void Poller::add(int fd, std::uint32_t events, std::uint64_t key) {
  epoll_event event{.events = events, .data = {.u64 = key}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) die("epoll_ctl");
}

void Poller::modify(int fd, std::uint32_t events, std::uint64_t key) {
  epoll_event event{.events = events, .data = {.u64 = key}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0) die("epoll_ctl");
}

std::span<const epoll_event> Poller::wait(int timeout_ms) {
  const int count = ::epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), timeout_ms);
  if (count < 0 && errno != EINTR) die("epoll_wait");
  return {events_.data(), static_cast<std::size_t>(count < 0 ? 0 : count)};
}

}  // namespace portway::bench
