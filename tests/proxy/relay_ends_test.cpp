// The relay suite: how connections begin and end. A FIN is passed on as FIN, a RST as RST, each after what
// came before it, and a guest that cannot be reached is a RST to the client, never a clean end.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

using RelayEnds = RelaySuite;
INSTANTIATE_TEST_SUITE_P(Relay, RelayEnds, testing::ValuesIn(kBackends), backend_name);

bool all_closed(Rig& rig) {
  return rig.run_until([&] { return rig.stats().connections_active == 0; });
}

// --- FIN.

TEST_P(RelayEnds, AClientMayEndItsHalfAndStillBeAnswered) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send("request");
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }));
  EXPECT_EQ(guest.received(), "request");
  rig.settle();
  EXPECT_FALSE(client.ended());
  EXPECT_TRUE(rig.worker_sleeps());

  client.expect_pattern(1);
  guest.send_pattern(1, 4 * kMiB);
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.eof(); }));
  EXPECT_EQ(client.received_bytes(), 4 * kMiB);
  EXPECT_TRUE(client.intact());
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.closed(CloseSide::kClient, CloseHow::kFin), 1u);
}

TEST_P(RelayEnds, AGuestMayEndItsHalfAndStillBeSentTo) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.send("banner");
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.eof(); }));
  EXPECT_EQ(client.received(), "banner");
  rig.settle();
  EXPECT_FALSE(guest.ended());

  guest.expect_pattern(1);
  client.send_pattern(1, 4 * kMiB);
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }));
  EXPECT_EQ(guest.received_bytes(), 4 * kMiB);
  EXPECT_TRUE(guest.intact());
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kFin), 1u);
}

TEST_P(RelayEnds, AConnectionWithoutAByteEndsCleanly) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.shutdown_write();
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.eof() && guest.eof(); }));
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.stats().received_bytes + rig.stats().sent_bytes, 0u);
}

TEST_P(RelayEnds, AClientMaySendAndEndBeforeTheGuestIsConnected) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  client.send_pattern(1, 100 * kKiB);
  client.shutdown_write();
  Peer& guest = rig.accept();
  guest.expect_pattern(1);
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }));
  EXPECT_EQ(guest.received_bytes(), 100 * kKiB);
  EXPECT_TRUE(guest.intact());
  guest.send("answer");
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.eof(); }));
  EXPECT_EQ(client.received(), "answer");
}

TEST_P(RelayEnds, AFinWaitsForTheBytesBeforeItHoweverSlowTheReader) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.pause();
  guest.expect_pattern(1);
  client.send_pattern(1, 8 * kMiB);
  client.shutdown_write();
  rig.settle();
  guest.resume();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }));
  EXPECT_EQ(guest.received_bytes(), 8 * kMiB);
  EXPECT_TRUE(guest.intact());
}

// --- RST.

TEST_P(RelayEnds, AResetIsPassedOnAfterEverythingThatWasSentBeforeIt) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    Peer& sender = by_client ? client : guest;
    Peer& reader = by_client ? guest : client;
    sender.send_pattern(1, 1 * kMiB);
    reader.expect_pattern(1);
    ASSERT_TRUE(rig.run_until([&] { return sender.all_arrived(); }));
    sender.reset();
    ASSERT_TRUE(rig.run_until([&] { return reader.was_reset(); })) << "by client: " << by_client;
    EXPECT_EQ(reader.error(), ECONNRESET);
    EXPECT_EQ(reader.received_bytes(), 1 * kMiB);
    EXPECT_TRUE(reader.intact());
    ASSERT_TRUE(all_closed(rig));
    EXPECT_EQ(rig.closed(by_client ? CloseSide::kClient : CloseSide::kGuest, CloseHow::kReset), 1u);
  }
}

TEST_P(RelayEnds, AResetWaitsForAReaderThatHasUnreadBytes) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    Peer& sender = by_client ? client : guest;
    Peer& reader = by_client ? guest : client;
    // More than the reader's buffer holds: the rest is in the worker's socket and pipe when the reset comes.
    reader.socket().set_buffers(64 * kKiB);
    reader.pause();
    reader.expect_pattern(1);
    sender.send_pattern(1, 200 * kKiB);
    ASSERT_TRUE(rig.run_until([&] { return sender.all_arrived(); }));
    sender.reset();
    rig.settle();
    EXPECT_EQ(rig.stats().connections_active, 1u);
    reader.resume();
    ASSERT_TRUE(rig.run_until([&] { return reader.was_reset(); }));
    EXPECT_EQ(reader.received_bytes(), 200 * kKiB);
    EXPECT_TRUE(reader.intact());
    ASSERT_TRUE(all_closed(rig));
  }
}

TEST_P(RelayEnds, AResetOfTheReaderStopsTheSender) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    Peer& sender = by_client ? guest : client;
    Peer& reader = by_client ? client : guest;
    sender.send_pattern(1, 1024 * kMiB);
    ASSERT_TRUE(rig.run_until([&] { return reader.received_bytes() > 1 * kMiB; }));
    reader.reset();
    ASSERT_TRUE(rig.run_until([&] { return sender.was_reset(); }));
    ASSERT_TRUE(all_closed(rig));
    EXPECT_EQ(rig.closed(by_client ? CloseSide::kClient : CloseSide::kGuest, CloseHow::kReset), 1u);
  }
}

TEST_P(RelayEnds, WhatASideSentBeforeItsResetIsDeliveredAlsoWhereTheOtherSideMeetsTheResetFirst) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    Peer& sender = by_client ? client : guest;
    Peer& reader = by_client ? guest : client;
    reader.socket().set_buffers(64 * kKiB);
    reader.pause();
    reader.expect_pattern(1);
    sender.send_pattern(1, 200 * kKiB);
    ASSERT_TRUE(rig.run_until([&] { return sender.all_arrived(); }));
    rig.settle();
    sender.reset();
    reader.send("to nobody");  // the worker finds the reset by writing
    rig.settle();
    reader.resume();
    ASSERT_TRUE(rig.run_until([&] { return reader.was_reset(); }));
    EXPECT_EQ(reader.received_bytes(), 200 * kKiB);
    EXPECT_TRUE(reader.intact());
    ASSERT_TRUE(all_closed(rig));
  }
}

TEST_P(RelayEnds, AResetAfterAHalfCloseIsPassedOn) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    Peer& first = by_client ? client : guest;
    Peer& second = by_client ? guest : client;
    first.shutdown_write();
    ASSERT_TRUE(rig.run_until([&] { return second.eof(); }));
    first.reset();
    second.send("into the void");
    ASSERT_TRUE(all_closed(rig)) << "the one that had ended its half is gone";
  }
}

TEST_P(RelayEnds, AResetByTheSideThatWasNotEndedIsPassedOn) {
  for (const bool by_client : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    Peer& first = by_client ? client : guest;
    Peer& second = by_client ? guest : client;
    first.shutdown_write();
    ASSERT_TRUE(rig.run_until([&] { return second.eof(); }));
    second.send("last words");
    ASSERT_TRUE(rig.run_until([&] { return second.all_arrived(); }));
    second.reset();
    ASSERT_TRUE(rig.run_until([&] { return first.was_reset(); }));
    EXPECT_EQ(first.received(), "last words");
    EXPECT_FALSE(first.eof());
    ASSERT_TRUE(all_closed(rig));
  }
}

TEST_P(RelayEnds, AGuestThatClosesWhileTheClientStillSendsEndsTheConnection) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.send("too large\n");
  ASSERT_TRUE(rig.run_until([&] { return client.received() == "too large\n"; }));
  guest.close();
  client.send_pattern(1, 64 * kMiB);
  ASSERT_TRUE(all_closed(rig));
  EXPECT_LT(client.sent_bytes(), 64 * kMiB);
}

TEST_P(RelayEnds, BothSidesMayResetAtOnce) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send_pattern(1, 8 * kMiB);
  guest.send_pattern(2, 8 * kMiB);
  for (int i = 0; i < 3; ++i) rig.turn();
  client.reset();
  guest.reset();
  ASSERT_TRUE(all_closed(rig));
}

// --- A guest that does not answer.

TEST_P(RelayEnds, ARefusedConnectionIsAResetToTheClientAndNotAFin) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
  EXPECT_TRUE(client.was_reset());
  EXPECT_FALSE(client.eof());
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.stats().connect_errors[static_cast<std::size_t>(ConnectError::kRefused)], 1u);
  EXPECT_EQ(rig.stats().connections_established, 0u);
  EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kRefused), 1u);
}

TEST_P(RelayEnds, ARefusedConnectionIsAResetAlsoToAClientThatHasSentEverything) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  Peer& client = rig.connect();
  client.send("GET / HTTP/1.0\r\n\r\n");
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
  EXPECT_TRUE(client.was_reset());
  EXPECT_FALSE(client.eof());
}

TEST_P(RelayEnds, AGuestThatDoesNotAnswerInTimeIsAResetToTheClient) {
  Rig rig(GetParam(), {.connections = {.config = {.connect_timeout = 50ms}}, .guest = GuestAnswer::kSilent});
  Peer& client = rig.connect();
  client.send("anybody there?");
  const Nanos before = rig.world().now();
  ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
  EXPECT_GE(rig.world().now() - before, 40ms);
  EXPECT_TRUE(client.was_reset());
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.stats().connect_errors[static_cast<std::size_t>(ConnectError::kTimeout)], 1u);
  EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kConnectTimeout), 1u);
}

// It came in one event with the answer, was mistaken for a failed connect, and the bytes were lost.
TEST_P(RelayEnds, AGuestThatAnswersAndResetsAtOnceIsHeardFirst) {
  for (const bool reads : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    client.send("hello");
    if (!reads) client.pause();
    Peer& guest = rig.accept();  // the worker has not had a turn since the guest answered
    ASSERT_EQ(guest.socket().send("421 too many connections\r\n", 0), 26);
    ASSERT_TRUE(rig.sim() == nullptr || rig.run_until([&] { return guest.socket().unacknowledged() == 0; }));
    guest.reset();
    rig.settle();
    client.resume();
    ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
    EXPECT_EQ(client.received(), "421 too many connections\r\n");
    EXPECT_TRUE(client.was_reset());
    ASSERT_TRUE(all_closed(rig));
    EXPECT_EQ(rig.stats().connections_established, 1u);
    EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kReset), 1u);
  }
}

TEST_P(RelayEnds, AClientThatResetsWhileTheGuestIsCalledEndsTheCall) {
  Rig rig(GetParam(), {.connections = {.config = {.connect_timeout = 3600s}}, .guest = GuestAnswer::kSilent});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 1; }));
  client.reset();
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.closed(CloseSide::kClient, CloseHow::kReset), 1u);
}

TEST_P(RelayEnds, AClientThatEndsItsHalfDuringTheConnectWaitsForTheTimeout) {
  Rig rig(GetParam(), {.connections = {.config = {.connect_timeout = 50ms}}, .guest = GuestAnswer::kSilent});
  Peer& client = rig.connect();
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
  EXPECT_TRUE(client.was_reset());
}

// --- Time limits.

TEST_P(RelayEnds, AnIdleConnectionIsResetAfterItsTimeout) {
  Rig rig(GetParam(), {.connections = {.config = {.idle_timeout = 1s}}});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send("x");
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && guest.was_reset(); }));
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kIdleTimeout), 1u);
}

TEST_P(RelayEnds, AConnectionThatIsUsedIsNotIdle) {
  Rig rig(GetParam(), {.connections = {.config = {.idle_timeout = 1s}}});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.echo();
  const Nanos start = rig.world().now();
  for (std::size_t i = 1; rig.world().now() < start + 3s; ++i) {
    client.send("x");
    ASSERT_TRUE(rig.run_until([&] { return client.received_bytes() == i || client.ended(); }));
    ASSERT_FALSE(client.ended());
    const Nanos pause_end = rig.world().now() + 300ms;
    ASSERT_TRUE(rig.run_until([&] { return rig.world().now() >= pause_end; }));
  }
}

TEST_P(RelayEnds, AHalfClosedConnectionIsResetAfterItsTimeout) {
  Rig rig(GetParam(), {.connections = {.config = {.half_close_timeout = 1s}}});
  Peer& client = rig.connect();
  rig.accept();
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }));
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kHalfCloseTimeout), 1u);
}

// --- The end of the forward.

TEST_P(RelayEnds, AConnectionOutlivesItsForwardWhereThatIsAsked) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  rig.close_forward(ClosePolicy::kKeep);
  rig.settle();
  client.send("still here");
  guest.send("me too");
  ASSERT_TRUE(
      rig.run_until([&] { return guest.received() == "still here" && client.received() == "me too"; }));
  Peer& late = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return late.ended(); }));
  EXPECT_EQ(late.error(), ECONNREFUSED);
}

TEST_P(RelayEnds, AConnectionIsResetWithItsForwardWhereThatIsAsked) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  rig.close_forward(ClosePolicy::kReset);
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && guest.was_reset(); }));
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kForwardDeleted), 1u);
}

TEST_P(RelayEnds, AConnectionBeingMadeIsResetWithItsForward) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kSilent});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 1; }));
  rig.close_forward(ClosePolicy::kReset);
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }));
}

TEST_P(RelayEnds, AConnectionIsDrainedForItsTimeAndThenReset) {
  Rig rig(GetParam(), {.connections = {.config = {.drain_timeout = 1s}}});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  rig.close_forward(ClosePolicy::kDrain);
  rig.settle();
  client.send("finishing");
  ASSERT_TRUE(rig.run_until([&] { return guest.received() == "finishing"; }));
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && guest.was_reset(); }));
  ASSERT_TRUE(all_closed(rig));
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kForwardDeleted), 1u);
}

TEST_P(RelayEnds, AClientInTheBacklogOfAClosedForwardIsNotServed) {
  Rig rig(GetParam());
  rig.close_forward(ClosePolicy::kKeep);
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.ended(); }));
  EXPECT_TRUE(client.was_reset());
  EXPECT_EQ(rig.stats().connections_accepted, 0u);
}

}  // namespace
}  // namespace portway::test
