#include "control/usage.h"

#include <SQLiteCpp/Database.h>
#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/run.h"

namespace portway {
namespace {

Instance machine(const std::string& id) {
  Instance instance;
  instance.id = id;
  instance.guest_address = parse_address("198.19.0.2").value();
  instance.tap = "tap0";
  instance.owner = "alice";
  instance.session_id = make_uuid();
  instance.created_at = Timestamp(std::chrono::seconds(1'700'000'000));
  return instance;
}

class UsageTest : public testing::Test {
 protected:
  UsageTest() { std::filesystem::create_directories(directory_); }
  ~UsageTest() override {
    usage_.reset();
    store_.reset();
    std::filesystem::remove_all(directory_);
  }

  /// As a process that finds what the disk has.
  void start() {
    usage_.reset();
    meters_.reset();
    store_.reset();
    store_ = Store::open(path()).value();
    meters_ = std::make_unique<UsageMeters>(1);
    usage_ = std::make_unique<Usage>(context_, *store_, *meters_, [this] { return now_; });
    usage_->restore(store_->load_usage().value(), store_->load_instances().value(),
                    store_->load_forwards().value());
  }
  void add(const Instance& instance) { test::run(context_, store_->put_instance(instance)).value(); }
  void save_round() {
    now_ += Usage::kSaveEvery;
    usage_->save();
  }
  std::uint64_t bytes_on_disk(const std::string& id) {
    for (const StoredUsage& each : store_->load_usage().value()) {
      if (each.id == id) return each.totals.received_bytes;
    }
    return 0;
  }
  /// Runs what is posted until `done`.
  template <class Done>
  void run_until(const Done& done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    context_.restart();
    while (!done()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      context_.run_one_for(std::chrono::milliseconds(10));
      context_.restart();
    }
  }
  std::string path() const { return directory_ + "/portway.db"; }

  const std::string directory_ = testing::TempDir() + "/portway-usage-" + to_string(make_uuid());
  boost::asio::io_context context_;
  std::chrono::steady_clock::time_point now_{};
  std::unique_ptr<Store> store_;
  std::unique_ptr<UsageMeters> meters_;
  std::unique_ptr<Usage> usage_;
};

TEST_F(UsageTest, GoesOnAfterARestart) {
  start();
  const Instance instance = machine("vm-1");
  add(instance);
  usage_->meter_of(instance)->moved(0, true, 5, 1);
  EXPECT_EQ(usage_->of(instance).since, instance.created_at);
  usage_->save_at_end();
  start();
  EXPECT_EQ(usage_->of(instance).reading.totals.received_bytes, 5U);
  EXPECT_NE(usage_->of(instance).reading.totals.last_byte_at_ms, 0);
  EXPECT_EQ(usage_->of(instance).since, instance.created_at);
  usage_->meter_of(instance)->moved(0, true, 5, 1);
  EXPECT_EQ(usage_->of(instance).reading.totals.received_bytes, 10U);
}

TEST_F(UsageTest, OfOneThatHasCarriedNothingNeedsNoMeter) {
  start();
  const UsageStatus usage = usage_->of(machine("vm-1"));
  EXPECT_EQ(usage.reading.totals, UsageTotals());
  EXPECT_EQ(usage.since, machine("vm-1").created_at);
}

TEST_F(UsageTest, AnInstanceThatWasDeletedIsForgotten) {
  start();
  Instance instance = machine("vm-1");
  add(instance);
  usage_->meter_of(instance)->moved(0, true, 5, 1);
  usage_->save_at_end();
  test::run(context_, store_->delete_instance("vm-1")).value();
  usage_->forget(instance);
  EXPECT_EQ(store_->load_usage().value().size(), 0U);
  instance.created_at += std::chrono::milliseconds(1);
  EXPECT_EQ(usage_->of(instance).reading.totals, UsageTotals());
}

TEST_F(UsageTest, IsNotSavedOfWhatIsGone) {
  start();
  const Instance instance = machine("vm-1");
  usage_->meter_of(instance)->moved(0, true, 5, 1);  // the disk does not have it any more
  usage_->save_at_end();
  EXPECT_EQ(store_->load_usage().value().size(), 0U);
}

// With a thousand idle machines nothing is written, and with more no transaction is large.
TEST_F(UsageTest, OnlyWhatHasChangedIsSavedAndInParts) {
  start();
  std::vector<Instance> instances;
  std::vector<Instance> more;
  for (std::size_t i = 0; i < 2 * Usage::kPart + 1; ++i) {
    instances.push_back(machine("vm-" + std::to_string(i)));
    (void)usage_->meter_of(instances.back());
  }
  store_->save_sessions(instances, [](const Result<void>&) {});
  const std::string last = instances.back().id;
  usage_->meter_of(instances.front())->moved(0, true, 1, 1);
  usage_->meter_of(instances.back())->moved(0, true, 2, 1);
  save_round();
  run_until([&] { return bytes_on_disk("vm-0") == 1 && bytes_on_disk(last) == 2; });
  EXPECT_EQ(store_->load_usage().value().size(), 2U);
}

TEST_F(UsageTest, IsSavedNowAndThen) {
  start();
  const Instance instance = machine("vm-1");
  add(instance);
  usage_->meter_of(instance)->moved(0, true, 1, 1);
  usage_->save();
  now_ += Usage::kSaveEvery - std::chrono::milliseconds(1);
  usage_->save();
  EXPECT_EQ(bytes_on_disk("vm-1"), 0U) << "too early";
  now_ += std::chrono::milliseconds(1);
  usage_->save();
  EXPECT_EQ(bytes_on_disk("vm-1"), 1U);
}

TEST_F(UsageTest, WhatTheDiskRefusesIsSavedLater) {
  start();
  const Instance instance = machine("vm-1");
  add(instance);
  usage_->meter_of(instance)->moved(0, true, 1, 1);
  auto locker = std::make_unique<SQLite::Database>(path(), SQLite::OPEN_READWRITE);
  locker->exec("BEGIN IMMEDIATE");
  save_round();
  (void)store_->load_usage();  // behind it
  locker.reset();
  EXPECT_EQ(bytes_on_disk("vm-1"), 0U);
  run_until([&] {
    save_round();
    return bytes_on_disk("vm-1") == 1;
  });
}

}  // namespace
}  // namespace portway
