#include "bench/compare/load_server.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <vector>

#include "bench/compare/load_net.h"

namespace portway::bench {
namespace {

enum Service : std::uint64_t { kSink, kSource, kEcho, kServices };

constexpr std::uint64_t kListening = 1u << 8;
constexpr std::size_t kBuffer = 131'072;
constexpr unsigned kMovesPerTurn = 16;  // so that one bulk stream does not starve the others

std::uint64_t make_key(int fd, std::uint64_t service) {
  return static_cast<std::uint64_t>(fd) << 32 | service;
}

class Server {
 public:
  explicit Server(const ServerPorts& ports)
      : listeners_{listen_on(ports.sink), listen_on(ports.source), listen_on(ports.echo)}, buffer_(kBuffer) {
    for (std::uint64_t service = 0; service < kServices; ++service) {
      const int fd = listeners_[service].get();
      poller_.add(fd, EPOLLIN, make_key(fd, service | kListening));
    }
  }

  [[noreturn]] void run() {
    for (;;) {
      for (const epoll_event& event : poller_.wait(-1)) {
        const int fd = static_cast<int>(event.data.u64 >> 32);
        const auto service = static_cast<Service>(event.data.u64 & 0xff);
        if (event.data.u64 & kListening) {
          accept_all(fd, service);
        } else if (!turn(fd, service)) {
          ::close(fd);
        }
      }
    }
  }

 private:
  void accept_all(int listener, Service service) {
    for (;;) {
      const int fd = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED)) return;
      if (fd < 0) die("accept");
      poller_.add(fd, service == kSource ? EPOLLOUT : EPOLLIN, make_key(fd, service));
    }
  }

  /// False if the connection has ended.
  bool turn(int fd, Service service) {
    for (unsigned move = 0; move < kMovesPerTurn; ++move) {
      const ssize_t n = service == kSource ? ::send(fd, buffer_.data(), buffer_.size(), MSG_NOSIGNAL)
                                           : ::recv(fd, buffer_.data(), buffer_.size(), 0);
      if (n < 0 && errno == EAGAIN) return true;
      if (n <= 0) return false;
      // Clients of the echo read their answers, so waiting for room here cannot last.
      if (service == kEcho && !send_all(fd, buffer_.data(), static_cast<std::size_t>(n))) return false;
      // A short read drained the socket: later data is reported again.
      if (service != kSource && static_cast<std::size_t>(n) < buffer_.size()) return true;
    }
    return true;
  }

  Poller poller_;
  Fd listeners_[kServices];
  std::vector<char> buffer_;
};

}  // namespace

void serve(const ServerPorts& ports) {
  Server server(ports);
  std::puts("ready");
  std::fflush(stdout);
  server.run();
}

}  // namespace portway::bench
