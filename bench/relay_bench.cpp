// What the relay itself costs: its decisions and its bookkeeping, without the system calls.
//
// The Io here answers at once, like a kernel whose sockets always have data and take everything. The
// simulator of the tests would cost many times what is measured.
#include <benchmark/benchmark.h>

#include <atomic>
#include <vector>

#include "proxy/relay.h"

namespace portway {
namespace {

class InstantIo final : public Io {
 public:
  explicit InstantIo(std::size_t arrives) : arrives_(arrives) {}

  std::ptrdiff_t recv(int, void*, std::size_t size, int) override { return part(size); }
  std::ptrdiff_t send(int, const void*, std::size_t size, int) override {
    return static_cast<std::ptrdiff_t>(size);
  }
  std::ptrdiff_t splice(int, int, std::size_t size) override { return part(size); }
  std::ptrdiff_t write(int, const void*, std::size_t size) override {
    return static_cast<std::ptrdiff_t>(size);
  }
  int pipe(int (&fds)[2], std::size_t size) override {
    fds[0] = fds[1] = 3;
    return static_cast<int>(size);
  }

  std::string_view name() const override { return "instant"; }
  Nanos now() const override { return Nanos(0); }
  void poll(Token, int) override {}
  void cancel(Token, int) override {}
  std::span<const Completion> wait(Nanos) override { return {}; }
  void wake() override {}
  int accept(int) override { return -EAGAIN; }
  int socket(int, const NetworkNamespace::Ptr&) override { return 3; }
  void set_stays_in_namespaces(bool) override {}
  int connect(int, const Endpoint&) override { return 0; }
  int connect(int, const SocketTarget&) override { return 0; }
  int socket_error(int) override { return 0; }
  int set_option(int, int, int, int) override { return 0; }
  int set_reset_at_end(int, bool) override { return 0; }
  void close_time_wait(int, const Endpoint&, int, const NetworkNamespace::Ptr&) override {}
  std::unique_ptr<PortProbe> probe(const SynProbeTarget&, int&) override { return nullptr; }
  std::vector<PortRange> local_ports() override { return {}; }
  int bind_to_device(int, int) override { return 0; }
  int take_client(int, Client&) override { return 0; }
  int bind_transparent(int, const Endpoint&) override { return 0; }
  int unread(int) override { return 0; }
  int local_endpoint(int, Endpoint&) override { return 0; }
  int remote_endpoint(int, Endpoint&) override { return 0; }
  int listen_again(int) override { return 0; }
  int unacknowledged(int) override { return 0; }
  TcpSummary tcp_summary(int) override { return {}; }
  void find_urgent(std::span<pollfd>) override {}
  bool at_urgent_mark(int) override { return false; }
  int shutdown(int, int) override { return 0; }
  void close(int) override {}
  void close_with_reset(int) override {}

 private:
  std::ptrdiff_t part(std::size_t size) const {
    return static_cast<std::ptrdiff_t>(std::min(size, arrives_));
  }

  const std::size_t arrives_;  // by one read
};

void run(benchmark::State& state, std::size_t arrives) {
  InstantIo io(arrives);
  WorkerCounters counters;
  const auto memory = std::make_unique<RelayMemory>();
  PipePool pipes(io, 16, counters, *memory);
  const std::atomic<std::uint32_t> held{0};
  const RelayContext context{
      .io = io, .pipes = pipes, .counters = counters, .memory = *memory, .instance_pipes = held};
  RelayState direction;
  SocketState source{.fd = 1};
  SocketState sink{.fd = 2, .writable = true};
  for (auto _ : state) {
    source.readable = true;
    benchmark::DoNotOptimize(relay(context, direction, source, sink));
  }
  discard_kept(pipes, direction);
  state.counters["bytes_a_turn"] =
      static_cast<double>(direction.bytes) / static_cast<double>(state.iterations());
}

/// One small message a turn: read, sent, drained.
void BM_RelayMessage(benchmark::State& state) {
  run(state, 64);
}
BENCHMARK(BM_RelayMessage);

/// A stream that never ends: each turn spends its whole budget on splices.
void BM_RelayBulkTurn(benchmark::State& state) {
  run(state, SIZE_MAX);
}
BENCHMARK(BM_RelayBulkTurn);

}  // namespace
}  // namespace portway
