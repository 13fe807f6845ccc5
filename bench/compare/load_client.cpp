#include "bench/compare/load_client.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "bench/compare/cpu_time.h"
#include "bench/compare/load_net.h"

namespace portway::bench {
namespace {

double to_s(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

/// The time measured, after the warm-up. Counts made before it are to be forgotten.
class Window {
 public:
  explicit Window(const ClientOptions& options)
      : subject_(options.subject),
        begin_(Clock::now() +
               std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.warm_up_s))),
        end_(begin_ +
             std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds))) {}

  /// To be asked often. Calls `reset` once, when the warm-up is over; false when the time is over.
  template <class Reset>
  bool running(Reset reset) {
    const auto now = Clock::now();
    if (!begun_ && now >= begin_) {
      begun_ = true;
      begin_ = now;
      cpu_ = read_cpu_time(subject_);
      reset();
    }
    if (now < end_) return true;
    const CpuTime cpu = read_cpu_time(subject_);
    cpu_ = {cpu.subject_s - cpu_.subject_s, cpu.machine_s - cpu_.machine_s};
    seconds_ = to_s(now - begin_);
    return false;
  }

  /// What all results have in common, as the beginning of a JSON object.
  void print() const {
    std::printf(R"({"seconds": %.6f, "subject_cpu_s": %.6f, "machine_cpu_s": %.6f)", seconds_, cpu_.subject_s,
                cpu_.machine_s);
  }

 private:
  const std::vector<pid_t>& subject_;
  Clock::time_point begin_;
  Clock::time_point end_;
  bool begun_ = false;
  double seconds_ = 0;
  CpuTime cpu_;
};

constexpr std::size_t kBulkBuffer = 131'072;
constexpr int kPollMs = 100;  // the longest that the end of a window is overlooked

/// Durations in ns; all are kept, so the percentiles are exact.
class Latencies {
 public:
  void add(Clock::duration duration) {
    values_.push_back(static_cast<std::uint32_t>(std::min<Clock::rep>(duration.count(), UINT32_MAX)));
  }
  void clear() { values_.clear(); }
  std::size_t count() const { return values_.size(); }

  void print() {
    for (const auto& [name, part] : {std::pair("p50_us", 0.5), {"p99_us", 0.99}, {"p999_us", 0.999}}) {
      std::printf(R"(, "%s": %.2f)", name, percentile(part));
    }
  }

 private:
  double percentile(double part) {
    if (values_.empty()) return 0;
    const auto at =
        values_.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(values_.size() - 1));
    std::nth_element(values_.begin(), at, values_.end());
    return *at / 1e3;
  }

  std::vector<std::uint32_t> values_;
};

std::vector<Fd> connect_all(const ClientOptions& options) {
  Sources sources(options.source, options.sources);
  std::vector<Fd> connections;
  for (std::uint32_t i = 0; i < options.connections; ++i) {
    connections.push_back(connect_now(options.target, sources.next()));
  }
  return connections;
}

/// A connection that sends a message and waits for its echo.
struct Exchange {
  Fd fd;
  std::uint32_t received = 0;
  Clock::time_point started;
};

enum class Progress { kWaiting, kAnswered, kBroken };

void send_message(Exchange& exchange, const std::vector<char>& message) {
  exchange.received = 0;
  if (!send_all(exchange.fd.get(), message.data(), message.size())) die("send");
}

Progress receive(Exchange& exchange, std::vector<char>& buffer, std::size_t expected) {
  const ssize_t n = ::recv(exchange.fd.get(), buffer.data(), buffer.size(), 0);
  if (n < 0 && errno == EAGAIN) return Progress::kWaiting;
  if (n <= 0) return Progress::kBroken;
  exchange.received += static_cast<std::uint32_t>(n);
  return exchange.received < expected ? Progress::kWaiting : Progress::kAnswered;
}

void expect_answer(Exchange& exchange, Progress progress) {
  if (progress == Progress::kBroken)
    die("the connection ended on its own after " + std::to_string(exchange.received) + " bytes of an answer");
}

/// One short connection after another in one place.
class CloseRun {
 public:
  explicit CloseRun(const ClientOptions& options)
      : options_(options),
        sources_(options.source, options.sources),
        places_(options.connections),
        message_(options.message_bytes, 'x'),
        buffer_(options.message_bytes) {}

  void run() {
    for (std::size_t i = 0; i < places_.size(); ++i) start(i);
    Window window(options_);
    while (window.running([&] { latencies_.clear(), errors_ = 0; })) {
      for (const epoll_event& event : poller_.wait(kPollMs)) step(event.data.u64, event.events);
    }
    window.print();
    std::printf(R"(, "connections": %zu, "errors": %llu)", latencies_.count(), errors_);
    latencies_.print();
    std::puts("}");
  }

 private:
  static constexpr unsigned long long kErrorsMax = 10'000;

  void start(std::size_t i) {
    Exchange& place = places_[i];
    place.started = Clock::now();
    place.fd = start_connect(options_.target, sources_.next());
    if (!place.fd) die("connect");
    poller_.add(place.fd.get(), EPOLLOUT, i);
  }

  void step(std::size_t i, std::uint32_t events) {
    Exchange& place = places_[i];
    if (events & (EPOLLERR | EPOLLHUP)) return finish(i, false);
    if (events & EPOLLOUT) {
      send_message(place, message_);
      return poller_.modify(place.fd.get(), EPOLLIN, i);
    }
    const Progress progress = receive(place, buffer_, message_.size());
    if (progress != Progress::kWaiting) finish(i, progress == Progress::kAnswered);
  }

  void finish(std::size_t i, bool answered) {
    if (answered) {
      latencies_.add(Clock::now() - places_[i].started);
    } else if (++errors_ == kErrorsMax) {
      die("too many connections failed");
    }
    places_[i].fd.reset();
    start(i);
  }

  const ClientOptions& options_;
  Sources sources_;
  Poller poller_;
  std::vector<Exchange> places_;
  std::vector<char> message_;
  std::vector<char> buffer_;
  Latencies latencies_;
  unsigned long long errors_ = 0;
};

}  // namespace

void run_bulk(const ClientOptions& options, bool upload) {
  const std::vector<Fd> connections = connect_all(options);
  Poller poller;
  for (const Fd& fd : connections) {
    poller.add(fd.get(), upload ? EPOLLOUT : EPOLLIN, static_cast<std::uint64_t>(fd.get()));
  }
  std::vector<char> buffer(kBulkBuffer);
  unsigned long long bytes = 0;
  Window window(options);
  while (window.running([&] { bytes = 0; })) {
    for (const epoll_event& event : poller.wait(kPollMs)) {
      const int fd = static_cast<int>(event.data.u64);
      const ssize_t n = upload ? ::send(fd, buffer.data(), buffer.size(), MSG_NOSIGNAL)
                               : ::recv(fd, buffer.data(), buffer.size(), 0);
      if (n == 0 || (n < 0 && errno != EAGAIN)) die("a stream ended on its own");
      if (n > 0) bytes += static_cast<unsigned long long>(n);
    }
  }
  window.print();
  std::printf(", \"bytes\": %llu}\n", bytes);
}

void run_ping(const ClientOptions& options) {
  std::vector<Exchange> exchanges(options.connections);
  const std::vector<char> message(options.message_bytes, 'x');
  std::vector<char> buffer(options.message_bytes);
  Poller poller;
  Sources sources(options.source, options.sources);
  for (std::size_t i = 0; i < exchanges.size(); ++i) {
    exchanges[i].fd = connect_now(options.target, sources.next());
    poller.add(exchanges[i].fd.get(), EPOLLIN, i);
  }
  for (Exchange& exchange : exchanges) {
    exchange.started = Clock::now();
    send_message(exchange, message);
  }
  Latencies latencies;
  Window window(options);
  while (window.running([&] { latencies.clear(); })) {
    for (const epoll_event& event : poller.wait(kPollMs)) {
      Exchange& exchange = exchanges[event.data.u64];
      const Progress progress = receive(exchange, buffer, message.size());
      expect_answer(exchange, progress);
      if (progress == Progress::kWaiting) continue;
      const auto now = Clock::now();
      latencies.add(now - exchange.started);
      exchange.started = now;
      send_message(exchange, message);
    }
  }
  window.print();
  std::printf(R"(, "transactions": %zu)", latencies.count());
  latencies.print();
  std::puts("}");
}

void run_close(const ClientOptions& options) {
  CloseRun(options).run();
}

void run_idle(const ClientOptions& options) {
  std::vector<Exchange> exchanges(options.connections);
  const std::vector<char> message(options.message_bytes, 'x');
  std::vector<char> buffer(options.message_bytes);
  Sources sources(options.source, options.sources);
  for (Exchange& exchange : exchanges) {
    exchange.fd = connect_now(options.target, sources.next());
    send_message(exchange, message);
    Poller poller;
    poller.add(exchange.fd.get(), EPOLLIN, 0);
    for (Progress progress = Progress::kWaiting; progress != Progress::kAnswered;) {
      if (poller.wait(-1).empty()) continue;
      progress = receive(exchange, buffer, message.size());
      expect_answer(exchange, progress);
    }
  }
  std::printf("{\"connections\": %zu}\n", exchanges.size());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
}

}  // namespace portway::bench
