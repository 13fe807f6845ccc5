// What the relay does when calls fail and when the kernel uses its freedom, in the simulator.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <ostream>
#include <string>

#include "tests/proxy/harness.h"

namespace portway::test {
namespace {

using namespace std::chrono_literals;
using Call = SimIo::Call;

constexpr std::uint64_t kKiB = 1024;
constexpr std::uint64_t kMiB = 1024 * kKiB;

struct Failure {
  std::string name;
  Call call;
  int error;
  std::uint64_t times = 1;
};
std::ostream& operator<<(std::ostream& out, const Failure& failure) {
  return out << failure.name;
}

class RelayFaults : public testing::TestWithParam<Failure> {};

INSTANTIATE_TEST_SUITE_P(Relay, RelayFaults,
                         testing::Values(Failure{"AcceptEmfile", Call::kAccept, EMFILE},
                                         Failure{"AcceptEnfileForLong", Call::kAccept, ENFILE, 5},
                                         Failure{"AcceptAborted", Call::kAccept, ECONNABORTED},
                                         Failure{"PollEnomem", Call::kPoll, ENOMEM},
                                         Failure{"SocketEmfile", Call::kSocket, EMFILE},
                                         Failure{"ConnectWithoutRoute", Call::kConnect, ENETUNREACH},
                                         Failure{"ConnectWithoutPorts", Call::kConnect, EADDRNOTAVAIL},
                                         Failure{"TapIsGone", Call::kBindToDevice, ENODEV},
                                         Failure{"RecvEnomem", Call::kRecv, ENOMEM},
                                         Failure{"SendEnobufs", Call::kSend, ENOBUFS},
                                         Failure{"SpliceEnomem", Call::kSplice, ENOMEM},
                                         Failure{"PipeEnfile", Call::kPipe, ENFILE},
                                         Failure{"PipeEnfileForLong", Call::kPipe, ENFILE, 1000},
                                         Failure{"PipeWriteEnomem", Call::kWrite, ENOMEM},
                                         Failure{"PipeWriteEnomemForLong", Call::kWrite, ENOMEM, 1000}),
                         [](const auto& failure) { return failure.param.name; });

/// A client and, if the connection gets that far, a guest, which send each other this much and end.
class Exchange {
 public:
  Exchange(Rig& rig, std::uint64_t seed, std::uint64_t bytes)
      : rig_(rig), seed_(seed), bytes_(bytes), client_(rig.connect()) {
    client_.send_pattern(seed, bytes);
    client_.expect_pattern(seed + 1);
    client_.shutdown_write();
  }

  /// Runs until both have seen an end.
  void run() {
    EXPECT_TRUE(rig_.run_until([this] {
      if (guest_ == nullptr && (guest_ = rig_.try_accept()) != nullptr) {
        guest_->send_pattern(seed_ + 1, bytes_);
        guest_->expect_pattern(seed_);
        guest_->shutdown_write();
      }
      return client_.ended() && (guest_ == nullptr || guest_->ended());
    })) << "somebody waits for ever";
    // An end without an error means that everything arrived.
    EXPECT_TRUE(client_.intact());
    if (client_.eof()) {
      EXPECT_EQ(client_.received_bytes(), bytes_);
    }
    if (guest_ == nullptr) return;
    EXPECT_TRUE(guest_->intact());
    if (guest_->eof()) {
      EXPECT_EQ(guest_->received_bytes(), bytes_);
    }
  }

  bool succeeded() const { return client_.eof() && guest_ != nullptr && guest_->eof(); }

 private:
  Rig& rig_;
  const std::uint64_t seed_;
  const std::uint64_t bytes_;
  Peer& client_;
  Peer* guest_ = nullptr;
};

// One call fails, each in turn, until there are no more calls.
TEST_P(RelayFaults, WhicheverCallFailsNothingLeaksAndNoEndIsALie) {
  const Failure& failure = GetParam();
  bool failed = true;
  std::uint64_t nth = 1;
  std::uint64_t unharmed = 0;
  for (; failed && !HasFailure(); ++nth) {
    SCOPED_TRACE(failure.name + " at call " + std::to_string(nth));
    Rig rig(Backend::kSim, {.device = 7, .network = {.receive_buffer = 32 * kKiB, .send_buffer = 32 * kKiB}});
    rig.sim()->fail(failure.call, nth, failure.error, failure.times);
    Exchange small(rig, 1, 100);
    small.run();
    Exchange bulk(rig, 3, 1 * kMiB);
    bulk.run();
    failed = rig.sim()->failed(failure.call);
    if (small.succeeded() && bulk.succeeded()) ++unharmed;
    if (!failed) {
      EXPECT_TRUE(small.succeeded() && bulk.succeeded());
    }
    // These do not end a connection.
    if (failure.call == Call::kAccept || failure.call == Call::kPipe || failure.call == Call::kWrite) {
      EXPECT_TRUE(small.succeeded() && bulk.succeeded());
    }
  }
  EXPECT_GT(nth, 2u) << "the call was never made";
  EXPECT_GT(unharmed, 0u);
}

TEST(RelayFaultCauses, WantOfMemoryIsTheNodesAndNoPeersReset) {
  for (const int error : {ENOMEM, ENOBUFS}) {
    Rig rig(Backend::kSim);
    const auto [client, guest] = rig.open();
    rig.sim()->fail(Call::kRecv, 1, error);
    client.send("hello");
    EXPECT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 0; }));
    EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kResources), 1u);
  }
}

// The direction to the guest had ended, the one to the client continued, and neither end noticed.
TEST(RelayFaultCauses, WantOfMemoryForASendEndsTheConnection) {
  for (const Call call : {Call::kSend, Call::kSplice}) {
    Rig rig(Backend::kSim);
    const auto [client, guest] = rig.open();
    client.send_pattern(1, 1 * kMiB);
    ASSERT_TRUE(rig.run_until([&, &guest = guest] { return guest.received_bytes() == 1 * kMiB; }));
    // A bulk stream's first splice is into the pipe, the second one out of it.
    rig.sim()->fail(call, call == Call::kSend ? 1 : 2, ENOBUFS);
    if (call == Call::kSend) {
      guest.send("hello");
    } else {
      client.send_pattern(1, 1 * kMiB);
    }
    EXPECT_TRUE(rig.run_until(
        [&, &client = client, &guest = guest] { return client.was_reset() && guest.was_reset(); }));
    EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kResources), 1u);
  }
}

// Bytes that were peeked at and sent, but could then not be read, would have been sent twice.
TEST(RelayFaultCauses, BytesThatWereSentAndCannotBeTakenOutEndTheConnection) {
  Rig rig(Backend::kSim, {.pipes_max = 0});
  const auto [client, guest] = rig.open();
  client.send("first");
  ASSERT_TRUE(rig.run_until([&, &guest = guest] { return guest.received() == "first"; }));
  rig.sim()->fail_taking_out(ENOMEM);
  client.send("second");
  EXPECT_TRUE(rig.run_until(
      [&, &client = client, &guest = guest] { return client.was_reset() && guest.was_reset(); }));
  EXPECT_EQ(guest.received(), "firstsecond");
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kResources), 1u);
}

// Its reader does not read: it would keep the spare buffer for ever.
TEST(RelayFaultCauses, WhatAPipeDidNotTakeGoesThereWhenThereIsMemoryAgain) {
  Rig rig(Backend::kSim, {.network = {.receive_buffer = 8 * kKiB, .send_buffer = 8 * kKiB}});
  const auto [client, guest] = rig.open();
  const auto [other_client, other_guest] = rig.open();
  guest.pause();
  rig.sim()->fail(Call::kWrite, 1, ENOMEM, 2);
  client.send_pattern(1, 256 * kKiB);
  guest.expect_pattern(1);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().pipe_writes_short.get() == 1; }));
  EXPECT_EQ(rig.sim()->piped_bytes(), 0u);
  for (int i = 0; i < 4 && rig.sim()->piped_bytes() == 0; ++i) {
    rig.pass_time(500ms);
    other_client.send("x");
    rig.settle();
  }
  EXPECT_GT(rig.sim()->piped_bytes(), 0u);
  guest.resume();
  EXPECT_TRUE(rig.run_until([&, &guest = guest] { return guest.received_bytes() == 256 * kKiB; }));
  EXPECT_TRUE(guest.intact());
}

TEST(RelayFaultCauses, AGuestThatResetsBeforeItsProxyHeaderIsTheOneThatDid) {
  for (const int error : {ECONNRESET, EPIPE}) {
    Rig rig(Backend::kSim, {.source = SourcePlan::kProxyV2});
    rig.sim()->fail(Call::kSend, 1, error);
    Peer& client = rig.connect();
    EXPECT_TRUE(rig.run_until([&] { return client.was_reset(); }));
    EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kReset), 1u);
  }
}

TEST(RelayRoughDay, EverythingArrivesHoweverTheKernelUsesItsFreedom) {
  for (std::uint64_t seed = 1; seed <= 50 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rig rig(Backend::kSim,
            {.network = {.jitter = 200us, .segment = 1448, .seed = seed}, .faults = SimFaults::all()});
    Exchange exchange(rig, seed, 256 * kKiB);
    exchange.run();
    EXPECT_TRUE(exchange.succeeded());
  }
}

TEST(RelayRoughDay, EverythingArrivesThroughPipesOfTwoPages) {
  for (const std::size_t slots : {1, 2, 16}) {
    Rig rig(Backend::kSim, {.faults = SimFaults::all()});
    rig.sim()->set_pipe_slots_max(slots);
    Exchange exchange(rig, slots, 1 * kMiB);
    exchange.run();
    EXPECT_TRUE(exchange.succeeded());
    EXPECT_GT(rig.counters().pipes_clamped.get(), 0u);
  }
}

TEST(RelayRoughDay, AReaderThatNeverReadsDoesNotHoldAResetConnectionForEver) {
  for (const std::uint64_t bytes : {64 * kKiB, 200 * kKiB, 16 * kMiB}) {
    Rig rig(Backend::kSim);
    const auto [client, guest] = rig.open();
    guest.socket().set_buffers(32 * kKiB);
    guest.pause();
    client.send_pattern(1, bytes);
    rig.settle();
    client.reset();
    EXPECT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 0; })) << bytes;
    EXPECT_EQ(rig.closed(CloseSide::kClient, CloseHow::kReset), 1u);
  }
}

TEST(RelayRoughDay, AGuestThatVanishesFromTheNetworkWhileItIsCalledIsUnreachable) {
  Rig rig(Backend::kSim, {.guest = GuestAnswer::kUnreachable});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
  EXPECT_TRUE(client.was_reset());
  EXPECT_EQ(rig.stats().connect_errors[static_cast<std::size_t>(ConnectError::kUnreachable)], 1u);
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kConnectError), 1u);
}

}  // namespace
}  // namespace portway::test
