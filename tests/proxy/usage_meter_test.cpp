#include "proxy/usage_meter.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "proxy/slot_arena.h"

namespace portway {
namespace {

constexpr std::size_t kWorkers = 2;

std::int64_t monotonic_now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}
constexpr std::int64_t kHourNs = 3'600'000'000'000;
constexpr std::uint64_t kHourUs = 3'600'000'000;

/// As a process has it, with the memory that its successor finds.
struct MeterProcess {
  explicit MeterProcess(const InheritedUsage& inherited = {}, std::size_t rows = 4)
      : arena(1, kWorkers, rows), meters(arena.meters(), kWorkers, &arena.header().meters_used, inherited) {}

  InheritedUsage left() const {
    return UsageMeters::read(arena.meters(), kWorkers, arena.header().meters_used);
  }

  SlotArena arena;
  UsageMeters meters;
};

TEST(UsageMeter, CountsWhatAllWorkersCarry) {
  UsageMeters meters(kWorkers);
  const auto meter = meters.make("f/1", {});
  const std::int64_t now = monotonic_now_ns() / 1000 * 1000;  // it counts in whole microseconds
  meter->opened(0, now - kHourNs);
  meter->opened(1, now - 2 * kHourNs);
  meter->moved(0, true, 10, now);
  meter->moved(1, false, 20, now);
  meter->closed(1, now - kHourNs);
  const UsageReading reading = meter->read();
  EXPECT_EQ(reading.connections_now, 1U);
  EXPECT_EQ(reading.totals.connections, 2U);
  EXPECT_EQ(reading.totals.received_bytes, 10U);
  EXPECT_EQ(reading.totals.sent_bytes, 20U);
  EXPECT_GE(reading.totals.connection_us, 2 * kHourUs) << "the open one counts, too";
  EXPECT_LT(reading.totals.connection_us, 3 * kHourUs);
  EXPECT_GT(reading.totals.last_byte_at_ms, reading.totals.last_connection_at_ms);
}

TEST(UsageMeter, ATimeIsTheSameAtEachReading) {
  UsageMeters meters(1);
  const auto meter = meters.make("f/1", {});
  EXPECT_EQ(meter->read().totals, UsageTotals()) << "never";
  meter->moved(0, true, 1, monotonic_now_ns());
  const UsageTotals first = meter->read().totals;
  EXPECT_NE(first.last_byte_at_ms, 0);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(meter->read().totals, first);
}

TEST(UsageMeter, GoesOnFromWhatIsStored) {
  UsageMeters meters(1);
  const UsageTotals stored{.connections = 1,
                           .received_bytes = 2,
                           .sent_bytes = 3,
                           .connection_us = 4,
                           .last_byte_at_ms = 5,
                           .last_connection_at_ms = 6};
  const auto meter = meters.make("f/1", stored);
  EXPECT_EQ(meter->read().totals, stored);
  meter->moved(0, true, 100, monotonic_now_ns());
  EXPECT_EQ(meter->read().totals.received_bytes, 102U);
}

TEST(UsageMeter, ASuccessorGoesOnWithTheConnectionsThatAreOpen) {
  MeterProcess first;
  const auto meter = first.meters.make("i/vm-1/1", {});
  meter->opened(0, monotonic_now_ns() - kHourNs);
  meter->opened(1, monotonic_now_ns() - kHourNs);
  meter->moved(0, true, 10, monotonic_now_ns());
  const UsageTotals reported = meter->read().totals;
  MeterProcess second(first.left());
  const auto again = second.meters.make("i/vm-1/1", {.received_bytes = 7, .sent_bytes = 8});
  again->adopted(0);
  again->adopted(0);
  const UsageReading reading = again->read();
  EXPECT_EQ(reading.connections_now, 2U);
  EXPECT_EQ(reading.totals.connections, 2U);
  EXPECT_EQ(reading.totals.received_bytes, 10U) << "the memory has more than the disk";
  EXPECT_EQ(reading.totals.sent_bytes, 8U) << "and the other way round";
  EXPECT_GE(reading.totals.connection_us, reported.connection_us);
  EXPECT_LT(reading.totals.connection_us, reported.connection_us + kHourUs) << "none counts twice";
  EXPECT_EQ(reading.totals.last_byte_at_ms, reported.last_byte_at_ms);
  again->closed(0, monotonic_now_ns());
  again->closed(0, monotonic_now_ns());
  MeterProcess third(second.left());
  EXPECT_GE(third.meters.make("i/vm-1/1", {})->read().totals.connection_us, reading.totals.connection_us);
  EXPECT_EQ(third.meters.make("i/vm-1/2", {})->read().totals, UsageTotals()) << "another instance";
}

TEST(UsageMeter, ASuccessorThatDiesAtOnceLosesNothing) {
  MeterProcess first;
  const auto meter = first.meters.make("f/1", {.connections = 7});
  MeterProcess second(first.left());
  MeterProcess third(second.left());
  EXPECT_EQ(third.meters.make("f/1", {})->read().totals.connections, 7U);
  MeterProcess fourth(second.left());
  fourth.meters.forget_inherited();
  EXPECT_EQ(fourth.left().totals.size(), 0U) << "nobody has asked for it";
}

TEST(UsageMeter, AWorkerThatWasKilledWhileItCountedTakesNothingBack) {
  MeterProcess first;
  const auto meter = first.meters.make("f/1", {});
  meter->opened(0, monotonic_now_ns() - kHourNs);
  meter->opened(1, monotonic_now_ns() - kHourNs);
  const UsageTotals reported = meter->read().totals;
  // It had begun to count another one.
  auto* cell = reinterpret_cast<MeterCell*>(first.arena.meters().data() + sizeof(MeterHead));
  cell->version.fetch_add(1);
  cell->open.fetch_add(1);
  EXPECT_EQ(meter->read().totals, reported);
  EXPECT_EQ(meter->read().connections_now, 2U);
  MeterProcess second(first.left());
  EXPECT_EQ(second.meters.make("f/1", {})->read().totals, reported);
}

TEST(UsageMeter, GivesItsRowBack) {
  MeterProcess process({}, 2);
  auto first = process.meters.make("f/1", {.connections = 1});
  const auto second = process.meters.make("f/2", {.connections = 2});
  const auto third = process.meters.make("f/3", {.connections = 3});  // no row is free: it has own memory
  third->moved(1, true, 5, 1);
  EXPECT_EQ(third->read().totals.received_bytes, 5U);
  EXPECT_EQ(process.left().totals.size(), 2U);
  first.reset();
  EXPECT_EQ(process.left().totals.size(), 1U);
  const auto fourth = process.meters.make("f/4", {.connections = 4});
  EXPECT_EQ(fourth->read().totals, UsageTotals{.connections = 4}) << "nothing of the former one";
  const auto left = process.left();
  EXPECT_EQ(left.totals.at("f/4").connections, 4U);
  EXPECT_EQ(left.totals.at("f/2").connections, 2U);
}

TEST(UsageMeter, OutlivesTheMemoryOfTheOthers) {
  auto process = std::make_unique<MeterProcess>();
  auto meter = process->meters.make("f/1", {});
  process.reset();
  meter.reset();  // a record of a connection may keep it until then
}

TEST(UsageMeter, WhatADamagedMemorySaysIsBounded) {
  MeterProcess first;
  const auto meter = first.meters.make("f/1", {});
  auto* head = reinterpret_cast<MeterHead*>(first.arena.meters().data());
  head->key.fill('x');
  const auto left = UsageMeters::read(first.arena.meters(), kWorkers, UINT32_MAX);
  ASSERT_EQ(left.totals.size(), 1U);
  EXPECT_EQ(left.totals.begin()->first.size(), head->key.size() - 1);
}

// A count and the times that belong to it are two numbers: seen apart, they would make years of nothing.
TEST(UsageMeter, IsReadWhileItIsWritten) {
  UsageMeters meters(kWorkers);
  const auto meter = meters.make("f/1", {});
  std::atomic<bool> done = false;
  const std::int64_t began = monotonic_now_ns();
  std::vector<std::thread> workers;
  for (std::size_t worker = 0; worker < kWorkers; ++worker) {
    workers.emplace_back([&, worker] {
      for (int i = 0; i < 200'000; ++i) {
        meter->opened(worker, monotonic_now_ns());
        meter->closed(worker, monotonic_now_ns());
      }
      done = true;
    });
  }
  UsageTotals before;
  while (!done) {
    const UsageReading reading = meter->read();
    EXPECT_LE(reading.connections_now, kWorkers);
    EXPECT_GE(reading.totals.connection_us, before.connection_us);
    EXPECT_LE(reading.totals.connection_us,
              kWorkers * static_cast<std::uint64_t>((monotonic_now_ns() - began) / 1000 + 1000));
    before = reading.totals;
  }
  for (std::thread& worker : workers) worker.join();
  EXPECT_EQ(meter->read().connections_now, 0U);
  EXPECT_EQ(meter->read().totals.connections, 400'000U);
}

}  // namespace
}  // namespace portway
