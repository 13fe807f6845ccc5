// The main job, seen from outside: the daemon as it ships, a guest behind a tap, a client on the public side,
// on each io backend. What a client sees here is what it would see of a kernel DNAT rule.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>
#include <cerrno>
#include <csignal>
#include <future>
#include <memory>
#include <tuple>
#include <vector>

#include "tests/e2e/guest_suite.h"
#include "tests/support/guest_ports.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

constexpr std::uint64_t kBulkBytes = 64 * 1024 * 1024;

class ForwardTest : public GuestSuite {
 protected:
  TcpClient connect_to(const CreatedForward& forward) {
    return TcpClient(network().client(), kHostAddress, forward.host_port);
  }

  double forward_metric(const CreatedForward& forward, const std::string& name) {
    return daemon().metrics().value(name, {{"forward", forward.id}}).value_or(-1);
  }
};
INSTANTIATE_TEST_SUITE_P(Guests, ForwardTest, guests_and_backends(), guest_parameter_name);

TEST_P(ForwardTest, AnswersAsTheProductsPageShowsAndServesTheGuestsWebServer) {
  const HttpResponse created = daemon().api("POST", "/instances/vm-1/port-forwards", R"({
    "guest_port": 3000,
    "protocol": "tcp",
    "label": "dev-server"
  })");
  ASSERT_EQ(created.status, 201) << created.body;
  const boost::json::value answer = created.json();
  EXPECT_EQ(answer.at("hostname"), Daemon::kHostname);
  const boost::json::object& forward = answer.at("port_forward").as_object();
  EXPECT_EQ(forward.at("instance_id"), "vm-1");
  EXPECT_EQ(forward.at("guest_port"), 3000);
  EXPECT_EQ(forward.at("protocol"), "tcp");
  EXPECT_EQ(forward.at("label"), "dev-server");

  const HttpResponse page = http_request(network().client(), kHostAddress,
                                         forward.at("host_port").to_number<std::uint16_t>(), {.target = "/"});
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.body, testing::StartsWith("Hello from "));
}

TEST_P(ForwardTest, Carries64MiBEachWayAtOnceAndCountsEveryByte) {
  const CreatedForward source = daemon().create_forward("vm-1", kSourcePort);
  const CreatedForward digest = daemon().create_forward("vm-1", kDigestPort);

  auto uploaded = std::async(std::launch::async, [&] {
    TcpClient client = connect_to(digest);
    const std::string sha256 = client.send_pattern(kBulkBytes);
    client.finish();
    return std::pair(client.receive_to_end(), std::to_string(kBulkBytes) + " " + sha256 + "\n");
  });
  TcpClient client = connect_to(source);
  const std::string request = std::to_string(kBulkBytes) + "\n";
  client.send(request);
  const ReceivedDigest downloaded = client.receive_digest_to_end();
  client.finish();

  EXPECT_EQ(downloaded.error, 0);
  EXPECT_EQ(downloaded.bytes, kBulkBytes);
  EXPECT_EQ(downloaded.sha256, pattern_sha256(kBulkBytes));
  const auto [answer, expected_answer] = uploaded.get();
  EXPECT_EQ(answer.error, 0);
  EXPECT_EQ(answer.bytes, expected_answer);

  ASSERT_TRUE(daemon().wait_for_metric("portway_connections_active", {}, 0));
  EXPECT_EQ(forward_metric(source, "portway_forward_received_bytes_total"), request.size());
  EXPECT_EQ(forward_metric(source, "portway_forward_sent_bytes_total"), kBulkBytes);
  EXPECT_EQ(forward_metric(digest, "portway_forward_received_bytes_total"), kBulkBytes);
  EXPECT_EQ(forward_metric(digest, "portway_forward_sent_bytes_total"), expected_answer.size());
}

TEST_P(ForwardTest, Serves200ConnectionsAtOnce) {
  constexpr int kConnections = 200;
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort);
  std::vector<TcpClient> clients;
  for (int i = 0; i < kConnections; ++i) {
    clients.push_back(connect_to(forward));
    ASSERT_EQ(clients.back().connect_error(), 0);
  }
  EXPECT_TRUE(daemon().wait_for_metric("portway_forward_connections_total",
                                       {{"forward", forward.id}, {"result", "established"}}, kConnections));
  EXPECT_EQ(forward_metric(forward, "portway_forward_connections_active"), kConnections);

  const auto message = [](int i) {
    return std::string(4096, static_cast<char>('a' + i % 26)) + std::to_string(i);
  };
  for (int i = 0; i < kConnections; ++i) clients[i].send(message(i));
  for (int i = 0; i < kConnections; ++i) EXPECT_EQ(clients[i].receive(message(i).size()), message(i));
  for (TcpClient& client : clients) client.finish();
  for (TcpClient& client : clients) {
    const Received rest = client.receive_to_end();
    EXPECT_EQ(rest.bytes, "");
    EXPECT_EQ(rest.error, 0);
  }
}

TEST_P(ForwardTest, PassesTheClientsFinOnAndTheGuestsAnswerBack) {
  TcpClient client = connect_to(daemon().create_forward("vm-1", kDigestPort));
  client.send("what is the digest of this?");
  client.finish();
  const Received answer = client.receive_to_end();
  EXPECT_EQ(answer.error, 0);
  EXPECT_EQ(answer.bytes, "27 57408b3d256c6fd847716af41942cf643cc2d9d9dd0bdb73c9f01ef3358f58d0\n");
}

TEST_P(ForwardTest, TakesTheClientsBytesAfterTheGuestsFin) {
  const CreatedForward forward = daemon().create_forward("vm-1", kSourcePort);
  TcpClient client = connect_to(forward);
  client.send("1000\n");
  const ReceivedDigest received = client.receive_digest_to_end();
  EXPECT_EQ(received.bytes, 1000u);
  EXPECT_EQ(received.error, 0);
  client.send_pattern(1'000'000);
  EXPECT_TRUE(
      daemon().wait_for_metric("portway_forward_received_bytes_total", {{"forward", forward.id}}, 1'000'005));
  client.finish();
}

TEST_P(ForwardTest, ResetsAClientWhoseGuestPortIsClosed) {
  const CreatedForward forward = daemon().create_forward("vm-1", kClosedPort);
  TcpClient client = connect_to(forward);
  const int error = client.connect_error() != 0 ? client.connect_error() : client.receive_to_end().error;
  EXPECT_THAT(error, testing::AnyOf(ECONNRESET, ECONNREFUSED)) << "a clean end would be a lie";
  EXPECT_TRUE(daemon().wait_for_metric("portway_forward_connect_errors_total",
                                       {{"forward", forward.id}, {"reason", "refused"}}, 1));
}

TEST_P(ForwardTest, ResetsAClientWhoseGuestDoesNotAnswer) {
  start_daemon({.connect_timeout_ms = 300});
  daemon().put_instance("vm-2", kSilentAddress, kSilentTap);
  const CreatedForward forward = daemon().create_forward("vm-2", kHttpPort);
  TcpClient client = connect_to(forward);
  const int error = client.connect_error() != 0 ? client.connect_error() : client.receive_to_end().error;
  EXPECT_THAT(error, testing::AnyOf(ECONNRESET, ECONNREFUSED)) << "a clean end would be a lie";
  EXPECT_TRUE(daemon().wait_for_metric("portway_forward_connect_errors_total",
                                       {{"forward", forward.id}, {"reason", "timeout"}}, 1));
}

TEST_P(ForwardTest, RefusesAClientWhoseTapIsDown) {
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort);
  network().host().ip("link set tap0 down");
  TcpClient client = connect_to(forward);
  const int error = client.connect_error() != 0 ? client.connect_error() : client.receive_to_end().error;
  EXPECT_THAT(error, testing::AnyOf(ECONNRESET, ECONNREFUSED)) << "a clean end would be a lie";

  // The session ended with the tap's carrier; the orchestrator begins another.
  network().host().ip("link set tap0 up");
  while (daemon().api("GET", "/instances/vm-1").json().at("instance").at("tap_state") != "up") {
  }
  EXPECT_EQ(daemon().api("POST", "/instances/vm-1/stop").status, 200);
  EXPECT_EQ(daemon().api("DELETE", "/instances/vm-1").status, 204);
  daemon().put_instance("vm-1");
  TcpClient next = connect_to(daemon().create_forward("vm-1", kEchoPort));
  next.send("back again");
  EXPECT_EQ(next.receive(10), "back again");
}

TEST_P(ForwardTest, PassesTheGuestsResetOnAfterAllOfItsBytes) {
  TcpClient client = connect_to(daemon().create_forward("vm-1", kResetPort));
  client.send("3000000\n");
  const ReceivedDigest received = client.receive_digest_to_end();
  EXPECT_EQ(received.error, ECONNRESET);
  EXPECT_EQ(received.bytes, 3'000'000u);
  EXPECT_EQ(received.sha256, pattern_sha256(3'000'000));
}

TEST_P(ForwardTest, OutlivesTheClientsReset) {
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort);
  TcpClient client = connect_to(forward);
  client.send("hello");
  EXPECT_EQ(client.receive(5), "hello");
  client.reset();
  EXPECT_TRUE(daemon().wait_for_metric("portway_connections_closed_total",
                                       {{"side", "client"}, {"how", "reset"}}, 1));
}

TEST_P(ForwardTest, KeepsItsIdAndPortWhenTheDaemonRestarts) {
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort);
  const std::string path = "/instances/vm-1/port-forwards/" + forward.id;
  const std::string before = daemon().api("GET", path).body;
  for (const int signal : {SIGTERM, SIGKILL}) {
    SCOPED_TRACE(strsignal(signal));
    EXPECT_EQ(daemon().stop(signal), signal == SIGTERM ? 0 : 128 + SIGKILL);
    daemon().start();
    // With SIGKILL, the client's connection of the last time is still there, too.
    const auto names = [](const std::string& body) {
      return body.substr(0, body.find("\"connections_active\""));
    };
    EXPECT_EQ(names(daemon().api("GET", path).body), names(before));
    TcpClient client = connect_to(forward);
    client.send("still there?");
    EXPECT_EQ(client.receive(12), "still there?");
  }
}

TEST_P(ForwardTest, IsGoneOnceDeletedWhileItsConnectionsRunOn) {
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort);
  TcpClient client = connect_to(forward);
  client.send("before");
  EXPECT_EQ(client.receive(6), "before");

  EXPECT_EQ(daemon().api("DELETE", "/instances/vm-1/port-forwards/" + forward.id).status, 204);
  EXPECT_EQ(daemon().api("GET", "/instances/vm-1/port-forwards/" + forward.id).status, 404);
  EXPECT_EQ(connect_to(forward).connect_error(), ECONNREFUSED);
  EXPECT_EQ(daemon().metrics().series_with("forward", forward.id), 0u);

  client.send("after, as under DNAT");
  EXPECT_EQ(client.receive(20), "after, as under DNAT");
}

TEST_P(ForwardTest, RunsOnTheIoBackendThatTheConfigNames) {
  EXPECT_EQ(daemon().metrics().value("portway_io_backend_info",
                                     {{"backend", std::get<std::string>(GetParam())}, {"reason", ""}}),
            1);
}

}  // namespace
}  // namespace portway::test
