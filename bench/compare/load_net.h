// The sockets of the load generator. Failures are thrown: a benchmark must not continue half broken.
#pragma once

#include <netinet/in.h>
#include <sys/epoll.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>

#include "base/fd.h"

namespace portway::bench {

using Clock = std::chrono::steady_clock;

/// Throws a std::system_error of errno.
[[noreturn]] void die(const std::string& what);

/// "198.18.0.1:8000".
sockaddr_in parse_endpoint(const std::string& text);
/// "[fd00::1]:8000".
sockaddr_in6 parse_endpoint6(const std::string& text);

Fd listen_on(std::uint16_t port);

/// A non-blocking connect with TCP_NODELAY from `source` (port 0; not bound when its address is 0.0.0.0).
/// An empty Fd, with errno, if the kernel refused.
Fd start_connect(const sockaddr_in& target, const sockaddr_in& source);

/// The same to an IPv6 address, from one that the kernel chooses.
Fd start_connect(const sockaddr_in6& target);

/// start_connect, and waits until it is connected.
Fd connect_now(const sockaddr_in& target, const sockaddr_in& source);

/// Sends everything, waiting for room where needed; false if the peer is gone.
bool send_all(int fd, const char* data, std::size_t size);

/// Addresses in turn, so that no (address, port) pair has to be used again while it is in TIME_WAIT.
class Sources {
 public:
  Sources(const std::string& first, std::uint32_t count);
  sockaddr_in next();

 private:
  std::uint32_t first_;  // in host order
  std::uint32_t count_;
  std::uint32_t at_ = 0;
};

/// epoll, level-triggered. `key` is whatever the caller wants back.
class Poller {
 public:
  Poller();
  void add(int fd, std::uint32_t events, std::uint64_t key);
  void modify(int fd, std::uint32_t events, std::uint64_t key);
  /// At most `timeout_ms`; -1 waits for ever.
  std::span<const epoll_event> wait(int timeout_ms);

 private:
  Fd epoll_;
  std::array<epoll_event, 512> events_{};
};

}  // namespace portway::bench
