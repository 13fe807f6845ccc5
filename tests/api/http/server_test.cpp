// Taking connections, over real sockets on loopback: limits, clients that are refused, stopping.
#include "api/http/server.h"

#include <net/if.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <vector>

#include "tests/api/http/running_server.h"
#include "tests/support/no_descriptors.h"

namespace portway {
namespace {

using namespace std::chrono_literals;
using namespace test;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

/// Starts a request and leaves it under way: its last byte, any, is still to be sent.
void begin_request(Client& client) {
  EXPECT_EQ(
      client.call("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n").status,
      100);
}

/// Counts the requests that it answers.
PlainHandler counting_echo(int& calls) {
  return [&calls](const Request& request) {
    ++calls;
    return echo(request);
  };
}

TEST(Server, MakesRoomByClosingTheLongestIdleConnection) {
  Running server({.connections_max = 2});
  Client first(server.endpoint());
  Client second(server.endpoint());
  EXPECT_EQ(second.call(kGet).status, 200);
  EXPECT_EQ(first.call(kGet).status, 200);
  Client third(server.endpoint());
  EXPECT_EQ(third.call(kGet).status, 200);
  EXPECT_EQ(second.receive_to_end(), "");
  EXPECT_EQ(first.call(kGet).status, 200);
  EXPECT_EQ(server.stats().connections_evicted, 1u);
  EXPECT_EQ(server.stats().connections, 2u);
}

TEST(Server, TurnsAwayTheNewcomerWhenAllAreBusy) {
  constexpr std::size_t kLarge = std::size_t{20} << 20;  // more than the buffers of two sockets hold
  Running server({.connections_max = 1},
                 [](const Request&) { return make_response(200, std::string(kLarge, ' ')); });
  Client busy(server.endpoint());
  busy.send(kGet);
  ASSERT_TRUE(busy.wait_readable(kDeadline));
  Client newcomer(server.endpoint());
  expect_refusal(newcomer, 503, "connection_limit");
  EXPECT_EQ(busy.receive().body.size(), kLarge);
  EXPECT_EQ(server.stats().connections_refused_limit, 1u);
}

// Slowloris: a client that sends a byte now and then on every connection.
TEST(Server, AHalfOpenRequestKeepsNoSeatForOthers) {
  for (const std::string half :
       {"GET / HTTP/1.1\r\nHost:", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"}) {
    Running server({.connections_max = 8});
    std::vector<std::unique_ptr<Client>> slow;
    for (int i = 0; i < 8; ++i) {
      slow.push_back(std::make_unique<Client>(server.endpoint(), i % 2 == 0 ? 7 : 8));
      slow.back()->send(half);
    }
    server.wait_until([](const ServerStats& stats) { return stats.connections == 8; });
    for (int i = 0; i < 20; ++i) EXPECT_EQ(Client(server.endpoint(), 9).call(kGet).status, 200);
    EXPECT_EQ(slow.front()->receive_to_end(), "") << "the first one gave way";
    Client client(server.endpoint(), 9);
    EXPECT_EQ(client.call(kGet).status, 200);
    for (int i = 0; i < 20; ++i) slow.push_back(std::make_unique<Client>(server.endpoint(), 7));
    server.wait_until([](const ServerStats& stats) { return stats.connections_total == 49; });
    EXPECT_EQ(client.call(kGet).status, 200) << "others had more";
    EXPECT_EQ(server.stats().connections_refused_limit, 0u);
    EXPECT_GE(server.stats().half_open_evicted, 1u);
  }
}

TEST(Server, OneSourceLeavesSeatsForOthers) {
  constexpr std::size_t kLarge = std::size_t{20} << 20;
  Running server({.connections_max = 4}, [](const Request& request) {
    return make_response(200, std::string(request.target == "/large" ? kLarge : 1, ' '));
  });
  std::vector<std::unique_ptr<Client>> unread;
  for (int i = 0; i < 3; ++i) {
    unread.push_back(std::make_unique<Client>(server.endpoint(), 7));
    unread.back()->send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    ASSERT_TRUE(unread.back()->wait_readable(kDeadline));
  }
  Client greedy(server.endpoint(), 7);
  expect_refusal(greedy, 503, "connection_limit");
  EXPECT_EQ(Client(server.endpoint(), 8).call(kGet).status, 200);
}

TEST(Server, ClosesConnectionsFromARefusedNetworkAtOnce) {
  int calls = 0;
  ClientOrigin seen;
  Running server({.refuses =
                      [&seen](const ClientOrigin& client) {
                        seen = client;
                        return true;
                      }},
                 counting_echo(calls));
  Client client(server.endpoint());
  client.send(kGet);
  EXPECT_EQ(client.receive_to_end(), "");
  EXPECT_EQ(server.stats().connections_refused_network, 1u);
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(seen.address, boost::asio::ip::address_v4::loopback());
  EXPECT_EQ(seen.link, static_cast<std::int32_t>(::if_nametoindex("lo")));
}

// IPv6, IPv4-mapped addresses and real guests: tests/daemon/isolation_test.py.

// A reload or a registration can make a guest of an already connected client.
TEST(Server, RefusesTheNextRequestOfAClientThatIsRefusedByThen) {
  std::atomic<bool> refuses = false;
  int calls = 0;
  Running server({.refuses = [&](const ClientOrigin&) { return refuses.load(); }}, counting_echo(calls));
  Client client(server.endpoint());
  EXPECT_EQ(client.call(kGet).status, 200);
  refuses = true;
  client.send(kGet);
  EXPECT_EQ(client.receive_to_end(), "");
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(server.stats().connections_refused_network, 1u);
}

TEST(Server, DropsClientsThatHaveBecomeRefusedWhateverTheyAreDoing) {
  std::atomic<bool> refuses = false;
  Running server({.refuses = [&](const ClientOrigin&) { return refuses.load(); }});
  Client idle(server.endpoint());
  EXPECT_EQ(idle.call(kGet).status, 200);
  Client busy(server.endpoint());
  begin_request(busy);
  server.on_its_thread([&] {
    server.server().drop_refused();
    refuses = true;
    return 0;
  });
  EXPECT_EQ(server.stats().connections, 2u);
  server.on_its_thread([&] {
    server.server().drop_refused();
    return 0;
  });
  EXPECT_EQ(server.stats().connections, 0u);
  EXPECT_EQ(idle.receive_to_end(), "");
  EXPECT_EQ(busy.receive_to_end(), "");
}

// moby#6402: one EMFILE ended accepting for good.
TEST(Server, AcceptsAgainAfterDescriptorsHadRunOut) {
  Running server;
  Client client;
  std::optional<NoDescriptors> none(std::in_place);
  ASSERT_TRUE(client.connect(server.endpoint()));
  server.wait_until([](const ServerStats& stats) { return stats.accept_pauses >= 2; });
  none.reset();
  EXPECT_EQ(client.call(kGet).status, 200);
}

TEST(Server, SurvivesTenThousandGarbageRequests) {
  Running server;
  std::mt19937 random(20'240'607);
  const auto below = [&random](std::size_t end) {
    return std::uniform_int_distribution<std::size_t>(0, end - 1)(random);
  };
  const std::string good =
      "POST /instances/a/port-forwards?x=%41 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
      "b\r\nTransfer-Encoding: "
      "chunked\r\nX: a\r\n folded\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\nY: z\r\n\r\nGET / "
      "HTTP/1.0\r\nContent-Length: 1\r\n\r\nx";
  constexpr std::string_view kSpecial("\r\n\0 \t:;,\"0f\xff", 12);
  for (int i = 0; i < 10'000; ++i) {
    std::string bytes = i % 4 == 0 ? std::string(1 + below(200), '\0') : good;
    if (i % 4 == 0) std::ranges::generate(bytes, [&] { return static_cast<char>(below(256)); });
    for (std::size_t changes = 1 + below(4); changes > 0; --changes) {
      const std::size_t at = below(bytes.size());
      const char byte = below(2) == 0 ? kSpecial[below(kSpecial.size())] : static_cast<char>(below(256));
      if (below(2) == 0)
        bytes[at] = byte;
      else if (below(2) == 0)
        bytes.insert(at, 1, byte);
      else
        bytes.erase(at, 1 + below(3));
      if (bytes.empty()) bytes = byte;
    }
    Client client(server.endpoint());
    const std::size_t first_part = below(bytes.size());
    client.send(std::string_view(bytes).substr(0, first_part));
    client.send(std::string_view(bytes).substr(first_part));
    client.finish();
    const std::string answer = client.receive_to_end();
    if (!answer.empty()) {
      ASSERT_THAT(answer, StartsWith("HTTP/1.")) << "input " << i;
    }
  }
  EXPECT_EQ(Client(server.endpoint()).call(kGet).status, 200);
  server.wait_until([](const ServerStats& stats) { return stats.connections <= 1; });
}

TEST(Server, StopsAfterTheRequestsUnderWay) {
  Running server;
  Client idle(server.endpoint());
  EXPECT_EQ(idle.call(kGet).status, 200);
  Client busy(server.endpoint());
  begin_request(busy);
  server.stop();
  EXPECT_EQ(idle.receive_to_end(), "");
  EXPECT_FALSE(Client().connect(server.endpoint()));
  Answer answer = busy.call("x");
  EXPECT_EQ(answer.body, "PUT / x");
  EXPECT_EQ(answer.headers["Connection"], "close");
  EXPECT_EQ(busy.receive_to_end(), "");
  busy.finish();
  server.join();
}

TEST(Server, CutsRequestsUnderWayWhenItIsDestroyed) {
  int calls = 0;
  Running server({}, counting_echo(calls));
  Client busy(server.endpoint());
  begin_request(busy);
  server.destroy_server();
  busy.send("x");
  EXPECT_EQ(busy.receive_to_end(), "");
  server.join();
  EXPECT_EQ(calls, 0);
}

// The daemon's context is destroyed without having run if its start fails half-way.
TEST(Server, LeavesNothingBehindInAContextThatNeverRan) {
  std::unique_ptr<Client> client;
  {
    boost::asio::io_context context;
    auto server =
        Server::start(context, {.listen = Endpoint(boost::asio::ip::address_v4::loopback(), 0)}, echo_at_once)
            .value();
    client = std::make_unique<Client>(std::get<Endpoint>(server->address()));
    server.reset();
  }
  EXPECT_EQ(client->receive_to_end(), "");
}

TEST(Server, SaysWhyItCannotListen) {
  Running server;
  boost::asio::io_context context;
  const auto taken = Server::start(context, {.listen = server.endpoint()}, echo_at_once);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::kHostPortTaken);
  EXPECT_THAT(taken.error().detail,
              AllOf(HasSubstr(to_string(server.endpoint())), HasSubstr("another port")));
  const auto foreign =
      Server::start(context, {.listen = parse_endpoint("192.0.2.1:0").value()}, echo_at_once);
  ASSERT_FALSE(foreign);
  EXPECT_EQ(foreign.error().code, ErrorCode::kInvalidConfig);
  EXPECT_THAT(foreign.error().detail, AllOf(HasSubstr("192.0.2.1"), HasSubstr("an address of this host")));
}

}  // namespace
}  // namespace portway
