#include "bench/compare/load_bystander.h"

#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <deque>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bench/compare/latencies.h"
#include "bench/compare/load_net.h"

namespace portway::bench {
namespace {

using std::chrono::duration;
using std::chrono::duration_cast;
using std::chrono::nanoseconds;

constexpr std::size_t kMessageBytes = 64;
constexpr auto kAnswersDue = std::chrono::seconds(10);

void say_ready() {
  std::puts("ready");
  std::fflush(stdout);
}

timespec to_timespec(Clock::duration left) {
  const auto ns = std::max<nanoseconds::rep>(0, duration_cast<nanoseconds>(left).count());
  return {.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
}

/// Messages that are due at fixed times, on connections that take turns.
class Bystander {
 public:
  explicit Bystander(const BystanderOptions& options)
      : interval_(duration_cast<Clock::duration>(duration<double>(options.interval_s))),
        total_(static_cast<std::size_t>(options.seconds / options.interval_s)) {
    const sockaddr_in target = parse_endpoint(options.target);
    for (std::uint32_t i = 0; i < options.connections; ++i) {
      connections_.push_back({.fd = connect_now(target, sockaddr_in{}), .due = {}});
      polled_.push_back({.fd = connections_.back().fd.get(), .events = POLLIN, .revents = 0});
    }
  }

  /// One message on each connection, so everything on the path knows them.
  void warm_up() {
    for (Connection& connection : connections_) send(connection, Clock::now());
    const auto limit = Clock::now() + kAnswersDue;
    while (answers_.count() < connections_.size()) wait_until(limit, limit);
    answers_.clear();
    worst_ = {};
  }

  void run() {
    begin_ = Clock::now() + interval_;
    const auto limit = due(total_) + kAnswersDue;
    std::size_t sent = 0;
    while (answers_.count() < total_) {
      for (auto now = Clock::now(); sent < total_ && due(sent) <= now; ++sent, now = Clock::now()) {
        lateness_.add(now - due(sent));
        send(connections_[sent % connections_.size()], due(sent));
      }
      wait_until(sent < total_ ? due(sent) : limit, limit);
    }
  }

  /// `paused_us`: of the processors.
  void print(double paused_us) {
    std::printf(
        R"({"transactions": %zu, "p50_us": %.1f, "p99_us": %.1f, "p999_us": %.1f, "worst_us": %.1f, )",
        answers_.count(), answers_.percentile_us(0.5), answers_.percentile_us(0.99),
        answers_.percentile_us(0.999), answers_.percentile_us(1));
    std::printf(R"("worst_at_s": %.3f, "paused_us": %.1f})"
                "\n",
                duration<double>(worst_due_ - begin_).count(),
                std::max(paused_us, lateness_.percentile_us(1)));
  }

 private:
  struct Connection {
    Fd fd;
    std::deque<Clock::time_point> due;  // of the messages that are not echoed yet
    std::size_t received = 0;           // of the first one's echo
  };

  Clock::time_point due(std::size_t message) const {
    return begin_ + interval_ * static_cast<Clock::rep>(message);
  }

  static void send(Connection& connection, Clock::time_point due) {
    constexpr std::array<char, kMessageBytes> kMessage{};
    const ssize_t sent = ::send(connection.fd.get(), kMessage.data(), kMessage.size(), MSG_NOSIGNAL);
    if (sent != static_cast<ssize_t>(kMessage.size())) {
      die("a bystander's connection takes no message");
    }
    connection.due.push_back(due);
  }

  void wait_until(Clock::time_point until, Clock::time_point limit) {
    const auto now = Clock::now();
    if (now > limit) throw std::runtime_error("a bystander had no answer for 10 s");
    const timespec left = to_timespec(until - now);
    if (::ppoll(polled_.data(), polled_.size(), &left, nullptr) <= 0) return;
    for (std::size_t i = 0; i < polled_.size(); ++i) {
      if (polled_[i].revents != 0) receive(connections_[i]);
    }
  }

  void receive(Connection& connection) {
    std::array<char, 64 * kMessageBytes> buffer;
    const ssize_t n = ::recv(connection.fd.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) throw std::runtime_error("a bystander's connection ended");
    const auto now = Clock::now();
    connection.received += static_cast<std::size_t>(n);
    for (; connection.received >= kMessageBytes; connection.received -= kMessageBytes) {
      const auto due = connection.due.front();
      connection.due.pop_front();
      answers_.add(now - due);
      if (now - due > worst_) {
        worst_ = now - due;
        worst_due_ = due;
      }
    }
  }

  const Clock::duration interval_;
  const std::size_t total_;
  Clock::time_point begin_;
  std::vector<Connection> connections_;
  std::vector<pollfd> polled_;
  Latencies answers_;
  Latencies lateness_;  // of this thread
  Clock::duration worst_{};
  Clock::time_point worst_due_;
};

/// How long a processor did not run a thread of the caller's priority, while the object exists.
class Watch {
 public:
  explicit Watch(int processor)
      : thread_([this, processor](const std::stop_token& stop) { run(stop, processor); }) {}
  double worst_us() {
    thread_.request_stop();
    thread_.join();
    return duration<double, std::micro>(worst_).count();
  }

 private:
  void run(const std::stop_token& stop, int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(processor), &set);
    if (::sched_setaffinity(0, sizeof set, &set) != 0) return;
    constexpr auto kPeriod = std::chrono::milliseconds(1);
    for (auto due = Clock::now() + kPeriod; !stop.stop_requested(); due = Clock::now() + kPeriod) {
      std::this_thread::sleep_until(due);
      worst_ = std::max(worst_, Clock::now() - due);
    }
  }

  Clock::duration worst_{};  // of the thread, until it has ended
  std::jthread thread_;
};

class Churn {
 public:
  explicit Churn(const ChurnOptions& options)
      : sources_(options.source, options.sources), places_(options.connections) {
    if (options.target.starts_with('[')) {
      target6_ = parse_endpoint6(options.target);
    } else {
      target_ = parse_endpoint(options.target);
    }
  }

  void run() {
    poller_.add(STDIN_FILENO, EPOLLIN, places_.size());
    for (std::size_t place = 0; place < places_.size(); ++place) start(place);
    for (;;) {
      for (const epoll_event& event : poller_.wait(-1)) {
        if (event.data.u64 == places_.size()) return;
        if (event.events & (EPOLLERR | EPOLLHUP)) {
          ++failed_;
        } else {
          ++done_;
        }
        start(event.data.u64);
      }
    }
  }

  unsigned long long done() const { return done_; }
  unsigned long long failed() const { return failed_; }

 private:
  void start(std::size_t place) {
    places_[place].reset();
    places_[place] = target6_ ? start_connect(*target6_) : start_connect(target_, sources_.next());
    if (!places_[place]) die("connect");
    poller_.add(places_[place].get(), EPOLLOUT, place);
  }

  std::optional<sockaddr_in6> target6_;
  sockaddr_in target_{};
  Sources sources_;
  std::vector<Fd> places_;
  Poller poller_;
  unsigned long long done_ = 0;
  unsigned long long failed_ = 0;
};

}  // namespace

void run_bystander(const BystanderOptions& options) {
  Bystander bystander(options);
  bystander.warm_up();
  std::optional<Watch> watch;
  if (options.watch >= 0) watch.emplace(options.watch);
  say_ready();
  bystander.run();
  bystander.print(watch ? watch->worst_us() : 0);
}

void run_churn(const ChurnOptions& options) {
  const auto begin = Clock::now();
  Churn churn(options);
  churn.run();
  std::printf("{\"seconds\": %.3f, \"connections\": %llu, \"failed\": %llu}\n",
              duration<double>(Clock::now() - begin).count(), churn.done(), churn.failed());
}

void run_hold(const HoldOptions& options) {
  const sockaddr_in target = parse_endpoint(options.target);
  Sources sources(options.source, options.sources);
  std::vector<Fd> held(options.connections);
  for (Fd& fd : held) fd = connect_now(target, sources.next());
  say_ready();
  while (std::getchar() != EOF) {
  }
}

}  // namespace portway::bench
