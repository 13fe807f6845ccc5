// The cost of a connection's slot and deadline, beside few and beside many others.
#include <benchmark/benchmark.h>

#include <vector>

#include "proxy/connection_table.h"
#include "proxy/slot_arena.h"
#include "proxy/timer_wheel.h"

namespace portway {
namespace {

constexpr std::uint32_t kSlots = 65'536;

void BM_ConnectionTableTake(benchmark::State& state) {
  const SlotArena arena(kSlots);
  ConnectionTable table(arena.slots());
  for (std::int64_t i = 0; i < state.range(0); ++i) benchmark::DoNotOptimize(table.take());
  for (auto _ : state) table.give_back(*table.take());
}
BENCHMARK(BM_ConnectionTableTake)->ArgName("in_use")->Arg(0)->Arg(kSlots - 1);

/// Moves a connection's deadline, as traffic does with every timeout that it postpones.
void BM_TimerWheelMove(benchmark::State& state) {
  TimerWheel wheel(Nanos(0));
  const auto count = static_cast<std::uint32_t>(state.range(0));
  for (std::uint32_t i = 0; i < count; ++i) wheel.set(i, std::chrono::milliseconds(i));
  std::uint32_t index = 0;
  Nanos deadline = std::chrono::seconds(1);
  for (auto _ : state) {
    index = (index + 7919) % count;
    deadline += std::chrono::microseconds(10);
    wheel.set(index, deadline);
  }
}
BENCHMARK(BM_TimerWheelMove)->ArgName("connections")->Arg(1)->Arg(10'000);

}  // namespace
}  // namespace portway
