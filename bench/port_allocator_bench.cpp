// The allocator's cost must not grow as the pool fills: the advantage of a shuffled array over drawing
// until a port is free.
#include <benchmark/benchmark.h>

#include "control/port_allocator.h"

namespace portway {
namespace {

constexpr PortRange kRange = {20000, 32767};

/// Takes a port and returns it, in a pool of which `state.range(0)` percent are used.
void BM_PortAllocatorTakeRandom(benchmark::State& state) {
  PortAllocator allocator(kRange);
  const auto bind = [](std::uint16_t port) { return Result<std::uint16_t>(port); };
  const auto used = static_cast<std::uint32_t>(kRange.size() * state.range(0) / 100);
  for (std::uint32_t i = 0; i < used; ++i) benchmark::DoNotOptimize(allocator.take_random(bind));
  for (auto _ : state) {
    const auto port = allocator.take_random(bind);
    allocator.give_back(*port);
  }
}
BENCHMARK(BM_PortAllocatorTakeRandom)->ArgName("percent_used")->Arg(0)->Arg(50)->Arg(99);

}  // namespace
}  // namespace portway
