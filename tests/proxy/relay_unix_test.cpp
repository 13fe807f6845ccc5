// Clients of a Unix socket whose backlog is full. What clients and services see of each other is in
// tests/daemon/unix_targets_test.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "tests/proxy/harness.h"
#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class FullBacklog : public testing::Test {
 protected:
  static RigOptions options() {
    RigOptions options{.connections_max = 2048, .unix_socket = true};
    options.connections.config.connect_timeout = std::chrono::milliseconds(2000);
    return options;
  }

  /// Clients that wait, each with its number.
  void crowd(int count) {
    rig_.sim()->set_backlog_room(0);
    for (int i = 0; i < count; ++i) {
      clients_.push_back(&rig_.connect());
      clients_.back()->send(std::to_string(i));
      ASSERT_TRUE(rig_.run_until([&] { return accepted() == clients_.size(); }));
    }
  }
  std::size_t accepted() const { return rig_.stats().connections_accepted; }
  std::size_t established() const { return rig_.stats().connections_established; }

  Rig rig_{Backend::kSim, options()};
  std::vector<Peer*> clients_;
};

/// Each of them tried for itself: a thousand cost 10,000 calls a second, and the newest was served first.
TEST_F(FullBacklog, OnlyTheFirstThatWaitsTriesAgain) {
  crowd(1000);
  const std::uint64_t before = rig_.sim()->unix_connects();
  rig_.pass_time(1s);
  EXPECT_LE(rig_.sim()->unix_connects() - before, 250u) << "one each 4 ms, a tick of the timers";
  EXPECT_GE(rig_.sim()->unix_connects() - before, 5u);
  EXPECT_EQ(established(), 0u);
}

TEST_F(FullBacklog, ClientsAreServedInTheirOrder) {
  crowd(50);
  for (int i = 0; i < 50; ++i) {
    rig_.sim()->set_backlog_room(1);
    Peer& service = rig_.accept();
    ASSERT_TRUE(rig_.run_until([&] { return !service.received().empty(); }));
    EXPECT_EQ(service.received(), std::to_string(i));
  }
}

TEST_F(FullBacklog, ANewClientWaitsBehindTheOthers) {
  crowd(3);
  rig_.sim()->set_backlog_room(1);
  Peer& late = rig_.connect();
  late.send("late");
  Peer& service = rig_.accept();
  ASSERT_TRUE(rig_.run_until([&] { return !service.received().empty(); }));
  EXPECT_EQ(service.received(), "0");
  EXPECT_FALSE(late.ended());
}

TEST_F(FullBacklog, RoomForManyIsUsedAtOnce) {
  crowd(500);
  rig_.sim()->set_backlog_room(500);
  EXPECT_TRUE(rig_.run_until([&] { return established() == 500; }, 200ms));
}

TEST_F(FullBacklog, EachClientsTimeoutIsItsOwn) {
  crowd(1);
  const Nanos first_came = rig_.world().now();
  rig_.pass_time(1s);
  crowd(1);
  ASSERT_TRUE(rig_.run_until([&] { return clients_[0]->ended(); }));
  EXPECT_NEAR(static_cast<double>((rig_.world().now() - first_came) / 1ms), 2000, 10);
  EXPECT_FALSE(clients_[1]->ended());
  ASSERT_TRUE(rig_.run_until([&] { return clients_[1]->ended(); }));
  EXPECT_NEAR(static_cast<double>((rig_.world().now() - first_came) / 1ms), 3000, 10);
  for (const CloseRecord& record : rig_.records())
    EXPECT_EQ(record.cause, (CloseCause{CloseSide::kGuest, CloseHow::kConnectTimeout}));
}

TEST_F(FullBacklog, AClientThatLeavesKeepsNobodyWaiting) {
  crowd(4);
  clients_[0]->reset();
  clients_[2]->reset();
  ASSERT_TRUE(rig_.run_until([&] { return rig_.records().size() == 2; }));
  rig_.sim()->set_backlog_room(2);
  for (const char* expected : {"1", "3"}) {
    Peer& service = rig_.accept();
    ASSERT_TRUE(rig_.run_until([&] { return !service.received().empty(); }));
    EXPECT_EQ(service.received(), expected);
  }
  // Nobody waits any more: a new client connects at once.
  const std::uint64_t before = rig_.sim()->unix_connects();
  rig_.sim()->set_backlog_room(1);
  rig_.connect();
  rig_.accept();
  EXPECT_EQ(rig_.sim()->unix_connects(), before + 1);
}

TEST_F(FullBacklog, AServiceThatEndsRefusesThemAll) {
  crowd(100);
  rig_.sim()->fail(SimIo::Call::kConnect, 1, ECONNREFUSED, 100);
  rig_.sim()->set_backlog_room(100);
  ASSERT_TRUE(rig_.run_until([&] { return rig_.records().size() == 100; }, 200ms));
  for (const CloseRecord& record : rig_.records()) EXPECT_EQ(record.cause.how, CloseHow::kRefused);
}

TEST_F(FullBacklog, TheForwardsEndEndsThoseThatWait) {
  crowd(100);
  rig_.close_forward(ClosePolicy::kReset);
  EXPECT_TRUE(rig_.run_until(
      [&] { return std::ranges::all_of(clients_, [](const Peer* client) { return client->was_reset(); }); }));
  EXPECT_EQ(rig_.records().size(), 100u);
}

}  // namespace
}  // namespace portway::test
