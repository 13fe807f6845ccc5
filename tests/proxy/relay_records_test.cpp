// The relay suite: however a connection ends, it leaves one record that says who ended it and how, and how
// much it carried. That there is exactly one, and that its bytes are those counted, is checked after every
// test of the suite (Rig).
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <future>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "proxy/device_requests.h"
#include "tests/proxy/relay_suite.h"

namespace portway::test {

void PrintTo(const CloseCause& cause, std::ostream* out) {
  *out << to_string(cause.side) << " " << to_string(cause.how);
}

namespace {

class RelayRecords : public RelaySuite {
 protected:
  /// The only one; waits for it.
  static CloseRecord record_of(Rig& rig) {
    EXPECT_TRUE(rig.run_until([&] { return !rig.records().empty(); }));
    EXPECT_EQ(rig.records().size(), 1u);
    return rig.records().empty() ? CloseRecord{} : rig.records().front();
  }

  /// "request" went up and "answer!" down.
  static Rig::Pair exchange(Rig& rig) {
    const Rig::Pair pair = rig.open();
    pair.client.send("request");
    pair.guest.send("answer!!");
    EXPECT_TRUE(rig.run_until([&] {
      return pair.guest.received() == "request" && pair.client.received() == "answer!!" &&
             rig.moved_bytes() == 15;
    }));
    return pair;
  }

  static void expect_exchanged(const CloseRecord& record, CloseCause cause, int error = 0) {
    EXPECT_EQ(record.cause, cause);
    EXPECT_EQ(record.error, error);
    EXPECT_EQ(record.received_bytes, 7u);
    EXPECT_EQ(record.sent_bytes, 8u);
    EXPECT_NE(record.id, 0u);
    EXPECT_LE(record.accepted_at, record.connected_at);
    EXPECT_LE(record.connected_at, record.ended_at);
    EXPECT_GT(record.tcp[kUpstream].rtt_us, 0u);
    EXPECT_GT(record.tcp[kDownstream].rtt_us, 0u);
    EXPECT_NE(record.client.port, 0u);
  }
};
INSTANTIATE_TEST_SUITE_P(Relay, RelayRecords, testing::ValuesIn(kBackends), backend_name);

using RelayRecordsSimulated = RelayRecords;
INSTANTIATE_TEST_SUITE_P(Relay, RelayRecordsSimulated, testing::Values(Backend::kSim), backend_name);

TEST_P(RelayRecords, AFinNamesTheSideThatSentItFirst) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    const Rig::Pair pair = exchange(rig);
    Peer& client = pair.client;
    Peer& guest = pair.guest;
    Peer& first = by_client ? client : guest;
    Peer& second = by_client ? guest : client;
    first.shutdown_write();
    ASSERT_TRUE(rig.run_until([&] { return second.eof(); }));
    EXPECT_TRUE(rig.records().empty()) << "half-closed is not ended";
    second.shutdown_write();
    expect_exchanged(record_of(rig), {by_client ? CloseSide::kClient : CloseSide::kGuest, CloseHow::kFin});
  }
}

TEST_P(RelayRecords, AResetNamesTheSideThatSentIt) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    const Rig::Pair pair = exchange(rig);
    Peer& client = pair.client;
    Peer& guest = pair.guest;
    (by_client ? client : guest).reset();
    expect_exchanged(record_of(rig), {by_client ? CloseSide::kClient : CloseSide::kGuest, CloseHow::kReset},
                     ECONNRESET);
  }
}

TEST_P(RelayRecords, BulkIsCountedToTheByteAlsoWhereAResetCutsItShort) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.expect_pattern(1);
  client.send_pattern(1, 5 * kMiB + 1);
  ASSERT_TRUE(rig.run_until([&] { return guest.received_bytes() == 5 * kMiB + 1; }));
  guest.reset();
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kGuest, CloseHow::kReset}));
  EXPECT_EQ(record.received_bytes, 5 * kMiB + 1);
  EXPECT_EQ(record.sent_bytes, 0u);
}

TEST_P(RelayRecords, AGuestThatRefusesIsTheGuestsEnd) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  rig.connect().send("hello?");
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kGuest, CloseHow::kRefused}));
  EXPECT_EQ(record.error, ECONNREFUSED);
  EXPECT_EQ(record.connected_at, Nanos::zero());
  EXPECT_EQ(record.received_bytes + record.sent_bytes, 0u);
}

// If the other side reads nothing, no read finds the error: each was recorded as a reset.
TEST_P(RelayRecordsSimulated, AnErrorThatCannotBeReadIsRecordedAsWhatItWas) {
  const auto of = [](CloseHow how) { return [how](CloseSide side) { return CloseCause{side, how}; }; };
  const auto of_node = [](CloseSide) { return CloseCause{CloseSide::kNode, CloseHow::kResources}; };
  const std::vector<std::pair<int, std::function<CloseCause(CloseSide)>>> cases = {
      {ETIMEDOUT, of(CloseHow::kKeepaliveTimeout)},
      {EHOSTUNREACH, of(CloseHow::kKeepaliveTimeout)},
      {ECONNRESET, of(CloseHow::kReset)},
      {ENOMEM, of_node}};
  for (const auto& [error, cause] : cases) {
    for (const CloseSide side : {CloseSide::kClient, CloseSide::kGuest}) {
      Rig rig(GetParam(), {.network = {.receive_buffer = 16 * kKiB, .send_buffer = 16 * kKiB}});
      Peer& client = rig.connect();
      Peer& guest = rig.accept();
      Peer& lost = side == CloseSide::kClient ? client : guest;
      (side == CloseSide::kClient ? guest : client).pause();
      lost.send_pattern(1, 1 * kMiB);
      rig.settle();
      lost.socket().be_given_up(error);
      const CloseRecord record = record_of(rig);
      EXPECT_EQ(record.cause, cause(side)) << error;
      EXPECT_EQ(record.error, error);
    }
  }
}

TEST_P(RelayRecordsSimulated, AClientThatFallsSilentWhileItsGuestIsCalledHasNotResetAnything) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kSilent});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 1; }));
  client.socket().be_given_up(ETIMEDOUT);
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kClient, CloseHow::kKeepaliveTimeout}));
  EXPECT_EQ(record.error, ETIMEDOUT);
}

TEST_P(RelayRecordsSimulated, APollThatCannotBeArmedIsRecordedWithItsError) {
  Rig rig(GetParam());
  rig.sim()->fail(SimIo::Call::kPoll, 1, ENOMEM);
  rig.connect();
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kNode, CloseHow::kResources}));
  EXPECT_EQ(record.error, ENOMEM);
}

TEST_P(RelayRecords, AGuestThatIsSilentTookTooLong) {
  Rig rig(GetParam(), {.connections = {.config = {.connect_timeout = 50ms}}, .guest = GuestAnswer::kSilent});
  rig.connect();
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kGuest, CloseHow::kConnectTimeout}));
  EXPECT_EQ(record.error, ETIMEDOUT);
  EXPECT_GE(record.ended_at - record.accepted_at, 50ms);
}

// The kernel reports a tap's carrier up to a second late: the first client was reset meanwhile.
TEST_P(RelayRecords, AClientOfASessionWithoutADeviceHasItLookedForAndWaits) {
  DeviceRequests requests;
  Rig rig(GetParam(), {.connections = {.device_requests = &requests}, .device = kNoDevice});
  Peer& client = rig.connect();
  Peer& second = rig.connect();
  client.send("first");
  std::set<std::string> asked;
  ASSERT_TRUE(rig.run_until([&] { return !(asked = requests.take()).empty(); }));
  EXPECT_EQ(asked, std::set<std::string>{rig.forward().route.instance_id});
  EXPECT_FALSE(client.ended());
  rig.forward().session->device.store(kAnyDevice);
  Peer& guest = rig.accept();
  EXPECT_TRUE(rig.run_until([&] { return rig.stats().connections_established == 2; }));
  EXPECT_FALSE(second.ended());
  EXPECT_TRUE(requests.take().empty()) << "it was asked for once";
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "first" || rig.try_accept() != nullptr; }));
}

TEST_P(RelayRecords, AClientOfASessionWithoutADeviceDoesNotWaitForLong) {
  DeviceRequests requests;
  Rig rig(GetParam(), {.connections = {.device_requests = &requests}, .device = kNoDevice});
  rig.connect();
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kNode, CloseHow::kConnectError}));
  EXPECT_EQ(record.error, ENODEV);
  EXPECT_FALSE(requests.take().empty());
  // The next one asks again; it may leave while it waits, or its forward may go.
  Peer& second = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return !requests.take().empty(); }));
  second.reset();
  ASSERT_TRUE(rig.run_until([&] { return rig.records().size() == 2; }));
  rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return !requests.take().empty(); }));
  rig.close_forward(ClosePolicy::kReset);
  EXPECT_TRUE(rig.run_until([&] { return rig.records().size() == 3; }));
  EXPECT_EQ(rig.records().back().cause.how, CloseHow::kForwardDeleted);
}

TEST_P(RelayRecords, ADeviceThatDoesNotExistIsTheNodesError) {
  Rig rig(GetParam(), {.device = kNoDevice});
  if (rig.sim() != nullptr) rig.sim()->fail(SimIo::Call::kBindToDevice, 1, ENODEV);
  rig.connect();
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kNode, CloseHow::kConnectError}));
  EXPECT_EQ(record.error, ENODEV);
}

TEST_P(RelayRecords, AClientThatLeavesWhileTheGuestIsCalledIsTheClientsEnd) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kSilent});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 1; }));
  client.reset();
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kClient, CloseHow::kReset}));
  EXPECT_EQ(record.connected_at, Nanos::zero());
}

TEST_P(RelayRecords, TimeoutsAreTheNodes) {
  {
    Rig rig(GetParam(), {.connections = {.config = {.idle_timeout = 1s}}});
    exchange(rig);
    expect_exchanged(record_of(rig), {CloseSide::kNode, CloseHow::kIdleTimeout});
  }
  Rig rig(GetParam(), {.connections = {.config = {.half_close_timeout = 1s}}});
  exchange(rig).client.shutdown_write();
  expect_exchanged(record_of(rig), {CloseSide::kNode, CloseHow::kHalfCloseTimeout});
}

TEST_P(RelayRecords, TheEndOfAForwardSaysWhyItEnded) {
  for (const CloseHow why : {CloseHow::kForwardDeleted, CloseHow::kInstanceStopped, CloseHow::kTapGone}) {
    Rig rig(GetParam());
    exchange(rig);
    rig.close_forward(ClosePolicy::kReset, why);
    expect_exchanged(record_of(rig), {CloseSide::kNode, why});
  }
  Rig rig(GetParam(), {.connections = {.config = {.drain_timeout = 1s}}});
  exchange(rig);
  rig.close_forward(ClosePolicy::kDrain, CloseHow::kInstanceStopped);
  expect_exchanged(record_of(rig), {CloseSide::kNode, CloseHow::kInstanceStopped});
}

TEST_P(RelayRecords, TheEndOfTheDaemonIsAShutdown) {
  Rig rig(GetParam());
  exchange(rig);
  rig.stop();
  expect_exchanged(record_of(rig), {CloseSide::kNode, CloseHow::kShutdown});
}

TEST_P(RelayRecords, AClientOverTheLimitLeavesARecordToo) {
  Rig rig(GetParam(), {.connections_max = 1});
  rig.open();
  Peer& excess = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return excess.ended(); }));
  const CloseRecord record = record_of(rig);
  EXPECT_EQ(record.id, 0u);
  EXPECT_EQ(record.cause, (CloseCause{CloseSide::kNode, CloseHow::kLimit}));
  EXPECT_NE(record.client.port, 0u);
}

TEST(SpscRing, TakesNoMoreThanItHolds) {
  SpscRing<int> ring(4);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(ring.push(int{i}), i < 4);
  std::vector<int> taken;
  const auto take = [&](int&& value) { taken.push_back(value); };
  ring.drain(take);
  EXPECT_TRUE(ring.push(7));
  ring.drain(take);
  EXPECT_EQ(taken, (std::vector<int>{0, 1, 2, 3, 7}));
}

// --- Live connections.

TEST_P(RelayRecords, LiveConnectionsAreListedAsTheyAre) {
  Rig rig(GetParam());
  EXPECT_TRUE(rig.connections().empty());
  const Rig::Pair pair = exchange(rig);
  Peer& client = pair.client;
  Peer& guest = pair.guest;
  std::vector<LiveConnection> live = rig.connections();
  ASSERT_EQ(live.size(), 1u);
  EXPECT_EQ(live[0].state, LiveState::kEstablished);
  EXPECT_EQ(live[0].received_bytes, 7u);
  EXPECT_EQ(live[0].sent_bytes, 8u);
  EXPECT_GT(live[0].tcp[kUpstream].rtt_us, 0u);
  EXPECT_NE(live[0].client.port(), 0u);
  EXPECT_LE(live[0].idle, live[0].age);
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.eof(); }));
  EXPECT_EQ(rig.connections()[0].state, LiveState::kGuestEnded);
  client.shutdown_write();
  EXPECT_EQ(record_of(rig).id, live[0].id);
  EXPECT_TRUE(rig.connections().empty());
}

TEST_P(RelayRecords, LiveConnectionsComeInPages) {
  Rig rig(GetParam());
  for (int i = 0; i < 10; ++i) rig.open();
  std::vector<ConnectionId> ids;
  for (std::vector<LiveConnection> page;
       !(page = rig.connections(ids.empty() ? 0 : ids.back(), 3)).empty();) {
    EXPECT_LE(page.size(), 3u);
    for (const LiveConnection& connection : page) ids.push_back(connection.id);
  }
  EXPECT_EQ(ids.size(), 10u);
  EXPECT_TRUE(std::ranges::is_sorted(ids));
  EXPECT_EQ(std::ranges::adjacent_find(ids), ids.end());
}

TEST_P(RelayRecords, OneConnectionCanBeEndedOrAllOfThem) {
  Rig rig(GetParam());
  const Rig::Pair pair = exchange(rig);
  Peer& client = pair.client;
  Peer& guest = pair.guest;
  const Rig::Pair other = rig.open();
  EXPECT_EQ(rig.end_connections(12345), 0u);
  EXPECT_EQ(rig.end_connections(rig.connections()[0].id), 1u);
  ASSERT_TRUE(
      rig.run_until([&client = client, &guest = guest] { return client.was_reset() && guest.was_reset(); }));
  expect_exchanged(record_of(rig), {CloseSide::kNode, CloseHow::kKilled});
  EXPECT_FALSE(other.client.ended());
  EXPECT_EQ(rig.end_connections(0), 1u);
  ASSERT_TRUE(rig.run_until([&] { return other.client.was_reset(); }));
}

/// The last message's wake-up comes together with other events, while earlier messages wait for the next
/// turn. So it ends no later wait.
TEST_P(RelayRecords, NoAnswerWaitsForTheNextEventHoweverManyAreAskedFor) {
  Rig rig(GetParam(), {.network = {.latency = 1us}});  // as a turn of the simulated time
  constexpr std::size_t kMoreThanATurnTakes = 33;      // messages
  constexpr int kMoreThanAFew = 8;                     // events: it does not look for more before it sleeps
  std::vector<Rig::Pair> pairs;
  for (int i = 0; i < kMoreThanAFew; ++i) pairs.push_back(rig.open());
  rig.settle();
  std::vector<std::future<std::vector<LiveConnection>>> answers;
  const auto ask = [&] {
    std::promise<std::vector<LiveConnection>> answer;
    answers.push_back(answer.get_future());
    rig.worker().post(Worker::ListConnections{rig.forward().shared_from_this(), 0, 1, std::move(answer)});
  };
  const auto is_answered = [&](std::size_t i) {
    return answers[i].wait_for(0s) == std::future_status::ready;
  };
  while (answers.size() < kMoreThanATurnTakes) ask();
  rig.worker().turn(Nanos::zero());
  ASSERT_FALSE(is_answered(kMoreThanATurnTakes - 1));
  ask();
  for (const Rig::Pair& pair : pairs) {
    pair.client.send("x");
    pair.client.pump();
  }
  rig.worker().turn(Nanos::zero());
  ASSERT_TRUE(is_answered(kMoreThanATurnTakes - 1));
  ASSERT_FALSE(is_answered(kMoreThanATurnTakes));

  const Nanos asked_at = rig.world().now();
  rig.worker().turn(5s);
  EXPECT_TRUE(is_answered(kMoreThanATurnTakes));
  EXPECT_LT(rig.world().now() - asked_at, 1s);
}

}  // namespace
}  // namespace portway::test
