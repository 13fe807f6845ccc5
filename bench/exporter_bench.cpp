// What a scrape costs: all of it runs on the control thread, so its time is also how long a request may have
// to wait.
#include <benchmark/benchmark.h>

#include <array>
#include <vector>

#include "metrics/exporter.h"

namespace portway {
namespace {

struct Node {
  explicit Node(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      Forward forward;
      forward.id = make_uuid();
      forward.instance_id = "sandbox-" + std::to_string(i / 5);
      forward.label = "dev-server";
      forward.guest_port = 3000;
      forward.host_port = static_cast<std::uint16_t>(20000 + i);
      forwards.push_back(forward);
      ForwardStats one;
      one.id = forward.id;
      one.connections_established = 17 * i;
      one.received_bytes = 123'456'789 * i;
      one.sent_bytes = 9'876'543'210 * i;
      stats.push_back(one);
    }
  }

  Exporter exporter() {
    return Exporter({.for_each_forward =
                         [this](const std::function<void(const Forward&)>& visit) {
                           for (const Forward& forward : forwards) visit(forward);
                         },
                     .forward_stats = [this] { return stats; },
                     .node_stats =
                         [this] {
                           return NodeStats{.io_backend = "uring",
                                            .io_backend_reason = "",
                                            .workers = {&workers[0], &workers[1]}};
                         },
                     .port_pool = [] { return PortPool{.allocated = 10'000, .available = 2'768}; },
                     .api_server = [] { return ServerStats{}; },
                     .api = &api});
  }

  std::vector<Forward> forwards;
  std::vector<ForwardStats> stats;
  std::array<WorkerCounters, 2> workers;
  ApiStats api;
};

void BM_ExporterExpose(benchmark::State& state) {
  Node node(static_cast<std::size_t>(state.range(0)));
  const Exporter exporter = node.exporter();
  std::size_t bytes = 0;
  for (auto _ : state) bytes = exporter.expose().size();
  state.counters["text_bytes"] = static_cast<double>(bytes);
}
BENCHMARK(BM_ExporterExpose)
    ->ArgName("forwards")
    ->Arg(1)
    ->Arg(1000)
    ->Arg(10'000)
    ->Unit(benchmark::kMillisecond);

/// The same without the text: what is left is the serializer's.
void BM_ExporterCollect(benchmark::State& state) {
  Node node(static_cast<std::size_t>(state.range(0)));
  const Exporter exporter = node.exporter();
  for (auto _ : state) benchmark::DoNotOptimize(exporter.Collect());
}
BENCHMARK(BM_ExporterCollect)->ArgName("forwards")->Arg(10'000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace portway
