// What a scrape costs: all of it runs on the control thread, so its time is also how long a request may have
// to wait.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <fstream>
#include <string>

#include "api/http/gzip.h"
#include "metrics/exporter.h"
#include "tests/metrics/measured_node.h"

namespace portway {
namespace {

/// Five forwards an instance.
class NodeWithForwards : public test::MeasuredNode {
 public:
  explicit NodeWithForwards(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const Forward& forward = add_forward(static_cast<std::uint16_t>(20000 + i), "dev-server",
                                           "sandbox-" + std::to_string(i / 5));
      ForwardStats& one = dataplane.stats[forward.id];
      one.connections_established = 17 * i;
      one.received_bytes = 123'456'789 * i;
      one.sent_bytes = 9'876'543'210 * i;
    }
  }
};

/// A field of /proc/self/status in bytes: VmRSS, or VmHWM, its peak.
double status_bytes(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string name; file >> name; std::getline(file, name)) {
    double kib = 0;
    if (name == field + ":" && file >> kib) return kib * 1024;
  }
  return 0;
}

/// The peak memory of one scrape beyond what was held before it.
double peak_bytes(const Exporter& exporter) {
  ::malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";  // resets VmHWM
  const double before = status_bytes("VmRSS");
  benchmark::DoNotOptimize(exporter.expose());
  return status_bytes("VmHWM") - before;
}

void BM_ExporterExpose(benchmark::State& state) {
  NodeWithForwards node(static_cast<std::size_t>(state.range(0)));
  const Exporter exporter = node.exporter();
  std::size_t bytes = 0;
  for (auto _ : state) bytes = exporter.expose().size();
  state.counters["text_bytes"] = static_cast<double>(bytes);
  state.counters["peak_bytes"] = peak_bytes(exporter);
}
BENCHMARK(BM_ExporterExpose)
    ->ArgName("forwards")
    ->Arg(1)
    ->Arg(1000)
    ->Arg(10'000)
    ->Unit(benchmark::kMillisecond);

/// What Prometheus requests: it accepts gzip.
void BM_ExporterExposeAndGzip(benchmark::State& state) {
  NodeWithForwards node(static_cast<std::size_t>(state.range(0)));
  const Exporter exporter = node.exporter();
  std::size_t bytes = 0;
  for (auto _ : state) {
    const auto zip = Gzip::start();
    const auto scrape = exporter.scrape();
    bytes = 0;
    for (std::string piece = "."; !piece.empty();) {
      piece = scrape->next();
      bytes += zip->add(piece).size();
    }
  }
  state.counters["gzip_bytes"] = static_cast<double>(bytes);
}
BENCHMARK(BM_ExporterExposeAndGzip)->ArgName("forwards")->Arg(10'000)->Unit(benchmark::kMillisecond);

/// The library's families instead of the text.
void BM_ExporterCollect(benchmark::State& state) {
  NodeWithForwards node(static_cast<std::size_t>(state.range(0)));
  const Exporter exporter = node.exporter();
  for (auto _ : state) benchmark::DoNotOptimize(exporter.Collect());
}
BENCHMARK(BM_ExporterCollect)->ArgName("forwards")->Arg(10'000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace portway
