// Guests that answer nothing, and guests that only seem to: the relay gives up on a machine that is gone
// in time, but not on one that is paused or keeps its window closed.
#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <string>

#include "tests/proxy/relay_suite.h"
#include "tests/support/network.h"

namespace portway::test {
namespace {

// The kernel's own timers run here: what must not happen within seconds takes seconds to show.
using RelaySilence = RelaySuite;
INSTANTIATE_TEST_SUITE_P(Relay, RelaySilence, testing::Values(Backend::kUring, Backend::kEpoll),
                         backend_name);
using RelaySilenceSimulated = RelaySuite;
INSTANTIATE_TEST_SUITE_P(Relay, RelaySilenceSimulated, testing::Values(Backend::kSim), backend_name);

constexpr ConnectionOptions kSoon{.config = {.keepalive = 1s, .user_timeout = 1s}};

/// Sends until the guest, which does not read, has closed its window.
std::uint64_t fill(Rig& rig, const Rig::Pair& pair) {
  pair.guest.socket().set_buffers(16 * kKiB);
  pair.guest.pause();
  pair.client.send_pattern(1, 16 * kMiB);
  pair.guest.expect_pattern(1);
  rig.settle();
  return 16 * kMiB;
}

void expect_lost(Rig& rig) {
  ASSERT_TRUE(rig.run_until([&] { return !rig.records().empty(); }));
  EXPECT_EQ(rig.records().front().cause, (CloseCause{CloseSide::kGuest, CloseHow::kKeepaliveTimeout}));
  EXPECT_EQ(rig.records().front().error, ETIMEDOUT);
}

// TCP_USER_TIMEOUT counts from when the window was closed, whatever the guest answers.
TEST_P(RelaySilence, AGuestThatAnswersAndReadsNothingIsNotGivenUp) {
  Rig rig(GetParam(), {.connections = kSoon});
  const Rig::Pair pair = rig.open();
  const std::uint64_t bytes = fill(rig, pair);
  rig.pass_time(4s);
  ASSERT_TRUE(rig.records().empty()) << to_string(rig.records().front().cause.how);
  pair.guest.resume();
  EXPECT_TRUE(rig.run_until([&] { return pair.guest.received_bytes() == bytes; }));
  EXPECT_TRUE(pair.guest.intact());
}

TEST_P(RelaySilence, AClientThatAnswersAndReadsNothingIsNotGivenUp) {
  Rig rig(GetParam(), {.connections = kSoon});
  const Rig::Pair pair = rig.open();
  pair.client.socket().set_buffers(16 * kKiB);
  pair.client.pause();
  pair.guest.send_pattern(1, 16 * kMiB);
  rig.pass_time(3s);
  EXPECT_TRUE(rig.records().empty());
  pair.client.resume();
  EXPECT_TRUE(rig.run_until([&] { return pair.client.received_bytes() == 16 * kMiB; }));
}

TEST_P(RelaySilence, AGuestThatIsGoneWithItsWindowClosedIsGivenUp) {
  Rig rig(GetParam(), {.connections = kSoon});
  const Rig::Pair pair = rig.open();
  fill(rig, pair);
  pair.guest.socket().fall_silent();
  expect_lost(rig);
}

TEST_P(RelaySilence, AGuestThatIsGoneAndOwesAnAnswerIsGivenUp) {
  Rig rig(GetParam(), {.connections = kSoon});
  const Rig::Pair pair = rig.open();
  pair.guest.socket().fall_silent();
  const Nanos sent = rig.world().now();
  pair.client.send("hello?");
  expect_lost(rig);
  EXPECT_GE(rig.world().now() - sent, 1s);
}

/// In a namespace where keepalive probes once a second, and one failed probe is enough.
void with_quick_keepalive(const std::function<void()>& test) {
  const NetworkNamespace network;
  network.set("net/ipv4/tcp_keepalive_intvl", "1");
  network.set("net/ipv4/tcp_keepalive_probes", "1");
  network.run(test);
}

// A paused machine answers no keepalive probe; under DNAT nobody probes it.
TEST_P(RelaySilence, AGuestThatIsPausedKeepsItsIdleConnections) {
  PORTWAY_NEEDS(why_no_namespaces());
  with_quick_keepalive([] {
    Rig rig(GetParam(), {.connections = kSoon});
    const Rig::Pair pair = rig.open();
    pair.guest.socket().fall_silent();
    rig.pass_time(5s);
    ASSERT_TRUE(rig.records().empty()) << to_string(rig.records().front().cause.how);
    pair.guest.socket().answer_again();
    pair.client.send("there again");
    EXPECT_TRUE(rig.run_until([&] { return pair.guest.received() == "there again"; }));
  });
}

// The guest has forgotten the connection. The client would never notice: the node answers its keepalive.
TEST_P(RelaySilence, AGuestThatWasStartedAgainIsAskedAndAnswersWithReset) {
  PORTWAY_NEEDS(why_no_namespaces());
  Rig rig(GetParam(), {.connections = kSoon});
  const Rig::Pair pair = rig.open();
  pair.guest.forget();
  EXPECT_TRUE(rig.run_until([&] { return pair.client.was_reset(); }));
  EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kReset), 1u);
}

TEST_P(RelaySilenceSimulated, ItTakesTheConfiguredTimeOfSilence) {
  Rig rig(GetParam());
  const Rig::Pair pair = rig.open();
  rig.pass_time(1h);
  pair.guest.socket().set_buffers(16 * kKiB);
  pair.guest.pause();
  pair.client.send_pattern(1, 16 * kMiB);
  rig.settle();
  rig.pass_time(1h);
  ASSERT_TRUE(rig.records().empty()) << "it has answered all the time";
  const Nanos silent = rig.world().now();
  rig.sim()->set_silent_since(silent);
  ASSERT_TRUE(rig.run_until([&] { return !rig.records().empty(); }, 1h));
  expect_lost(rig);
  const Nanos took = rig.world().now() - silent;
  EXPECT_GE(took, 900s);
  EXPECT_LE(took, 970s);
}

// Each byte from the client would postpone the end of a guest that is gone.
TEST_P(RelaySilenceSimulated, WhatIsSentMeanwhileDoesNotCount) {
  Rig rig(GetParam());
  const Rig::Pair pair = rig.open();
  pair.guest.socket().set_buffers(64 * kKiB);
  pair.guest.pause();
  pair.client.send(std::string(256 * kKiB, 'x'));
  rig.settle();
  const Nanos silent = rig.world().now();
  rig.sim()->set_silent_since(silent);
  while (rig.records().empty() && rig.world().now() - silent < 1h) {
    pair.client.send("x");
    rig.pass_time(10s);
  }
  expect_lost(rig);
  EXPECT_LE(rig.world().now() - silent, 980s);
}

TEST_P(RelaySilenceSimulated, AnAnswerNowAndThenIsEnough) {
  Rig rig(GetParam());
  const Rig::Pair pair = rig.open();
  pair.guest.socket().set_buffers(16 * kKiB);
  pair.guest.pause();
  pair.client.send_pattern(1, 16 * kMiB);
  for (int i = 0; i < 20; ++i) {
    rig.sim()->set_silent_since(rig.world().now());
    rig.pass_time(800s);
  }
  EXPECT_TRUE(rig.records().empty());
}

}  // namespace
}  // namespace portway::test
