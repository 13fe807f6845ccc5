#include "daemon/succession.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <thread>
#include <utility>

#include "daemon/limits.h"
#include "daemon/privileges/sandbox.h"
#include "handover/transfer.h"
#include "proxy/slot_arena.h"

namespace portway {
namespace {

constexpr std::chrono::milliseconds kStorePatience(2000);  // a keeper with 20,000 descriptors takes 0.2 s
constexpr std::chrono::milliseconds kAgainAfter(5);

Result<std::unique_ptr<Store>> open_store(const Config& config) {
  const auto prepare = [config] {
    prefer_this_thread();  // API calls wait for the store
    enter_sandbox(config, ConfinedThread::kStore);
  };
  const auto deadline = std::chrono::steady_clock::now() + kStorePatience;
  for (;;) {
    auto store = Store::open(config.store.path, prepare);
    if (store || !is_open_elsewhere(store.error()) || std::chrono::steady_clock::now() >= deadline)
      return store;
    std::this_thread::sleep_for(kAgainAfter);  // no event reports a lock that is free
  }
}

}  // namespace

std::string handover_version() {
  return fmt::format("{}.{}", kTransferVersion, kSlotLayout);
}

std::string handover_path(const Config& config) {
  return config.store.path + ".handover";
}

Result<Succession> open_succession(const Config& config, bool from_living) {
  Succession succession;
  if (from_living) {
    auto predecessor = Predecessor::await(handover_path(config));  // it has closed the store then
    if (!predecessor) return predecessor.error();
    succession.predecessor = std::move(*predecessor);
  }
  auto store = open_store(config);
  if (!store) return store.error();
  succession.store = std::move(*store);
  if (!from_living) {
    // A keeper waits there before it lets go of the store.
    auto predecessor = Predecessor::find(handover_path(config));
    if (!predecessor) return predecessor.error();
    if (*predecessor == nullptr) return succession;
    succession.predecessor = std::move(*predecessor);
  }
  succession.from_living = from_living;
  succession.began = std::chrono::steady_clock::now();
  Estate& estate = succession.predecessor->estate();
  auto inherited = Inherited::read(std::move(estate.memory), std::move(estate.others));
  if (!inherited) return inherited.error();
  succession.inherited = std::move(*inherited);
  return succession;
}

void take_over(Succession& succession, std::unique_ptr<Keeper>& keeper, const Fd& memory,
               const Config& config) {
  if (config.proxy.handover_timeout.count() == 0) keeper.reset();
  const int predecessor = succession.predecessor ? succession.predecessor->estate().control.get() : -1;
  const std::string path = handover_path(config);
  if (keeper && !keeper->keep(memory.get(), predecessor, path, config.proxy.handover_timeout)) {
    spdlog::warn("connections end with this process: {} is too long for a Unix socket; shorten store.path",
                 path);
    keeper.reset();
  }
  if (predecessor < 0) return;
  succession.predecessor->take();
  if (keeper) keeper->keep(memory.get(), -1, path, config.proxy.handover_timeout);
}

}  // namespace portway
