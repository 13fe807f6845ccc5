#include "control/access_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "control/recent_closes.h"

namespace portway {
namespace {

using namespace std::chrono_literals;

CloseRecord record(ConnectionId id = 4097) {
  static const auto forward = std::make_shared<ServedForward>(
      ForwardRoute{.id = parse_uuid("0192f0c1-2345-7000-8000-000000000001").value(),
                   .guest = {},
                   .instance_id = "vm-1"},
      1);
  CloseRecord record{.forward = forward, .id = id};
  record.client = to_plain({parse_address("203.0.113.9").value(), 40000});
  record.guest = {parse_address("198.19.0.2").value(), 3000};
  record.accepted_at = 10s;
  record.connected_at = 10s + 250us;
  record.ended_at = 12s + 500ms;
  record.received_bytes = 123;
  record.sent_bytes = 9'007'199'254'740'993;
  record.tcp[kDownstream] = {.rtt_us = 42'000, .retransmits = 3};
  record.tcp[kUpstream] = {.rtt_us = 90, .retransmits = 0};
  record.cause = {CloseSide::kGuest, CloseHow::kReset};
  record.error = ECONNRESET;
  record.worker = 1;
  return record;
}

std::string line(const CloseRecord& of) {
  // Thirteen seconds after the monotonic clock's zero it is half past nine.
  return to_json_line(of, std::chrono::sys_days(std::chrono::year(2026) / 1 / 31) + 9h + 30min, 13s);
}

TEST(AccessLogLine, ReportsWhoEndedAConnectionAndHowAndWhatItCarried) {
  EXPECT_EQ(
      line(record()),
      R"({"time":"2026-01-31T09:29:57.000Z","duration_s":2.500000,)"
      R"("forward":"0192f0c1-2345-7000-8000-000000000001","instance":"vm-1","connection":4097,"worker":1,)"
      R"("client":"203.0.113.9:40000","guest":"198.19.0.2:3000","source_mode":"plain","connect_s":0.000250,)"
      R"("received_bytes":123,"sent_bytes":9007199254740993,"side":"guest","how":"reset","error":"ECONNRESET",)"
      R"("client_rtt_us":42000,"client_retransmits":3,"guest_rtt_us":90,"guest_retransmits":0})");
}

TEST(AccessLogLine, LeavesOutWhatThereIsNot) {
  CloseRecord rejected = record(0);
  rejected.connected_at = {};
  rejected.error = 0;
  rejected.client = to_plain({parse_address("2001:db8::9").value(), 40000});
  const boost::json::object object = boost::json::parse(line(rejected)).as_object();
  EXPECT_FALSE(object.contains("connection"));
  EXPECT_FALSE(object.contains("connect_s"));
  EXPECT_FALSE(object.contains("error"));
  EXPECT_EQ(object.at("client"), "[2001:db8::9]:40000");
}

class AccessLogTest : public testing::Test {
 protected:
  AccessLogTest() { std::filesystem::create_directory(directory_); }
  ~AccessLogTest() override { std::filesystem::remove_all(directory_); }

  std::string path() const { return directory_ + "/access.log"; }
  static Result<void> reopen(AccessLog& log) {
    std::promise<Result<void>> reopened;
    log.reopen([&reopened](const Result<void>& result) { reopened.set_value(result); });
    return reopened.get_future().get();
  }
  static std::vector<std::string> lines(const std::string& path) {
    std::vector<std::string> all;
    std::ifstream file(path);
    for (std::string each; std::getline(file, each);) all.push_back(each);
    return all;
  }

 private:
  const std::string directory_ = testing::TempDir() + "/portway-log-" + to_string(make_uuid());
};

TEST_F(AccessLogTest, AppendsALineForEachAndIsNotForEverybodysEyes) {
  for (int run = 0; run < 2; ++run) {
    const auto log = AccessLog::open(path()).value();
    for (ConnectionId id = 1; id <= 100; ++id) log->write(record(id));
    EXPECT_EQ(log->dropped(), 0u);
  }
  const auto all = lines(path());
  ASSERT_EQ(all.size(), 200u);
  for (std::size_t i = 0; i < all.size(); ++i)
    EXPECT_EQ(boost::json::parse(all[i]).at("connection"), i % 100 + 1);
  EXPECT_EQ(std::filesystem::status(path()).permissions() & std::filesystem::perms::others_all,
            std::filesystem::perms::none);
}

TEST_F(AccessLogTest, ContinuesInANewFileWhenReopened) {
  const std::string moved = path() + ".1";
  {
    const auto log = AccessLog::open(path()).value();
    log->write(record(1));
    std::filesystem::rename(path(), moved);
    log->write(record(2));
    log->reopen([](const Result<void>&) {});
    log->write(record(3));
  }
  EXPECT_EQ(lines(moved).size(), 2u);
  ASSERT_EQ(lines(path()).size(), 1u);
  EXPECT_EQ(boost::json::parse(lines(path())[0]).at("connection"), 3);
}

TEST_F(AccessLogTest, ContinuesInTheOldFileIfANewOneCannotBeOpened) {
  const auto log = AccessLog::open(path()).value();
  std::filesystem::rename(path(), path() + ".1");
  std::filesystem::create_directory(path());
  EXPECT_FALSE(reopen(*log));
  log->write(record(1));
  EXPECT_FALSE(reopen(*log));
  EXPECT_EQ(lines(path() + ".1").size(), 1u);
  EXPECT_EQ(log->dropped(), 0u);
}

TEST_F(AccessLogTest, RefusesAPathThatCannotBeWritten) {
  const auto log = AccessLog::open(path() + ".d/access.log");
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, ErrorCode::kInvalidConfig);
  EXPECT_THAT(log.error().detail, testing::HasSubstr("log.access: cannot open"));
}

TEST_F(AccessLogTest, DoesNotWaitForTheReaderOfAFifo) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  const auto without_reader = AccessLog::open(path());
  ASSERT_FALSE(without_reader);
  EXPECT_THAT(without_reader.error().detail, testing::HasSubstr("nobody reads"));
  Fd reader(::open(path().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  const auto log = AccessLog::open(path()).value();
  for (int i = 0; i < 20'000; ++i) log->write(record());
  EXPECT_GT(log->dropped(), 0U);
  reader.reset();
  EXPECT_FALSE(reopen(*log));
}

TEST_F(AccessLogTest, CountsWhatTheDiskRefuses) {
  const auto log = AccessLog::open("/dev/full").value();
  for (int i = 0; i < 1000; ++i) log->write(record());
  // The log's thread does it; nothing reports when.
  for (int tries = 0; log->dropped() == 0 && tries < 10'000; ++tries) std::this_thread::sleep_for(1ms);
  EXPECT_GT(log->dropped(), 0u);
}

TEST(RecentCloses, KeepsTheLastOnes) {
  RecentCloses closes(3);
  const auto ids = [&](std::size_t limit) {
    std::vector<ConnectionId> found;
    for (const CloseRecord* each : closes.latest(limit, [](const CloseRecord& r) { return r.id != 4; }))
      found.push_back(each->id);
    return found;
  };
  EXPECT_TRUE(ids(10).empty());
  closes.add(record(1));
  closes.add(record(2));
  EXPECT_EQ(ids(10), (std::vector<ConnectionId>{2, 1}));
  for (ConnectionId id = 3; id <= 5; ++id) closes.add(record(id));
  EXPECT_EQ(ids(10), (std::vector<ConnectionId>{5, 3}));
  EXPECT_EQ(ids(1), (std::vector<ConnectionId>{5}));
  RecentCloses none(0);
  none.add(record(1));
  EXPECT_TRUE(none.latest(10, [](const CloseRecord&) { return true; }).empty());
}

}  // namespace
}  // namespace portway
