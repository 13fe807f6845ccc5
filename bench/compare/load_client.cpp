#include "bench/compare/load_client.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <iomanip>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "bench/compare/cpu_time.h"
#include "bench/compare/latencies.h"
#include "bench/compare/load_net.h"

namespace portway::bench {
namespace {

constexpr auto kAnswersDue = std::chrono::seconds(5);  // for what is under way when a slice is over

Clock::duration to_duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

/// The totals of one target's slices.
struct Total {
  double seconds = 0;
  CpuTime cpu;
};

/// One target's turn. Only what is done while it counts() is to be counted.
class Slice {
 public:
  Slice(const ClientOptions& options, const Target& target)
      : subject_(target.subject),
        begin_(Clock::now() + to_duration(options.lead_in_s)),
        end_(begin_ + to_duration(options.slice_s)) {}

  /// Call it often; false if the slice is over.
  bool running() {
    const auto now = Clock::now();
    if (!begun_ && now >= begin_) {
      begun_ = true;
      begin_ = now;
      cpu_ = read_cpu_time(subject_);
    }
    if (!over_ && now >= end_) {
      over_ = true;
      end_ = now;
      const CpuTime cpu = read_cpu_time(subject_);
      cpu_ = {cpu.subject_s - cpu_.subject_s, cpu.machine_s - cpu_.machine_s};
    }
    return !over_;
  }
  bool counts() const { return begun_ && !over_; }
  Clock::time_point begin() const { return begin_; }
  Clock::time_point end() const { return end_; }

  /// For what is still under way: throws if it takes too long.
  void await_answers() const {
    if (Clock::now() > end_ + kAnswersDue) throw std::runtime_error("no answer for 5 s");
  }

  void add_to(Total& total) const {
    total.seconds += std::chrono::duration<double>(end_ - begin_).count();
    total.cpu.subject_s += cpu_.subject_s;
    total.cpu.machine_s += cpu_.machine_s;
  }

 private:
  const std::vector<pid_t>& subject_;
  Clock::time_point begin_;
  Clock::time_point end_;
  bool begun_ = false;
  bool over_ = false;
  CpuTime cpu_;
};

/// A load on one target.
class Load {
 public:
  virtual ~Load() = default;
  /// Works while the slice runs, and then until nothing is under way.
  virtual void run(Slice& slice) = 0;
  /// What was counted, as members of a JSON object, each after a comma.
  virtual void print() = 0;
};

constexpr std::size_t kBulkBuffer = 131'072;
constexpr int kPollMs = 1;  // the longest that the end of a slice is overlooked

void print_percentiles(Latencies& latencies) {
  for (const auto& [name, part] : {std::pair("p50_us", 0.5), {"p99_us", 0.99}, {"p999_us", 0.999}}) {
    std::printf(R"(, "%s": %.2f)", name, latencies.percentile_us(part));
  }
}

/// New connections in each slice: those of a past slice would continue until all buffers on their path are
/// full.
class BulkLoad : public Load {
 public:
  BulkLoad(const ClientOptions& options, const Target& target, std::uint32_t connections, bool upload)
      : target_(target.address),
        sources_(target.source, options.sources),
        upload_(upload),
        connections_(connections),
        buffer_(kBulkBuffer) {}

  void run(Slice& slice) override {
    connect();
    while (slice.running()) move(slice.counts());
    disconnect();
  }
  /// The same beside somebody else's slice.
  void run_beside(Clock::time_point begin, Clock::time_point end) {
    connect();
    for (auto now = Clock::now(); now < end; now = Clock::now()) move(now >= begin);
    disconnect();
  }

  void print() override { std::printf(R"(, "bytes": %llu)", bytes_); }

 private:
  void connect() {
    for (Fd& fd : connections_) {
      fd = connect_now(target_, sources_.next());
      poller_.add(fd.get(), upload_ ? EPOLLOUT : EPOLLIN, static_cast<std::uint64_t>(fd.get()));
    }
  }

  /// With RST, so that nothing is on its way any more.
  void disconnect() {
    for (Fd& fd : connections_) {
      const linger reset{.l_onoff = 1, .l_linger = 0};
      ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
      fd.reset();
    }
  }

  void move(bool counts) {
    for (const epoll_event& event : poller_.wait(kPollMs)) {
      const int fd = static_cast<int>(event.data.u64);
      const ssize_t n = upload_ ? ::send(fd, buffer_.data(), buffer_.size(), MSG_NOSIGNAL)
                                : ::recv(fd, buffer_.data(), buffer_.size(), 0);
      if (n == 0 || (n < 0 && errno != EAGAIN)) throw std::runtime_error("a stream ended on its own");
      if (n > 0 && counts) bytes_ += static_cast<unsigned long long>(n);
    }
  }

  const sockaddr_in target_;
  Sources sources_;
  const bool upload_;
  std::vector<Fd> connections_;
  std::vector<char> buffer_;
  Poller poller_;
  unsigned long long bytes_ = 0;
};

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
  if (progress == Progress::kBroken) {
    throw std::runtime_error("the connection ended on its own after " + std::to_string(exchange.received) +
                             " bytes of an answer");
  }
}

class PingLoad : public Load {
 public:
  PingLoad(const ClientOptions& options, const Target& target)
      : message_(options.message_bytes, 'x'),
        buffer_(options.message_bytes),
        exchanges_(options.connections) {
    Sources sources(target.source, options.sources);
    for (std::size_t i = 0; i < exchanges_.size(); ++i) {
      exchanges_[i].fd = connect_now(target.address, sources.next());
      poller_.add(exchanges_[i].fd.get(), EPOLLIN, i);
    }
  }

  void run(Slice& slice) override {
    for (Exchange& exchange : exchanges_) start(exchange);
    std::size_t under_way = exchanges_.size();
    while (slice.running() || under_way > 0) {
      if (!slice.running()) slice.await_answers();
      for (const epoll_event& event : poller_.wait(kPollMs)) {
        Exchange& exchange = exchanges_[event.data.u64];
        const Progress progress = receive(exchange, buffer_, message_.size());
        expect_answer(exchange, progress);
        if (progress == Progress::kWaiting) continue;
        if (slice.counts()) latencies_.add(Clock::now() - exchange.started);
        if (slice.running()) {
          start(exchange);
        } else {
          --under_way;
        }
      }
    }
  }

  void print() override {
    std::printf(R"(, "transactions": %zu)", latencies_.count());
    print_percentiles(latencies_);
  }

 private:
  void start(Exchange& exchange) {
    exchange.started = Clock::now();
    send_message(exchange, message_);
  }

  const std::vector<char> message_;
  std::vector<char> buffer_;
  std::vector<Exchange> exchanges_;
  Poller poller_;
  Latencies latencies_;
};

/// Sequences of short connections, several in parallel.
class CloseLoad : public Load {
 public:
  CloseLoad(const ClientOptions& options, const Target& target)
      : target_(target.address),
        sources_(target.source, options.sources),
        message_(options.message_bytes, 'x'),
        buffer_(options.message_bytes),
        places_(options.connections) {}

  void run(Slice& slice) override {
    under_way_ = places_.size();
    for (std::size_t i = 0; i < places_.size(); ++i) start(i);
    while (slice.running() || under_way_ > 0) {
      if (!slice.running()) slice.await_answers();
      for (const epoll_event& event : poller_.wait(kPollMs)) step(event.data.u64, event.events, slice);
    }
  }

  void print() override {
    std::printf(R"(, "connections": %zu, "errors": %llu)", latencies_.count(), errors_);
    print_percentiles(latencies_);
  }

 private:
  static constexpr unsigned long long kErrorsMax = 10'000;

  void start(std::size_t i) {
    Exchange& place = places_[i];
    place.started = Clock::now();
    place.fd = start_connect(target_, sources_.next());
    if (!place.fd) die("connect");
    poller_.add(place.fd.get(), EPOLLOUT, i);
  }

  void step(std::size_t i, std::uint32_t events, Slice& slice) {
    Exchange& place = places_[i];
    if (events & (EPOLLERR | EPOLLHUP)) return finish(i, false, slice);
    if (events & EPOLLOUT) {
      send_message(place, message_);
      return poller_.modify(place.fd.get(), EPOLLIN, i);
    }
    const Progress progress = receive(place, buffer_, message_.size());
    if (progress != Progress::kWaiting) finish(i, progress == Progress::kAnswered, slice);
  }

  void finish(std::size_t i, bool answered, Slice& slice) {
    if (!answered) {
      if (++errors_ == kErrorsMax) throw std::runtime_error("too many connections failed");
    } else if (slice.counts()) {
      latencies_.add(Clock::now() - places_[i].started);
    }
    places_[i].fd.reset();
    if (slice.running()) {
      start(i);
    } else {
      --under_way_;
    }
  }

  const sockaddr_in target_;
  Sources sources_;
  const std::vector<char> message_;
  std::vector<char> buffer_;
  std::vector<Exchange> places_;
  Poller poller_;
  Latencies latencies_;
  std::size_t under_way_ = 0;
  unsigned long long errors_ = 0;
};

/// Messages, and one download beside them in a thread of its own.
class MixLoad : public Load {
 public:
  MixLoad(const ClientOptions& options, const Target& target, const Target& bulk)
      : bulk_(options, bulk, 1, false), ping_(options, target) {}

  void run(Slice& slice) override {
    std::exception_ptr error;
    {
      const std::jthread beside([this, &error, begin = slice.begin(), end = slice.end()] {
        try {
          bulk_.run_beside(begin, end);
        } catch (const std::exception&) {
          error = std::current_exception();  // rethrown on the calling thread
        }
      });
      ping_.run(slice);
    }
    if (error) std::rethrow_exception(error);
  }

  void print() override {
    ping_.print();
    bulk_.print();
  }

 private:
  BulkLoad bulk_;
  PingLoad ping_;
};

std::unique_ptr<Load> make_load(const ClientOptions& options, Mode mode, std::size_t index) {
  const Target& target = options.targets[index];
  switch (mode) {
    case Mode::kDownload:
    case Mode::kUpload:
      return std::make_unique<BulkLoad>(options, target, options.connections, mode == Mode::kUpload);
    case Mode::kPing:
      return std::make_unique<PingLoad>(options, target);
    case Mode::kClose:
      return std::make_unique<CloseLoad>(options, target);
    case Mode::kMix: {
      Target bulk = target;
      bulk.address = options.beside.at(index);
      return std::make_unique<MixLoad>(options, target, bulk);
    }
  }
  throw std::logic_error("no such load");
}

/// As a JSON string; the messages here have no control characters.
std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << std::quoted(text);
  return out.str();
}

/// A target and its results; a failed one gets no more load and does not stop the others.
struct Turn {
  std::unique_ptr<Load> load;
  Total total;
  std::string error;

  template <class Work>
  void attempt(Work work) {
    try {
      work();
    } catch (const std::exception& failure) {
      error = failure.what();
      load.reset();
    }
  }

  void print() const {
    if (!load) {
      std::printf(R"({"error": %s})", quoted(error).c_str());
      return;
    }
    std::printf(R"({"seconds": %.6f, "subject_cpu_s": %.6f, "machine_cpu_s": %.6f)", total.seconds,
                total.cpu.subject_s, total.cpu.machine_s);
    load->print();
    std::fputs("}", stdout);
  }
};

}  // namespace

Target parse_target(const std::string& text) {
  std::istringstream parts(text);
  Target target;
  std::string part;
  std::getline(parts, part, ',');
  target.address = parse_endpoint(part);
  if (std::getline(parts, part, ',')) target.source = part;
  while (std::getline(parts, part, ',')) target.subject.push_back(std::stoi(part));
  return target;
}

void run_in_turn(const ClientOptions& options, Mode mode) {
  std::vector<Turn> turns(options.targets.size());
  for (std::size_t i = 0; i < turns.size(); ++i) {
    turns[i].attempt([&] { turns[i].load = make_load(options, mode, i); });
  }
  std::vector<std::size_t> order(turns.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::mt19937 random;  // the same orders each time, and each one's neighbours change
  for (std::uint32_t round = 0; round < options.slices; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t i : order) {
      if (!turns[i].load) continue;
      turns[i].attempt([&] {
        Slice slice(options, options.targets[i]);
        turns[i].load->run(slice);
        slice.add_to(turns[i].total);
      });
    }
  }
  const char* separator = "[";
  for (Turn& turn : turns) {
    std::fputs(separator, stdout);
    turn.print();
    separator = ",\n";
  }
  std::puts("]");
}

void run_idle(const ClientOptions& options) {
  const Target& target = options.targets.at(0);
  std::vector<Exchange> exchanges(options.connections);
  const std::vector<char> message(options.message_bytes, 'x');
  std::vector<char> buffer(options.message_bytes);
  Sources sources(target.source, options.sources);
  for (Exchange& exchange : exchanges) {
    exchange.fd = connect_now(target.address, sources.next());
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
