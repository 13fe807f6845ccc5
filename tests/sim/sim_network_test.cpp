// The parts of the simulated network that the conformance suite (tests/proxy) cannot see: time, buffers, the
// seed.
#include "tests/sim/sim_network.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <string>
#include <vector>

namespace portway::test {
namespace {

using namespace std::chrono_literals;

const Endpoint kService(boost::asio::ip::address_v4::loopback(), 80);

struct Ends {
  SimSocket& client;
  SimSocket& server;
};

/// A connected pair.
Ends connect(SimNetwork& network) {
  SimListener& listener = network.listen(kService);
  SimSocket& client = network.socket();
  EXPECT_EQ(client.connect(kService), -EINPROGRESS);
  network.advance_to(network.now() + 1s);
  SimSocket* server = listener.accept();
  EXPECT_NE(server, nullptr);
  return {client, *server};
}

std::string read_all(SimSocket& socket) {
  std::string out(1 << 20, '\0');
  const auto got = socket.recv(out, 0);
  out.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  return out;
}

TEST(SimNetwork, NothingArrivesBeforeItsTime) {
  SimNetwork network({.latency = 1ms});
  const auto [client, server] = connect(network);
  const Nanos start = network.now();
  client.send("x", 0);
  EXPECT_EQ(network.next_event(), start + 1ms);
  network.advance_to(start + 1ms - Nanos(1));
  EXPECT_EQ(server.readable_bytes(), 0u);
  network.advance_to(start + 1ms);
  EXPECT_EQ(server.readable_bytes(), 1u);
  EXPECT_EQ(client.unacknowledged(), 1) << "the acknowledgement is on its way";
  network.advance_to(start + 2ms);
  EXPECT_EQ(client.unacknowledged(), 0);
  EXPECT_EQ(network.next_event(), Nanos::max());
}

TEST(SimNetwork, JitterNeverReordersWhatOneSideSends) {
  SimNetwork network({.jitter = 10ms, .segment = 10});
  const auto [client, server] = connect(network);
  std::string sent;
  for (char letter = 'a'; letter <= 'z'; ++letter) {
    const std::string message(25, letter);
    client.send(message, 0);
    sent += message;
  }
  client.shutdown(SHUT_WR);
  network.advance_to(network.now() + 10s);
  EXPECT_EQ(read_all(server), sent);
}

TEST(SimNetwork, AReaderThatDoesNotReadHoldsTheSenderBackAtBothBuffers) {
  SimNetwork network({.receive_buffer = 1000, .send_buffer = 500, .segment = 100});
  const auto [client, server] = connect(network);
  const std::string chunk(100, 'x');
  std::size_t taken = 0;
  for (int i = 0; i < 100; ++i) {
    const auto sent = client.send(chunk, 0);
    if (sent > 0) taken += static_cast<std::size_t>(sent);
    network.advance_to(network.now() + 1s);
  }
  EXPECT_EQ(taken, 1500u);
  EXPECT_EQ(client.send(chunk, 0), -EAGAIN);
  EXPECT_EQ(client.poll_mask() & POLLOUT, 0);
  EXPECT_EQ(read_all(server).size(), 1000u);
  network.advance_to(network.now() + 1s);
  EXPECT_NE(client.poll_mask() & POLLOUT, 0);
  EXPECT_EQ(read_all(server).size(), 500u);
}

TEST(SimNetwork, AResetTakesBackWhatWasNotOnTheWireYet) {
  SimNetwork network({.receive_buffer = 1000, .send_buffer = 5000});
  const auto [client, server] = connect(network);
  client.send(std::string(4000, 'x'), 0);
  network.advance_to(network.now() + 1s);
  client.close_with_reset();
  network.advance_to(network.now() + 1s);
  EXPECT_EQ(read_all(server).size(), 1000u);
  char byte;
  EXPECT_EQ(server.recv({&byte, 1}, 0), -ECONNRESET);
  EXPECT_EQ(server.recv({&byte, 1}, 0), 0);
}

TEST(SimNetwork, DataForAClosedSocketIsAnsweredWithAReset) {
  SimNetwork network;
  const auto [client, server] = connect(network);
  server.close();
  network.advance_to(network.now() + 1s);
  EXPECT_EQ(client.poll_mask() & (POLLRDHUP | POLLERR), POLLRDHUP);
  client.send("anybody?", 0);
  network.advance_to(network.now() + 1s);
  EXPECT_EQ(client.poll_mask() & (POLLRDHUP | POLLERR), POLLRDHUP | POLLERR);
}

TEST(SimNetwork, AClosedSocketStillDeliversWhatItWasGiven) {
  SimNetwork network({.receive_buffer = 1000, .send_buffer = 5000});
  const auto [client, server] = connect(network);
  client.send(std::string(4000, 'x'), 0);
  client.close();
  std::size_t got = 0;
  for (int i = 0; i < 10; ++i) {
    network.advance_to(network.now() + 1s);
    got += read_all(server).size();
  }
  EXPECT_EQ(got, 4000u);
  char byte;
  EXPECT_EQ(server.recv({&byte, 1}, 0), 0);
}

TEST(SimNetwork, AConnectIsAnsweredAsItWasSet) {
  SimNetwork network;
  network.listen(kService);
  network.set_answer(kService, EHOSTUNREACH);
  SimSocket& unreachable = network.socket();
  unreachable.connect(kService);
  network.advance_to(network.now() + 1s);
  EXPECT_EQ(unreachable.take_error(), -EHOSTUNREACH);

  network.set_answer(kService, SimNetwork::kSilent);
  SimSocket& silent = network.socket();
  silent.connect(kService);
  network.advance_to(network.now() + 3600s);
  EXPECT_EQ(silent.poll_mask(), 0);
}

TEST(SimNetwork, TheSameSeedGivesTheSameTimes) {
  const auto arrivals = [](std::uint64_t seed) {
    SimNetwork network({.jitter = 1ms, .seed = seed});
    const auto [client, server] = connect(network);
    std::vector<Nanos> times;
    server.set_wake([&](short) { times.push_back(network.now()); });
    for (int i = 0; i < 20; ++i) {
      client.send("x", 0);
      network.advance_to(network.now() + 10ms);
    }
    return times;
  };
  EXPECT_EQ(arrivals(1), arrivals(1));
  EXPECT_NE(arrivals(1), arrivals(2));
}

}  // namespace
}  // namespace portway::test
