#include "bench/compare/bare_relay.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <memory>

#include "bench/compare/load_net.h"

namespace portway::bench {
namespace {

constexpr std::size_t kBuffer = 65'536;
constexpr std::size_t kPipe = 262'144;
constexpr std::size_t kLargeRead = 49'152;  // from here on a direction splices

/// One direction. It copies until a read is large; then it has a pipe and splices for good.
struct Direction {
  Fd pipe[2];
  std::size_t in_pipe = 0;
  bool ended = false;
};

struct Connection;

/// The source of an epoll event: a listener, or one side of a connection.
struct Watched {
  Fd socket;
  sockaddr_in target{};              // of a listener
  Connection* connection = nullptr;  // null: a listener, or a connection that has ended
  int side = 0;
};

struct Connection {
  Watched side[2];
  Direction direction[2];  // [i] reads from side[i]
  std::size_t at = 0;      // in the relay's list
};

class BareRelay {
 public:
  explicit BareRelay(const BareRelayOptions& options) : buffer_(kBuffer) {
    for (const std::string& text : options.forwards) {
      const std::size_t equals = text.find('=');
      Watched& listener = listeners_.emplace_back();
      listener.socket = listen_on(static_cast<std::uint16_t>(std::stoi(text.substr(0, equals))));
      listener.target = parse_endpoint(text.substr(equals + 1));
      watch(listener, EPOLLIN);
    }
  }

  [[noreturn]] void run() {
    for (;;) {
      for (const epoll_event& event : poller_.wait(-1)) {
        Watched& watched = *reinterpret_cast<Watched*>(event.data.u64);
        if (watched.connection != nullptr) {
          on_event(*watched.connection, watched.side, event.events);
        } else if (watched.socket) {
          accept_all(watched);
        }
      }
      ended_.clear();
    }
  }

 private:
  void watch(Watched& watched, std::uint32_t events) {
    poller_.add(watched.socket.get(), events, reinterpret_cast<std::uint64_t>(&watched));
  }

  void accept_all(const Watched& listener) {
    for (;;) {
      Fd downstream(::accept4(listener.socket.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!downstream) return;
      auto connection = std::make_unique<Connection>();
      connection->side[0].socket = std::move(downstream);
      connection->side[1].socket = start_connect(listener.target, {});
      if (!connection->side[1].socket) continue;
      for (int side = 0; side < 2; ++side) {
        connection->side[side].connection = connection.get();
        connection->side[side].side = side;
        watch(connection->side[side], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
      }
      connection->at = connections_.size();
      connections_.push_back(std::move(connection));
    }
  }

  void on_event(Connection& connection, int side, std::uint32_t events) {
    bool sound = true;
    const bool at_end = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    if ((events & EPOLLIN) != 0 || at_end) sound = move(connection, side, at_end);
    if (sound && (events & EPOLLOUT) != 0 && (events & EPOLLIN) == 0)
      sound = move(connection, 1 - side, true);
    if (!sound || (connection.direction[0].ended && connection.direction[1].ended)) end(connection);
  }

  /// False if the connection is broken. `to_the_end`: a short read does not prove that no more is to come.
  bool move(Connection& connection, int from, bool to_the_end) {
    Direction& direction = connection.direction[from];
    const int source = connection.side[from].socket.get();
    const int sink = connection.side[1 - from].socket.get();
    while (!direction.ended) {
      if (direction.pipe[0]) {
        if (!splice(direction, source, sink)) return errno == EAGAIN;
        continue;
      }
      const ssize_t n = ::recv(source, buffer_.data(), buffer_.size(), 0);
      if (n < 0) return errno == EAGAIN || errno == ENOTCONN;
      if (n == 0) {
        finish(direction, sink);
        continue;
      }
      const ssize_t sent = ::send(sink, buffer_.data(), static_cast<std::size_t>(n), MSG_NOSIGNAL);
      if (sent != n &&
          !send_rest(sink, static_cast<std::size_t>(std::max<ssize_t>(sent, 0)), static_cast<std::size_t>(n)))
        return false;
      if (static_cast<std::size_t>(n) >= kLargeRead) {
        open_pipe(direction);
      } else if (static_cast<std::size_t>(n) < buffer_.size() && !to_the_end) {
        return true;
      }
    }
    return true;
  }

  /// Waits for room, or for the pending connect: nobody else is served meanwhile.
  bool send_rest(int sink, std::size_t from, std::size_t size) {
    return (errno == EAGAIN || from > 0) && send_all(sink, buffer_.data() + from, size - from);
  }

  /// False if nothing can be moved now (EAGAIN) or ever.
  bool splice(Direction& direction, int source, int sink) {
    constexpr unsigned kFlags = SPLICE_F_NONBLOCK | SPLICE_F_MOVE;
    if (direction.in_pipe == 0) {
      const ssize_t n = ::splice(source, nullptr, direction.pipe[1].get(), nullptr, kPipe, kFlags);
      if (n < 0) return false;
      if (n == 0) {
        finish(direction, sink);
        return true;
      }
      direction.in_pipe = static_cast<std::size_t>(n);
    }
    const ssize_t n = ::splice(direction.pipe[0].get(), nullptr, sink, nullptr, direction.in_pipe, kFlags);
    if (n <= 0) return false;
    direction.in_pipe -= static_cast<std::size_t>(n);
    return true;
  }

  static void finish(Direction& direction, int sink) {
    direction.ended = true;
    ::shutdown(sink, SHUT_WR);
  }

  static void open_pipe(Direction& direction) {
    int ends[2];
    if (::pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) die("pipe2");
    direction.pipe[0] = Fd(ends[0]);
    direction.pipe[1] = Fd(ends[1]);
    ::fcntl(ends[1], F_SETPIPE_SZ, static_cast<int>(kPipe));
  }

  /// Events of this turn may still refer to it: it is freed at the turn's end.
  void end(Connection& connection) {
    for (Watched& side : connection.side) {
      side.connection = nullptr;
      side.socket.reset();
    }
    const std::size_t at = connection.at;
    std::swap(connections_[at], connections_.back());
    connections_[at]->at = at;
    ended_.push_back(std::move(connections_.back()));
    connections_.pop_back();
  }

  Poller poller_;
  std::vector<char> buffer_;
  std::deque<Watched> listeners_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<Connection>> ended_;
};

}  // namespace

void relay_bare(const BareRelayOptions& options) {
  BareRelay relay(options);
  std::puts("ready");
  std::fflush(stdout);
  relay.run();
}

}  // namespace portway::bench
