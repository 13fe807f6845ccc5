// The relay suite: what is sent arrives, whole and in order, however it is cut and however slowly it is read.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

using RelayStreams = RelaySuite;
INSTANTIATE_TEST_SUITE_P(Relay, RelayStreams, testing::ValuesIn(kBackends), backend_name);

/// The first bytes of Pattern(seed).
std::string pattern(std::uint64_t seed, std::size_t bytes) {
  std::string out(bytes, '\0');
  Pattern(seed).fill(out);
  return out;
}

TEST_P(RelayStreams, SmallMessagesGoBackAndForth) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.echo();
  std::string sent;
  for (int i = 0; i < 200; ++i) {
    const std::string message = "message " + std::to_string(i) + "\n";
    client.send(message);
    sent += message;
    ASSERT_TRUE(rig.run_until([&] { return client.received() == sent; })) << i;
  }
}

TEST_P(RelayStreams, Ipv6IsForwardedToo) {
  Rig rig(GetParam(), {.family = AF_INET6});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send("ping");
  guest.send("pong");
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "ping" && client.received() == "pong"; }));
}

TEST_P(RelayStreams, TheGuestMaySpeakFirst) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.send("220 ready\r\n");
  EXPECT_TRUE(rig.run_until([&] { return client.received() == "220 ready\r\n"; }));
}

TEST_P(RelayStreams, BulkGoesBothWaysAtOnce) {
  constexpr std::uint64_t kBytes = 64 * kMiB;
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send_pattern(1, kBytes);
  guest.send_pattern(2, kBytes);
  guest.expect_pattern(1);
  client.expect_pattern(2);
  client.shutdown_write();
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.eof() && guest.eof(); }, 120s));
  EXPECT_TRUE(client.intact());
  EXPECT_TRUE(guest.intact());
  EXPECT_EQ(guest.received_bytes(), kBytes);
  EXPECT_EQ(client.received_bytes(), kBytes);
  ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 0; }));
  EXPECT_EQ(rig.stats().received_bytes, kBytes);
  EXPECT_EQ(rig.stats().sent_bytes, kBytes);
  EXPECT_EQ(rig.counters().spliced_bytes.get() + rig.counters().copied_bytes.get(), 2 * kBytes);
}

// io_uring's poll reports POLLPRI with every arrival: bulk was mistaken for urgent, and copied.
TEST_P(RelayStreams, BulkIsSplicedAndSmallMessagesAreCopied) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.echo();
  for (std::size_t i = 1; i <= 100; ++i) {
    client.send("x");
    ASSERT_TRUE(rig.run_until([&] { return client.received_bytes() == i; }));
  }
  EXPECT_EQ(rig.counters().spliced_bytes.get(), 0u);

  client.expect_pattern(1);
  guest.send_pattern(1, 16 * kMiB);
  ASSERT_TRUE(rig.run_until([&] { return client.received_bytes() == 100 + 16 * kMiB; }));
  EXPECT_TRUE(client.intact());
  EXPECT_GT(rig.counters().spliced_bytes.get(), 8 * kMiB);
}

// Eight messages of 16 KiB were mistaken for bulk: each then cost two splices more than a copy.
TEST_P(RelayStreams, MessagesOf16KiBAreCopied) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.echo();
  const std::string message(16 * kKiB, 'x');
  for (std::size_t i = 1; i <= 100; ++i) {
    client.send(message);
    ASSERT_TRUE(rig.run_until([&] { return client.received_bytes() == i * message.size(); }));
  }
  EXPECT_EQ(rig.counters().spliced_bytes.get(), 0u);
}

TEST_P(RelayStreams, AStreamThatTurnsToMessagesAfterBulkIsCopiedAgain) {
  for (const std::size_t size : {std::size_t{1}, 16 * kKiB}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    client.send_pattern(1, 4 * kMiB);
    ASSERT_TRUE(rig.run_until([&] { return guest.received_bytes() == 4 * kMiB; }));
    const std::string message(size, 'x');
    std::uint64_t spliced = 0;
    for (std::size_t i = 1; i <= 100; ++i) {
      if (i == 50) spliced = rig.counters().spliced_bytes.get();
      guest.send(message);
      client.send(message);
      ASSERT_TRUE(rig.run_until([&] {
        return client.received_bytes() == i * size && guest.received_bytes() == 4 * kMiB + i * size;
      }));
    }
    EXPECT_EQ(rig.counters().spliced_bytes.get(), spliced) << "messages of " << size;
  }
}

TEST_P(RelayStreams, ASenderIsHeldBackByAReaderThatPausesAndNothingIsLost) {
  constexpr std::uint64_t kBytes = 64 * kMiB;
  for (const bool from_client : {true, false}) {
    Rig rig(GetParam());
    Peer& client = rig.connect();
    Peer& guest = rig.accept();
    Peer& sender = from_client ? client : guest;
    Peer& reader = from_client ? guest : client;
    sender.socket().set_buffers(64 * kKiB);
    reader.socket().set_buffers(64 * kKiB);
    reader.pause();
    sender.send_pattern(7, kBytes);
    reader.expect_pattern(7);
    rig.settle();
    EXPECT_LT(sender.sent_bytes(), kBytes / 2) << "what has no reader must not be taken without end";
    EXPECT_LE(rig.counters().pipes_in_use.get(), 1u);
    EXPECT_TRUE(rig.worker_sleeps());

    reader.resume();
    ASSERT_TRUE(rig.run_until([&] { return reader.received_bytes() == kBytes; }, 120s));
    EXPECT_TRUE(reader.intact());
    rig.settle();
    EXPECT_EQ(rig.counters().pipes_in_use.get(), 0u);
  }
}

TEST_P(RelayStreams, TheOtherDirectionRunsOnWhileOneIsHeldBack) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.socket().set_buffers(16 * kKiB);
  guest.pause();
  client.send_pattern(1, 32 * kMiB);
  rig.settle();
  client.expect_pattern(2);
  guest.send_pattern(2, 4 * kMiB);
  ASSERT_TRUE(rig.run_until([&] { return client.received_bytes() == 4 * kMiB; }));
  EXPECT_TRUE(client.intact());
}

TEST_P(RelayStreams, ASlowReaderGetsEverything) {
  constexpr std::uint64_t kBytes = 2 * kMiB;
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.socket().set_buffers(128 * kKiB);
  guest.set_read_size(3000);
  client.send_pattern(3, kBytes);
  guest.expect_pattern(3);
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }, 120s));
  EXPECT_EQ(guest.received_bytes(), kBytes);
  EXPECT_TRUE(guest.intact());
}

// A pipe has slots, not bytes: sixteen to 64 segments of one byte fill it.
TEST_P(RelayStreams, ManySegmentsOfOneByteArriveWhole) {
  constexpr std::uint64_t kBulk = 1 * kMiB;
  const std::string trickle = pattern(9, 20000);
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send(pattern(8, kBulk));  // turns the direction to splicing
  ASSERT_TRUE(rig.run_until([&] { return guest.received_bytes() == kBulk; }));
  guest.socket().set_buffers(4 * kKiB);
  guest.pause();
  client.set_write_size(1);
  client.send(trickle);
  for (int i = 0; i < 500; ++i) rig.turn();
  guest.resume();
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }, 120s));
  EXPECT_EQ(guest.received().substr(kBulk), trickle);
}

TEST_P(RelayStreams, TwoHundredConnectionsAtOnceKeepTheirBytesApart) {
  constexpr std::uint64_t kBytes = 100 * kKiB;
  Rig rig(GetParam());
  std::vector<Peer*> clients;
  std::vector<Peer*> guests;
  for (std::uint64_t i = 0; i < 200; ++i) {
    clients.push_back(&rig.connect());
    clients.back()->send_pattern(i, kBytes);
    clients.back()->expect_pattern(i);
    clients.back()->shutdown_write();
  }
  ASSERT_TRUE(rig.run_until([&] {
    while (Peer* guest = rig.try_accept()) {
      guest->echo();
      guests.push_back(guest);
    }
    return std::ranges::all_of(clients, [](const Peer* client) { return client->eof(); });
  }));
  EXPECT_EQ(guests.size(), 200u);
  for (const Peer* client : clients) {
    EXPECT_TRUE(client->intact());
    EXPECT_EQ(client->received_bytes(), kBytes);
  }
}

TEST_P(RelayStreams, WhatIsIdleHoldsNoPipe) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send_pattern(1, 4 * kMiB);
  guest.send_pattern(2, 4 * kMiB);
  ASSERT_TRUE(rig.run_until([&] { return client.received_bytes() + guest.received_bytes() == 8 * kMiB; }));
  rig.settle();
  EXPECT_EQ(rig.counters().pipes_in_use.get(), 0u);
  EXPECT_TRUE(rig.worker_sleeps());
}

// --- Without enough pipes.

TEST_P(RelayStreams, WithoutAnyPipeEverythingStillArrives) {
  constexpr std::uint64_t kBytes = 8 * kMiB;
  Rig rig(GetParam(), {.pipes_max = 0});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send_pattern(1, kBytes);
  guest.send_pattern(2, kBytes);
  guest.expect_pattern(1);
  client.expect_pattern(2);
  client.set_read_size(10000);  // a pipe is needed only if the sink does not keep up
  client.shutdown_write();
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return client.eof() && guest.eof(); }, 120s));
  EXPECT_TRUE(client.intact() && guest.intact());
  EXPECT_EQ(client.received_bytes() + guest.received_bytes(), 2 * kBytes);
  EXPECT_GT(rig.counters().pipes_exhausted.get(), 0u);
}

TEST_P(RelayStreams, ConnectionsThatShareTooFewPipesAllGetThrough) {
  constexpr std::uint64_t kBytes = 4 * kMiB;
  Rig rig(GetParam(), {.pipes_max = 2});
  std::vector<Rig::Pair> pairs;
  for (std::uint64_t i = 0; i < 8; ++i) {
    pairs.push_back(rig.open());
    pairs.back().guest.socket().set_buffers(16 * kKiB);
    pairs.back().guest.pause();
    pairs.back().guest.expect_pattern(i);
    pairs.back().client.send_pattern(i, kBytes);
  }
  rig.settle();
  EXPECT_LE(rig.counters().pipes_in_use.get(), 2u);
  EXPECT_TRUE(rig.worker_sleeps());
  for (const Rig::Pair& pair : pairs) pair.guest.resume();
  for (const Rig::Pair& pair : pairs) {
    ASSERT_TRUE(rig.run_until([&] { return pair.guest.received_bytes() == kBytes; }, 120s));
    EXPECT_TRUE(pair.guest.intact());
  }
}

// --- The urgent byte: splice(2) does not cross its mark, but poll keeps reporting "readable".

// An urgent byte alone is no POLLIN: it waited for the next ordinary one.
TEST_P(RelayStreams, AnUrgentByteArrivesInItsPlaceAsAnUrgentByte) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.socket().set_urgent_inline();
  client.send("before");
  ASSERT_TRUE(rig.run_until([&] { return guest.received() == "before"; }));
  client.send_urgent('!');
  ASSERT_TRUE(rig.run_until([&] { return guest.received() == "before!"; }));
  EXPECT_TRUE(rig.worker_sleeps());
  client.send("after");
  ASSERT_TRUE(rig.run_until([&] { return guest.received() == "before!after"; }));
  EXPECT_TRUE(rig.worker_sleeps());

  client.pause();  // an ordinary read would skip it
  guest.send_urgent('?');
  char byte = 0;
  ASSERT_TRUE(rig.run_until([&] { return client.socket().recv({&byte, 1}, MSG_OOB) == 1; }));
  EXPECT_EQ(byte, '?');
}

TEST_P(RelayStreams, AnUrgentByteAmidBulkNeitherWedgesNorSpins) {
  const std::string first = pattern(1, 4 * kMiB);
  const std::string second = pattern(2, 4 * kMiB);
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.socket().set_urgent_inline();
  client.send(first);
  ASSERT_TRUE(rig.run_until([&] { return client.all_arrived(); }));
  client.send_urgent('!');
  client.send(second);
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }, 60s));
  EXPECT_TRUE(guest.received() == first + "!" + second);
}

// The relay took the byte for passed on, and splice(2) cannot cross its mark: the stream stood still once the
// segment came again.
TEST_P(RelayStreams, AnUrgentByteWhoseSegmentComesAgainNeitherWedgesNorSpins) {
  const std::string first = pattern(1, 4 * kMiB);
  Rig rig(GetParam(), {.network = {.receive_buffer = kMiB, .send_buffer = kMiB, .segment = 64 * kKiB}});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.socket().set_urgent_inline();
  std::string sent = first;
  client.send(first);
  ASSERT_TRUE(rig.run_until([&] { return guest.received_bytes() == first.size(); }));
  for (const std::string& second : {pattern(2, 64 * kKiB), pattern(3, 64 * kKiB)}) {
    ASSERT_EQ(client.socket().send(second, 0), static_cast<std::ptrdiff_t>(second.size()));
    client.socket().send_urgent_that_is_lost('!');
    sent += second + "!";
    ASSERT_TRUE(rig.run_until([&] { return guest.received() == sent; }));
    EXPECT_TRUE(rig.worker_sleeps());
    client.send(first);
    sent += first;
    ASSERT_TRUE(rig.run_until([&] { return guest.received_bytes() == sent.size(); }));
  }
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }));
  EXPECT_TRUE(guest.received() == sent);
}

TEST_P(RelayStreams, AnUrgentByteBeforeTheEndNeitherWedgesNorSpins) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send(pattern(1, 1 * kMiB));
  ASSERT_TRUE(rig.run_until([&] { return client.all_arrived() && guest.received_bytes() == 1 * kMiB; }));
  client.send_urgent('!');
  rig.settle();
  EXPECT_TRUE(rig.worker_sleeps());
  client.shutdown_write();
  EXPECT_TRUE(rig.run_until([&] { return guest.eof(); }));
}

// The urgent byte used up the rate, and a read of no bytes was mistaken for the end.
TEST_P(RelayStreams, AnUrgentByteThatSpendsTheRateIsNotTakenForTheEnd) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  guest.socket().set_urgent_inline();
  rig.forward().rate[kDownstream].set_limit(1);
  client.send_urgent('!');
  ASSERT_TRUE(rig.run_until([&] { return guest.received() == "!"; }));
  rig.settle();
  EXPECT_FALSE(guest.eof());
  rig.forward().rate[kDownstream].set_limit(0);
  client.send("after");
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "!after"; }));
  EXPECT_FALSE(guest.eof());
}

TEST_P(RelayStreams, AThousandUrgentBytesTakeNothingFromTheStream) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  std::string sent;
  for (int i = 0; i < 1000; ++i) {
    const std::string message = std::to_string(i) + ";";
    client.send(message);
    sent += message;
    while (!client.all_sent()) rig.turn();
    client.send_urgent('!');
    if (i % 100 == 0) rig.settle();
  }
  client.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return guest.eof(); }));
  // An urgent byte that a newer one overtakes turns into an ordinary one (tcp(7)).
  std::string ordinary = guest.received();
  std::erase(ordinary, '!');
  EXPECT_EQ(ordinary, sent);
}

}  // namespace
}  // namespace portway::test
