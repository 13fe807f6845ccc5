// The relay suite: what happens if something runs out, and that nobody takes more than a share.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class RelayLimits : public RelaySuite {
 protected:
  void SetUp() override {
    // Few enough to use up. io_uring checks the limit when accepting is armed.
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit few = before_;
    few.rlim_cur = std::min<rlim_t>(1024, before_.rlim_max);
    ::setrlimit(RLIMIT_NOFILE, &few);
    RelaySuite::SetUp();
  }
  void TearDown() override { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};
INSTANTIATE_TEST_SUITE_P(Relay, RelayLimits, testing::ValuesIn(kBackends), backend_name);

using RelayLimitsOfKernel = RelayLimits;
INSTANTIATE_TEST_SUITE_P(Relay, RelayLimitsOfKernel, testing::Values(Backend::kUring, Backend::kEpoll),
                         backend_name);

class RelayLimitsSimulated : public RelayLimits {};
INSTANTIATE_TEST_SUITE_P(Relay, RelayLimitsSimulated, testing::Values(Backend::kSim), backend_name);

/// As long as it lives, no more than `spare` further descriptors can be opened.
class FewDescriptors {
 public:
  FewDescriptors(Rig& rig, std::size_t spare) : rig_(rig) {
    if (rig.sim() != nullptr) {
      rig.sim()->set_descriptors_max(rig.world().open_descriptors() + spare);
      return;
    }
    for (int fd; (fd = ::dup(STDIN_FILENO)) >= 0;) hoard_.emplace_back(fd);
    hoard_.resize(hoard_.size() - spare);
  }
  ~FewDescriptors() {
    if (rig_.sim() != nullptr) rig_.sim()->set_descriptors_max(SIZE_MAX);
  }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

 private:
  Rig& rig_;
  std::vector<Fd> hoard_;
};

/// This process's ends of pipes.
std::set<int> pipe_ends() {
  std::set<int> ends;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry, gone).string().starts_with("pipe:"))
      ends.insert(std::stoi(entry.path().filename()));
  }
  return ends;
}

/// Connections whose clients send without end.
std::vector<Rig::Pair> open_bulk(Rig& rig, int count) {
  std::vector<Rig::Pair> streams;
  for (int i = 0; i < count; ++i) streams.push_back(rig.open());
  for (const Rig::Pair& stream : streams) stream.client.send_pattern(1, UINT64_MAX);
  for (const Rig::Pair& stream : streams) stream.guest.expect_pattern(1);
  return streams;
}

TEST_P(RelayLimits, AcceptingPausesWithoutDescriptorsAndContinuesWhenThereAreSome) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  client.send("patience");
  {
    const FewDescriptors none(rig, 0);
    ASSERT_TRUE(rig.run_until([&] { return rig.counters().accept_pauses.get() > 0; }));
    EXPECT_TRUE(rig.worker_sleeps()) << "it must not try again and again";
    EXPECT_FALSE(client.ended()) << "the client waits in the backlog";
  }
  Peer& guest = rig.accept();
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "patience"; }));
}

// Each listener that got clients meanwhile postponed the retry of all of them: if many came one after the
// other, the first one waited for ever.
TEST_P(RelayLimitsSimulated, ClientsThatComeWhileAcceptingPausesDoNotPutOffTheOthers) {
  Rig rig(GetParam());
  std::vector<Endpoint> entries;
  for (int i = 0; i < 10; ++i) entries.push_back(rig.add_listener());
  const Nanos began = rig.world().now();
  {
    const FewDescriptors none(rig, 0);
    rig.connect_to(entries.front());
    rig.pass_time(30ms);
    EXPECT_EQ(rig.counters().accept_pauses.get(), 1u);
  }
  for (std::size_t i = 1; i < entries.size(); ++i) {
    rig.connect_to(entries[i]);
    rig.pass_time(60ms);
  }
  EXPECT_EQ(rig.counters().accept_pauses.get(), 1u);
  const std::vector<LiveConnection> live = rig.connections();
  ASSERT_EQ(live.size(), entries.size());
  EXPECT_GT(live.front().age, rig.world().now() - began - 150ms) << "it was accepted 100 ms after it came";
}

TEST_P(RelayLimits, AcceptingContinuesAsSoonAsAConnectionHasEnded) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  Peer& second = rig.connect();
  const FewDescriptors none(rig, 0);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().accept_pauses.get() > 0; }));
  client.reset();
  guest.reset();
  EXPECT_TRUE(rig.run_until([&] { return rig.stats().connections_accepted == 2; }));
  rig.settle();
  EXPECT_FALSE(second.ended());
}

// In a full memory cgroup, a pipe takes less than it has room for, and the rest was lost. Here the test
// takes away its room behind the relay's back.
TEST_P(RelayLimitsOfKernel, APipeThatTakesLessThanItHasRoomForLosesNothing) {
  const std::set<int> others = pipe_ends();
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  Peer& other_client = rig.connect();
  Peer& other_guest = rig.accept();
  std::string sent = "this needs a pipe at hand";
  client.send(sent);
  ASSERT_TRUE(rig.run_until([&, &guest = guest] { return guest.received() == sent; }));
  for (const int fd : pipe_ends()) {
    if (!others.contains(fd)) {
      ASSERT_EQ(::fcntl(fd, F_SETPIPE_SZ, 4096), 4096);
    }
  }
  guest.socket().set_buffers(16 * kKiB);
  guest.pause();
  Pattern pattern(1);
  std::string message(32 * kKiB, '\0');  // not enough of them at once for splicing
  while (rig.counters().pipe_writes_short.get() == 0) {
    pattern.fill(message);
    client.send(message);
    sent += message;
    rig.turn();
    ASSERT_LT(sent.size(), 64 * kMiB);
  }
  // The others progress meanwhile.
  other_client.send_pattern(2, 4 * kMiB);
  other_guest.expect_pattern(2);
  EXPECT_TRUE(
      rig.run_until([&, &other_guest = other_guest] { return other_guest.received_bytes() == 4 * kMiB; }));
  EXPECT_TRUE(other_guest.intact());
  guest.resume();
  EXPECT_TRUE(rig.run_until([&, &guest = guest] { return guest.received_bytes() >= sent.size(); }));
  EXPECT_TRUE(guest.received() == sent);
}

TEST_P(RelayLimits, AClientIsResetWhereNoDescriptorIsLeftForItsGuest) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  const FewDescriptors one(rig, 1);
  ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
  EXPECT_TRUE(client.was_reset());
  EXPECT_EQ(rig.stats().connect_errors[static_cast<std::size_t>(ConnectError::kResources)], 1u);
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kConnectError), 1u);
}

TEST_P(RelayLimits, ConnectionsBeyondTheLimitAreResetAndCounted) {
  Rig rig(GetParam(), {.connections_max = 4});
  std::vector<Rig::Pair> pairs;
  for (int i = 0; i < 4; ++i) pairs.push_back(rig.open());
  for (std::uint64_t i = 1; i <= 3; ++i) {
    Peer& excess = rig.connect();
    ASSERT_TRUE(rig.run_until([&] { return excess.ended(); }));
    EXPECT_TRUE(excess.was_reset());
    const auto reason = static_cast<std::size_t>(RejectReason::kConnectionsMax);
    EXPECT_EQ(rig.counters().rejected[reason].get(), i);
    EXPECT_EQ(rig.stats().rejected[reason], i);
  }
  EXPECT_EQ(rig.stats().connections_active, 4u);
  EXPECT_EQ(rig.stats().connections_accepted, 4u);

  pairs[0].client.shutdown_write();
  pairs[0].guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 3; }));
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send("room again");
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "room again"; }));
}

TEST_P(RelayLimitsSimulated, TheBufferTowardsTheGuestGrowsForAFastClientOnly) {
  Rig rig(GetParam(), {});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  EXPECT_EQ(rig.sim()->last_receive_buffer(), 96 * 1024);
  guest.send_pattern(1, 256 * kMiB);
  ASSERT_TRUE(rig.run_until([&, &client = client] { return client.received_bytes() >= 16 * kMiB; }));
  EXPECT_EQ(rig.sim()->last_receive_buffer(), 1024 * 1024);
  // From now on 16 KiB a millisecond: 160 KiB in the 10 ms that may wait.
  client.set_read_size(16 * kKiB);
  const std::uint64_t target = client.received_bytes() + 8 * kMiB;
  while (client.received_bytes() < target) {
    client.pause();
    const Nanos next = rig.world().now() + 1ms;
    rig.run_until([&] { return rig.world().now() >= next; });
    client.resume();
    rig.turn();
  }
  EXPECT_LT(rig.sim()->last_receive_buffer(), 400 * 1024);
  client.reset();
}

TEST_P(RelayLimitsSimulated, TheBufferTowardsTheClientGrowsForAGuestThatTakesMuch) {
  Rig rig(GetParam(), {});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send_pattern(1, 256 * kMiB);
  ASSERT_TRUE(rig.run_until([&, &guest = guest] { return guest.received_bytes() >= 64 * kKiB; }));
  EXPECT_EQ(rig.sim()->last_receive_buffer(), 256 * 1024);
  ASSERT_TRUE(rig.run_until([&, &guest = guest] { return guest.received_bytes() >= 16 * kMiB; }));
  EXPECT_GT(rig.sim()->last_receive_buffer(), 900 * 1024);
  guest.pause();
  const std::uint64_t taken = rig.moved_bytes();
  const Nanos later = rig.world().now() + 1s;
  rig.run_until([&] { return rig.world().now() >= later; });
  EXPECT_LT(rig.moved_bytes() - taken, kMiB);
  EXPECT_GT(rig.sim()->last_receive_buffer(), 900 * 1024);
  client.reset();
}

TEST_P(RelayLimitsSimulated, HalfClosedConnectionsGetTwoMinutesWhereConnectionsAreShort) {
  const FairShare share(16, 75);
  Rig rig(GetParam(), {.share = &share});
  std::vector<Rig::Pair> pairs;
  for (int i = 0; i < 8; ++i) {
    pairs.push_back(rig.open());
    if (i > 0) pairs.back().client.shutdown_write();
  }
  rig.pass_time(110s);
  EXPECT_EQ(rig.stats().connections_active, 8u);
  pairs[1].guest.send("still busy");
  ASSERT_TRUE(rig.run_until([&] { return pairs[1].client.received() == "still busy"; }));
  rig.pass_time(20s);
  EXPECT_LT(rig.stats().connections_active, 8u);
  EXPECT_FALSE(pairs[0].client.ended()) << "it is not half-closed";
  EXPECT_FALSE(pairs[1].client.ended()) << "bytes have moved";
  // The fewer are left, the longer they may stay.
  rig.pass_time(300s);
  EXPECT_GT(rig.stats().connections_active, 2u);
  EXPECT_GT(rig.closed(CloseSide::kNode, CloseHow::kHalfCloseTimeout), 0u);
}

TEST_P(RelayLimitsSimulated, HalfClosedConnectionsThatMoveBytesCostNoTurnsOfTheirOwn) {
  const FairShare share(1024, 75);
  Rig rig(GetParam(), {.connections_max = 400, .share = &share});
  std::vector<Rig::Pair> pairs;
  for (int i = 0; i < 300; ++i) {
    pairs.push_back(rig.open());
    pairs.back().client.shutdown_write();
  }
  const Nanos end = rig.world().now() + 5s;
  int turns = 0;
  for (Nanos next = rig.world().now(); rig.world().now() < end && turns < 100'000; ++turns) {
    if (rig.world().now() >= next) {
      for (const Rig::Pair& pair : pairs) pair.guest.send("x");
      next = rig.world().now() + 500ms;
    }
    rig.turn();
  }
  EXPECT_LT(turns, 20'000);
  EXPECT_EQ(rig.stats().connections_active, 300u);
}

// It was ended a few milliseconds after its FIN, which came after an hour of silence.
TEST_P(RelayLimitsSimulated, TheTimeOfAHalfClosedConnectionBeginsWithItsFin) {
  Rig rig(GetParam(), {.connections = {.config = {.half_close_timeout = 3600s, .idle_timeout = 0s}}});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send("question");
  ASSERT_TRUE(rig.run_until([&, &guest = guest] { return guest.received() == "question"; }));
  rig.pass_time(7200s);
  client.shutdown_write();
  rig.pass_time(10s);
  guest.send("answer");
  EXPECT_TRUE(rig.run_until([&, &client = client] { return client.received() == "answer"; }));
  rig.pass_time(3605s);
  EXPECT_TRUE(client.ended());
}

TEST_P(RelayLimitsSimulated, OneThatTricklesDoesNotShieldThoseBehindIt) {
  const FairShare share(16, 75);
  Rig rig(GetParam(), {.share = &share});
  std::vector<Rig::Pair> pairs;
  for (int i = 0; i < 8; ++i) {
    pairs.push_back(rig.open());
    pairs.back().client.shutdown_write();
  }
  // The one that has been half-closed for longest sends a byte every 90 s.
  const Nanos end = rig.world().now() + 250s;
  Nanos next = rig.world().now();
  rig.run_until(
      [&] {
        if (rig.world().now() >= next) {
          pairs[0].guest.send("x");
          next = rig.world().now() + 90s;
        }
        return rig.world().now() >= end;
      },
      251s);
  EXPECT_FALSE(pairs[0].client.ended());
  EXPECT_GT(rig.closed(CloseSide::kNode, CloseHow::kHalfCloseTimeout), 0u);
}

// Each of them was checked every 4 ms: 300 took 3 % of a processor, 10,000 all of it.
TEST_P(RelayLimitsSimulated, ResetsThatWaitForReadersAreAskedForLessAndLess) {
  Rig rig(GetParam());
  std::vector<Rig::Pair> pairs;
  for (int i = 0; i < 100; ++i) {
    pairs.push_back(rig.open());
    pairs.back().client.socket().set_buffers(64 * kKiB);
    pairs.back().client.pause();
    pairs.back().guest.send_pattern(1, 200 * kKiB);
  }
  const auto arrived = [](const Rig::Pair& pair) { return pair.guest.all_arrived(); };
  ASSERT_TRUE(rig.run_until([&] { return std::ranges::all_of(pairs, arrived); }));
  for (const Rig::Pair& pair : pairs) pair.guest.reset();
  rig.settle();
  const std::uint64_t before = rig.sim()->asked_unacknowledged();
  const Nanos end = rig.world().now() + 8s;
  rig.run_until([&] { return rig.world().now() >= end; });
  EXPECT_LT(rig.sim()->asked_unacknowledged() - before, 100 * 80U);
  EXPECT_EQ(rig.stats().connections_active, 100u);
  pairs[0].client.resume();
  const Nanos resumed = rig.world().now();
  ASSERT_TRUE(rig.run_until([&] { return pairs[0].client.was_reset(); }));
  EXPECT_LE(rig.world().now() - resumed, 300ms);
  EXPECT_EQ(pairs[0].client.received_bytes(), 200 * kKiB);
}

TEST_P(RelayLimits, AThousandConnectionsOneAfterAnotherLeaveNothing) {
  Rig rig(GetParam(), {.connections_max = 2});
  for (int i = 0; i < 1000; ++i) {
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    guest.echo();
    client.send("hello");
    client.shutdown_write();
    ASSERT_TRUE(rig.run_until([&] { return client.eof(); })) << i;
    EXPECT_EQ(client.received(), "hello");
    rig.drop(client);
    rig.drop(guest);
    ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 0; }));
  }
  EXPECT_EQ(rig.closed(CloseSide::kClient, CloseHow::kFin), 1000u);
}

// --- Fairness.

TEST_P(RelayLimits, OneBulkStreamTakesNoMoreThanItsBudgetBetweenTwoTurnsOfTheOthers) {
  // The simulated network is so fast that there is always more to move than the budget.
  Rig rig(GetParam(),
          {.network = {
               .latency = 1us, .receive_buffer = 16 * kMiB, .send_buffer = 16 * kMiB, .segment = 64 * kKiB}});
  const Rig::Pair bulk = open_bulk(rig, 1).front();
  std::vector<Rig::Pair> pingers;
  for (int i = 0; i < 10; ++i) {
    pingers.push_back(rig.open());
    pingers.back().guest.echo();
  }
  constexpr std::uint64_t kMoved = kRelayBudgetBytes + PipePool::kPipeSize;  // the last move may go beyond
  for (std::size_t round = 1; round <= 50; ++round) {
    for (const Rig::Pair& pinger : pingers) pinger.client.send("x");
    int turns = 0;
    const auto answered = [&](const Rig::Pair& pinger) { return pinger.client.received_bytes() == round; };
    while (!std::ranges::all_of(pingers, answered)) {
      for (int i = 0; i < 4; ++i) bulk.client.pump();  // more than the budget is always there
      const std::uint64_t before = rig.stats().received_bytes;
      rig.turn();
      for (int i = 0; i < 4; ++i) bulk.guest.pump();
      ++turns;
      ASSERT_LE(rig.stats().received_bytes - before, kMoved + pingers.size());
      ASSERT_LT(turns, 1000);
    }
    // A ping takes one turn each way, and the wire may cost one more each time.
    if (GetParam() == Backend::kSim) {
      EXPECT_LE(turns, 6);
    }
  }
  if (GetParam() == Backend::kSim) {
    EXPECT_GT(bulk.guest.received_bytes(), 50 * kRelayBudgetBytes / 2) << "the bulk stream did not press";
  }
  EXPECT_TRUE(bulk.guest.intact());
  bulk.client.reset();
}

TEST_P(RelayLimits, ATurnMovesOneBudgetHoweverManyStreamsWantIt) {
  Rig rig(GetParam(),
          {.network = {
               .latency = 1us, .receive_buffer = 16 * kMiB, .send_buffer = 16 * kMiB, .segment = 64 * kKiB}});
  const std::vector<Rig::Pair> streams = open_bulk(rig, 8);
  // The last move of each may go beyond its share.
  const std::uint64_t moved_max = kRelayBudgetBytes + streams.size() * PipePool::kPipeSize;
  std::uint64_t before = 0;
  while (before < 64 * kMiB) {
    for (const Rig::Pair& stream : streams) stream.client.pump();
    rig.turn();
    const std::uint64_t moved = rig.stats().received_bytes - before;
    ASSERT_LE(moved, moved_max);
    before += moved;
    for (const Rig::Pair& stream : streams) stream.guest.pump();
  }
  for (const Rig::Pair& stream : streams) {
    EXPECT_TRUE(stream.guest.intact());
    stream.client.reset();
  }
}

TEST_P(RelayLimits, ManyBulkStreamsTakeTurnsInMovesThatFillAPipe) {
  // Giving each a small share of every turn cost 1.5 times the processor time per byte.
  Rig rig(GetParam(),
          {.network = {
               .latency = 1us, .receive_buffer = 16 * kMiB, .send_buffer = 16 * kMiB, .segment = 64 * kKiB}});
  const std::vector<Rig::Pair> streams = open_bulk(rig, 16);
  const auto lags = [](const Rig::Pair& stream) { return stream.guest.received_bytes() < 8 * kMiB; };
  int turns = 0;
  while (std::ranges::any_of(streams, lags)) {
    for (const Rig::Pair& stream : streams) stream.client.pump();
    rig.turn();
    for (const Rig::Pair& stream : streams) stream.guest.pump();
    ASSERT_LT(++turns, 10'000) << "a stream does not get its turn";
  }
  for (const Rig::Pair& stream : streams) {
    EXPECT_TRUE(stream.guest.intact());
    stream.client.reset();
  }
}

TEST_P(RelayLimits, BulkStreamsContinueBesideMessagesThatFillATurn) {
  Rig rig(GetParam(), {.network = {.latency = 1us, .receive_buffer = 16 * kMiB, .send_buffer = 16 * kMiB}});
  const Rig::Pair bulk = open_bulk(rig, 1).front();
  ASSERT_TRUE(rig.run_until([&] { return bulk.guest.received_bytes() > 4 * kMiB; }));
  std::vector<Rig::Pair> others;
  for (int i = 0; i < 40; ++i) {
    others.push_back(rig.open());
    others.back().guest.echo();
  }
  const std::string message(32 * kKiB, 'x');
  const std::uint64_t before = bulk.guest.received_bytes();
  for (std::size_t round = 1; bulk.guest.received_bytes() < before + 1 * kMiB; ++round) {
    ASSERT_LT(round, 1000U) << "the stream starves";
    for (const Rig::Pair& other : others) other.client.send(message);
    ASSERT_TRUE(rig.run_until([&] {
      return std::ranges::all_of(others, [&](const Rig::Pair& other) {
        return other.client.received_bytes() == round * message.size();
      });
    }));
  }
  EXPECT_TRUE(bulk.guest.intact());
  bulk.client.reset();
}

// Streams that had to wait should go first in the next turn, but their order was shuffled.
TEST_P(RelayLimitsSimulated, StreamsBesideMessagesTakeTheirTurnsInOrder) {
  Rig rig(GetParam(),
          {.network = {
               .latency = 1us, .receive_buffer = 1 * kMiB, .send_buffer = 1 * kMiB, .segment = 64 * kKiB}});
  const std::vector<Rig::Pair> streams = open_bulk(rig, 64);
  std::vector<Rig::Pair> pingers;
  for (int i = 0; i < 64; ++i) {
    pingers.push_back(rig.open());
    pingers.back().guest.echo();
  }
  const auto spliced = [](const Rig::Pair& stream) { return stream.guest.received_bytes() > kMiB; };
  ASSERT_TRUE(rig.run_until([&] { return std::ranges::all_of(streams, spliced); }));
  std::vector<std::uint64_t> moved(streams.size());
  std::vector<int> moved_at(streams.size());
  int longest = 0;
  for (int turn = 0; turn < 500; ++turn) {
    for (const Rig::Pair& pinger : pingers) pinger.client.send("x");
    for (const Rig::Pair& stream : streams) stream.client.pump();
    rig.turn();
    for (std::size_t i = 0; i < streams.size(); ++i) {
      streams[i].guest.pump();
      if (const std::uint64_t now = streams[i].guest.received_bytes(); now != moved[i]) {
        moved[i] = now;
        moved_at[i] = turn;
      }
      longest = std::max(longest, turn - moved_at[i]);
    }
  }
  EXPECT_LE(longest, 4) << "turns that a stream had to wait";
  const auto [least, most] = std::ranges::minmax(moved);
  EXPECT_LT(most, 2 * least);
  for (const Rig::Pair& stream : streams) {
    EXPECT_TRUE(stream.guest.intact());
    stream.client.reset();
  }
}

TEST_P(RelayLimits, BulkStreamsShareAlike) {
  Rig rig(GetParam(), {.network = {.latency = 1us, .receive_buffer = 16 * kMiB, .send_buffer = 16 * kMiB}});
  const std::vector<Rig::Pair> pairs = open_bulk(rig, 4);
  ASSERT_TRUE(rig.run_until([&] {
    return std::ranges::any_of(pairs,
                               [](const Rig::Pair& pair) { return pair.guest.received_bytes() > 32 * kMiB; });
  }));
  for (const Rig::Pair& pair : pairs) {
    EXPECT_GT(pair.guest.received_bytes(), 8 * kMiB);
    pair.client.reset();
  }
}

}  // namespace
}  // namespace portway::test
