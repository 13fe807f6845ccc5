// What it costs a request to find its instance and forward among 10,000, and a scrape to walk them all.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "control/registry.h"

namespace portway {
namespace {

constexpr std::size_t kInstances = 2000;
constexpr std::size_t kForwardsEach = 5;

struct FullRegistry {
  FullRegistry() {
    for (std::size_t i = 0; i < kInstances; ++i) {
      Instance instance;
      instance.id = "sandbox-" + std::to_string(i);
      instance.owner = "tenant-" + std::to_string(i % 100);
      registry.put_instance(instance);
      for (std::size_t j = 0; j < kForwardsEach; ++j) {
        Forward forward;
        forward.id = make_uuid();
        forward.instance_id = instance.id;
        forward.guest_port = static_cast<std::uint16_t>(3000 + j);
        registry.add_forward(forward);
        ids.push_back(forward.id);
      }
      instance_ids.push_back(instance.id);
    }
  }

  Registry registry;
  std::vector<ForwardId> ids;
  std::vector<std::string> instance_ids;
};

const FullRegistry& full_registry() {
  static const FullRegistry full;
  return full;
}

/// A stride that visits every entry and defeats the caches' guesses: prime to both counts.
constexpr std::size_t kStride = 7919;

void BM_RegistryFindForward(benchmark::State& state) {
  const FullRegistry& full = full_registry();
  std::size_t at = 0;
  for (auto _ : state) {
    at = (at + kStride) % full.ids.size();
    benchmark::DoNotOptimize(full.registry.find_forward(full.ids[at]));
  }
}
BENCHMARK(BM_RegistryFindForward);

void BM_RegistryFindInstance(benchmark::State& state) {
  const FullRegistry& full = full_registry();
  std::size_t at = 0;
  for (auto _ : state) {
    at = (at + kStride) % full.instance_ids.size();
    benchmark::DoNotOptimize(full.registry.find_instance(full.instance_ids[at]));
  }
}
BENCHMARK(BM_RegistryFindInstance);

void BM_RegistryWalkAllForwards(benchmark::State& state) {
  const FullRegistry& full = full_registry();
  for (auto _ : state) {
    std::size_t ports = 0;
    full.registry.forwards_after({}, [&](const Forward& forward) {
      ports += forward.guest_port;
      return true;
    });
    benchmark::DoNotOptimize(ports);
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * full.ids.size()));
}
BENCHMARK(BM_RegistryWalkAllForwards)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace portway
