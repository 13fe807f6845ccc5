// The address that the guest sees as its client's: the client's own, without netfilter, wherever a kernel
// DNAT rule would have kept it; and what is left on the node afterwards, which is nothing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/socket.h>

#include <cerrno>
#include <csignal>
#include <deque>
#include <string>

#include "tests/e2e/guest_suite.h"
#include "tests/support/guest_ports.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class SourceTest : public GuestSuite {
 protected:
  void TearDown() override {
    GuestSuite::TearDown();
    if (has_daemon()) expect_nothing_is_left();
  }

  /// What the guest saw of a client.
  std::string seen(TcpClient& client) {
    EXPECT_EQ(client.connect_error(), 0);
    const Received received = client.receive_to_end();
    EXPECT_EQ(received.error, 0);
    return received.bytes;
  }
  static std::string line(const Endpoint& endpoint, int dscp = 0) {
    return endpoint.address().to_string() + " " + std::to_string(endpoint.port()) + " " +
           std::to_string(dscp) + "\n";
  }

  /// A listener of the node on all addresses; its port.
  std::uint16_t listen_on_the_node(Fd& listener, const IpAddress& at = boost::asio::ip::address_v4::any()) {
    Endpoint any(at, 0);
    network().host().run([&] {
      listener.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      ASSERT_EQ(::bind(listener.get(), any.data(), static_cast<socklen_t>(any.size())), 0);
      ASSERT_EQ(::listen(listener.get(), 1), 0);
      auto size = static_cast<socklen_t>(any.capacity());
      ASSERT_EQ(::getsockname(listener.get(), any.data(), &size), 0);
    });
    return any.port();
  }

  void expect_counted(const std::string& mode, const std::string& fallback, double count = 1) {
    EXPECT_EQ(daemon().metrics().value("portway_source_mode_connections_total",
                                       {{"mode", mode}, {"fallback", fallback}}),
              count)
        << mode << " " << fallback;
  }

  void expect_nothing_is_left() {
    for (const char* family : {"-4", "-6"}) {
      EXPECT_THAT(run_command(&network().host(), {"ip", family, "rule"}), Not(HasSubstr("5210")));
    }
    EXPECT_THAT(run_command(&network().host(), {"tc", "filter", "show", "dev", kTap, "ingress"}),
                Not(HasSubstr("portway")));
    EXPECT_EQ(network().host().nft_ruleset(), "");
  }
};
INSTANTIATE_TEST_SUITE_P(Guests, SourceTest, guests_and_backends(), guest_parameter_name);

/// For tests in which the guest is a client: the virtual machine has no program for that.
class SourceInNamespacesTest : public SourceTest {};
INSTANTIATE_TEST_SUITE_P(Guests, SourceInNamespacesTest,
                         testing::Combine(testing::Values(GuestKind::kVeth),
                                          testing::Values("uring", "epoll")),
                         guest_parameter_name);

TEST_P(SourceTest, TheGuestSeesTheClientsAddressAndPort) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  TcpClient client(network().client(), kHostAddress, forward.host_port);
  EXPECT_EQ(seen(client), line(client.local()));
  expect_counted("transparent", "");
  const auto instance = daemon().api("GET", "/instances/vm-1").json();
  EXPECT_EQ(instance.at("instance").at("source_mode"), "transparent");
}

TEST_P(SourceTest, AnIpv6GuestSeesItsIpv6ClientsAddressAndPort) {
  daemon().put_instance("vm-1", kGuestAddress6);
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  TcpClient client(network().client(), kHostAddress6, forward.host_port);
  EXPECT_EQ(seen(client), line(client.local()));
  expect_counted("transparent", "");
}

TEST_P(SourceTest, AClientOfTheOtherFamilyIsSeenAsTheNode) {
  const CreatedForward to_v4 = daemon().create_forward("vm-1", kWhoPort);
  TcpClient v6(network().client(), kHostAddress6, to_v4.host_port);
  EXPECT_THAT(seen(v6), StartsWith("198.19.0.1 "));
  expect_counted("plain", "family");

  daemon().put_instance("vm-1", kGuestAddress6);
  const CreatedForward to_v6 = daemon().create_forward("vm-1", kWhoPort);
  TcpClient v4(network().client(), kHostAddress, to_v6.host_port);
  EXPECT_THAT(seen(v4), StartsWith("fd00:19::1 "));
  expect_counted("plain", "family", 2);
}

TEST_P(SourceTest, AGuestWithAnAddressOfEachFamilySeesTheAddressesOfAllItsClients) {
  const std::string body = R"({"guest_addresses": [")" + std::string(kGuestAddress6) + R"(", ")" +
                           kGuestAddress + R"("], "tap": "tap0", "owner": "acme"})";
  const HttpResponse put = daemon().api("PUT", "/instances/vm-1", body);
  ASSERT_EQ(put.status, 200) << put.body;
  EXPECT_EQ(put.json().at("instance").at("guest_addresses"),
            boost::json::array({kGuestAddress, kGuestAddress6}));
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  const auto both_are_seen = [&] {
    for (const char* address : {kHostAddress, kHostAddress6}) {
      TcpClient client(network().client(), address, forward.host_port);
      EXPECT_EQ(seen(client), line(client.local()));
    }
    expect_counted("transparent", "", 2);
  };
  both_are_seen();
  const HttpResponse check = daemon().api("GET", "/instances/vm-1/port-forwards/" + forward.id + "/check");
  EXPECT_TRUE(check.json().at("check").at("ok").as_bool()) << check.body;
  EXPECT_THAT(check.body, testing::AllOf(HasSubstr("on 198.19.0.2:"), HasSubstr("on [fd00:19::2]:")));
  EXPECT_EQ(daemon().stop(SIGTERM), 0);
  daemon().start();
  both_are_seen();
}

TEST_P(SourceInNamespacesTest, AGuestThatRefusesOneFamilyServesTheOther) {
  const HttpResponse put =
      daemon().api("PUT", "/instances/vm-1",
                   R"({"guest_addresses": ["198.19.0.2", "fd00:19::2"], "tap": "tap0", "owner": "acme"})");
  ASSERT_EQ(put.status, 200) << put.body;
  const std::string filter =
      "add table ip6 f; add chain ip6 f in { type filter hook input priority 0; }; add rule ip6 f in "
      "tcp dport " +
      std::to_string(kWhoPort) + " reject with tcp reset";
  run_command(network().guest(), {"nft", filter});
  for (const char* mode : {"transparent", "plain"}) {
    const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort, mode);
    {
      TcpClient first(network().client(), kHostAddress6, forward.host_port);
      EXPECT_EQ(first.receive_to_end().error, ECONNRESET) << "it was accepted before the guest was asked";
    }
    EXPECT_TRUE(daemon().wait_for_metric("portway_forwards_refusing", {}, 1));
    TcpClient refused(network().client(), kHostAddress6, forward.host_port);
    EXPECT_EQ(refused.connect_error(), ECONNREFUSED) << mode;
    TcpClient served(network().client(), kHostAddress, forward.host_port);
    EXPECT_THAT(seen(served), StartsWith("198.1")) << mode;
    EXPECT_EQ(daemon().api("DELETE", "/instances/vm-1/port-forwards/" + forward.id).status, 204);
    EXPECT_TRUE(daemon().wait_for_metric("portway_forwards_refusing", {}, 0));
  }
  run_command(network().guest(), {"nft", "delete table ip6 f"});
}

TEST_P(SourceTest, AClientsPortThatIsTakenOnTheNodeIsReplaced) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  Fd listener;
  const std::uint16_t port = listen_on_the_node(listener);
  TcpClient client(network().client(), kHostAddress, forward.host_port, {.source_port = port});
  const std::string who = seen(client);
  EXPECT_THAT(who, StartsWith("198.18.0.2 "));
  EXPECT_NE(who, line(client.local()));
  expect_counted("transparent", "port_in_use");
}

TEST_P(SourceTest, AClientsPortThatIsTakenAtAnotherAddressOfTheNodeIsKept) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  Fd listener;
  const std::uint16_t port = listen_on_the_node(listener, boost::asio::ip::address_v4::loopback());
  TcpClient client(network().client(), kHostAddress, forward.host_port, {.source_port = port});
  EXPECT_EQ(seen(client), line(client.local()));
  expect_counted("transparent", "");
}

TEST_P(SourceTest, AClientOnTheNodeGetsThrough) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  TcpClient client(network().host(), kHostAddress, forward.host_port);
  EXPECT_EQ(seen(client), line(client.local())) << "its port is in use, but not towards the guest";
  expect_counted("transparent", "");
}

TEST_P(SourceInNamespacesTest, AGuestThatIsItsOwnClientSeesTheNode) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  TcpClient client(*network().guest(), kHostAddress, forward.host_port);
  EXPECT_THAT(seen(client), StartsWith("198.19.0.1 "));
  expect_counted("plain", "hairpin");
}

TEST_P(SourceTest, OnRequestTheGuestGetsAProxyHeader) {
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort, "proxy_v2");
  TcpClient client(network().client(), kHostAddress, forward.host_port);
  client.send("hello");
  const std::string echoed = client.receive(28 + 5);
  EXPECT_THAT(echoed, StartsWith(std::string("\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 16)));
  const auto port = static_cast<std::uint16_t>(static_cast<unsigned char>(echoed[24]) << 8 |
                                               static_cast<unsigned char>(echoed[25]));
  EXPECT_EQ(echoed.substr(16, 4), "\xc6\x12" + std::string("\0\x02", 2)) << "198.18.0.2";
  EXPECT_EQ(port, client.local().port());
  EXPECT_THAT(echoed, testing::EndsWith("hello"));
  expect_counted("proxy_v2", "");
}

TEST_P(SourceTest, OnRequestTheGuestSeesTheNode) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort, "plain");
  TcpClient client(network().client(), kHostAddress, forward.host_port);
  EXPECT_THAT(seen(client), StartsWith("198.19.0.1 "));
  expect_counted("plain", "");
  const HttpResponse changed = daemon().api("PATCH", "/instances/vm-1/port-forwards/" + forward.id,
                                            R"({"source_mode": "transparent"})");
  ASSERT_EQ(changed.status, 200) << changed.body;
  TcpClient next(network().client(), kHostAddress, forward.host_port);
  EXPECT_EQ(seen(next), line(next.local()));
}

TEST_P(SourceTest, TheDscpOfTheClientsSynReachesTheGuest) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  TcpClient client(network().client(), kHostAddress, forward.host_port, {.dscp = 0x28});
  EXPECT_EQ(seen(client), line(client.local(), 0x28));
}

/// A client on the node has its port there, so a second socket is tried for it, and the SYN can be read
/// only once. The node has so few ports for outgoing connections that a test can use them up.
class ScarcePorts {
 public:
  ScarcePorts(const NetworkNamespace& node, const std::string& range, const std::string& reserved = "")
      : node_(node) {
    node_.set(kRange, range);
    node_.set(kReserved, reserved + "\n");
  }
  ~ScarcePorts() {
    node_.set(kRange, "32768 60999");
    node_.set(kReserved, "\n");
  }
  ScarcePorts(const ScarcePorts&) = delete;
  ScarcePorts& operator=(const ScarcePorts&) = delete;

 private:
  static constexpr const char* kRange = "net/ipv4/ip_local_port_range";
  static constexpr const char* kReserved = "net/ipv4/ip_local_reserved_ports";
  const NetworkNamespace& node_;
};

TEST_P(SourceInNamespacesTest, ClientsPortsAreNotTakenFromTheNodesOwnConnections) {
  // The clients' ports stay in TIME_WAIT afterwards, and the next test uses the network.
  const std::uint16_t first = std::get<1>(GetParam()) == "uring" ? 40000 : 41000;
  const auto last = static_cast<std::uint16_t>(first + 31);
  const ScarcePorts ports(network().host(), std::to_string(first) + " " + std::to_string(last));
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort);
  std::deque<TcpClient> clients;
  for (std::uint16_t port = first; port <= last; ++port) {
    TcpClient& client = clients.emplace_back(network().client(), kHostAddress, forward.host_port,
                                             TcpClientOptions{.source_port = port});
    client.send("x");
    ASSERT_EQ(client.receive(1), "x") << port;
  }
  expect_counted("transparent", "", 32);
  TcpClient own(network().host(), kGuestAddress, kEchoPort);
  EXPECT_EQ(own.connect_error(), 0) << "the clients hold every port that the node has for itself";
  for (TcpClient& client : clients) client.finish();
  for (TcpClient& client : clients) EXPECT_EQ(client.receive_to_end().error, 0);
}

TEST_P(SourceInNamespacesTest, ShortConnectionsFromTheNodesAddressDoNotUseUpItsPorts) {
  const ScarcePorts ports(network().host(), "43000 43999", "43000-43299,43400-43799");
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort, "plain");
  for (int i = 0; i < 500; ++i) {
    TcpClient client(network().client(), kHostAddress, forward.host_port);
    ASSERT_EQ(client.connect_error(), 0);
    client.send("x");
    ASSERT_EQ(client.receive(1), "x") << "connection " << i;
    client.finish();  // first: the node's side has the TIME_WAIT
    ASSERT_EQ(client.receive_to_end().error, 0);
  }
}

TEST_P(SourceInNamespacesTest, ConnectionsThatFindNoPortAreReportedSeparately) {
  const ScarcePorts ports(network().host(), "42000 42003");
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort, "plain");
  std::deque<TcpClient> clients;
  for (int i = 0; i < 4; ++i) {
    TcpClient& client = clients.emplace_back(network().client(), kHostAddress, forward.host_port);
    client.send("x");
    ASSERT_EQ(client.receive(1), "x");
  }
  TcpClient late(network().client(), kHostAddress, forward.host_port);
  EXPECT_EQ(late.receive_to_end().error, ECONNRESET);
  EXPECT_EQ(daemon().metrics().value("portway_forward_connect_errors_total",
                                     {{"forward", forward.id}, {"reason", "source_ports"}}),
            1);
  for (TcpClient& client : clients) client.finish();
  for (TcpClient& client : clients) EXPECT_EQ(client.receive_to_end().error, 0);
}

// It was once served from the node's address instead. The API did not report that, and a guest's filter
// may admit the node but not its clients.
TEST_P(SourceInNamespacesTest, AGuestThatCannotAnswerItsClientsIsNotServedFromTheNodesAddress) {
  start_daemon({.io_backend = std::get<1>(GetParam()), .connect_timeout_ms = 300});
  const CreatedForward forward = daemon().create_forward("vm-1", kEchoPort);
  network().guest()->ip("route del default");
  TcpClient client(network().client(), kHostAddress, forward.host_port);
  EXPECT_EQ(client.receive_to_end().error, ECONNRESET);
  const HttpResponse check = daemon().api("GET", "/instances/vm-1/port-forwards/" + forward.id + "/check");
  const auto instance = daemon().api("GET", "/instances/vm-1").json().at("instance");
  network().guest()->ip("route add default via 198.19.0.1");
  EXPECT_THAT(check.body, AllOf(HasSubstr("answers the node"), HasSubstr("default route")));
  EXPECT_EQ(instance.at("source_mode"), "transparent");
  EXPECT_TRUE(daemon().wait_for_metric("portway_forward_connect_errors_total",
                                       {{"forward", forward.id}, {"reason", "timeout"}}, 1));
  TcpClient next(network().client(), kHostAddress, forward.host_port);
  next.send("x");
  EXPECT_EQ(next.receive(1), "x");
  next.finish();
  EXPECT_EQ(next.receive_to_end().error, 0);
}

TEST_P(SourceTest, TheDscpReachesTheGuestAlsoWhereThePortIsReplaced) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  Fd listener;
  const std::uint16_t port = listen_on_the_node(listener);
  TcpClient client(network().client(), kHostAddress, forward.host_port, {.source_port = port, .dscp = 0x28});
  EXPECT_THAT(seen(client), testing::EndsWith(" 40\n"));
  expect_counted("transparent", "port_in_use");
}

TEST_P(SourceTest, AfterACrashTheNextOneFindsWhatIsLeftAndServesOn) {
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  EXPECT_EQ(daemon().stop(SIGKILL), 128 + SIGKILL);
  EXPECT_THAT(run_command(&network().host(), {"ip", "rule"}), HasSubstr("5210"));
  daemon().start();
  TcpClient client(network().client(), kHostAddress, forward.host_port);
  EXPECT_EQ(seen(client), line(client.local()));
}

TEST_P(SourceTest, WithoutCapabilitiesTheGuestSeesTheNodeAndTheNodeSaysWhy) {
  EXPECT_EQ(daemon().stop(SIGTERM), 0) << "it removes its rules; the next one could not";
  start_daemon({.no_capabilities = true});
  const CreatedForward forward = daemon().create_forward("vm-1", kWhoPort);
  TcpClient client(network().client(), kHostAddress, forward.host_port);
  EXPECT_THAT(seen(client), StartsWith("198.19.0.1 "));
  expect_counted("plain", "no_return_path");
  const auto info = daemon().api("GET", "/v1/info").json();
  EXPECT_EQ(info.at("source_mode"), "plain");
  EXPECT_THAT(std::string(info.at("source_mode_reason").as_string()), HasSubstr("CAP_"));
}

TEST_P(SourceTest, AClosedPortRefusesClientsUntilItIsOpen) {
  const auto check = [&](const std::string& id) {
    return daemon().api("GET", "/instances/vm-1/port-forwards/" + id + "/check?client=198.18.0.2").body;
  };
  const CreatedForward forward = daemon().create_forward("vm-1", kClosedPort);
  const CreatedForward control = daemon().create_forward("vm-1", kSwitchPort);
  const auto tell = [&](std::string_view what) {
    TcpClient client(network().client(), kHostAddress, control.host_port);
    client.send(what);
    EXPECT_EQ(client.receive(5), "done\n");
  };
  for (int i = 1; i <= 2; ++i) {
    {
      TcpClient first(network().client(), kHostAddress, forward.host_port);
      EXPECT_EQ(first.receive_to_end().error, ECONNRESET) << "it was accepted before the guest was asked";
    }
    EXPECT_TRUE(daemon().wait_for_metric("portway_forwards_refusing", {}, 1));
    TcpClient second(network().client(), kHostAddress, forward.host_port);
    EXPECT_EQ(second.connect_error(), ECONNREFUSED);
    EXPECT_THAT(check(forward.id), HasSubstr("refuses clients there now"));
    tell("open\n");
    EXPECT_TRUE(daemon().wait_for_metric("portway_forwards_refusing", {}, 0));
    EXPECT_THAT(check(forward.id), Not(HasSubstr("refuses clients there now")));
    {
      TcpClient third(network().client(), kHostAddress, forward.host_port);
      third.send("hello");
      EXPECT_EQ(third.receive(5), "hello");
    }
    tell("close\n");
  }
}

TEST_P(SourceTest, TheNextForwardOfAPortRefusesNobodyWhomTheOneBeforeRefused) {
  const CreatedForward before = daemon().create_forward("vm-1", kClosedPort);
  {
    TcpClient first(network().client(), kHostAddress, before.host_port);
    EXPECT_EQ(first.receive_to_end().error, ECONNRESET);
  }
  EXPECT_TRUE(daemon().wait_for_metric("portway_forwards_refusing", {}, 1));
  EXPECT_EQ(daemon().api("DELETE", "/instances/vm-1/port-forwards/" + before.id).status, 204);
  const HttpResponse next = daemon().api("POST", "/instances/vm-1/port-forwards",
                                         R"({"guest_port": )" + std::to_string(kDigestPort) +
                                             R"(, "host_port": )" + std::to_string(before.host_port) + "}");
  ASSERT_EQ(next.status, 201) << next.body;
  TcpClient second(network().client(), kHostAddress, before.host_port);
  EXPECT_EQ(second.connect_error(), 0);
  EXPECT_TRUE(daemon().wait_for_metric("portway_forwards_refusing", {}, 0));
}

TEST_P(SourceTest, AGuestThatIsPausedLosesNothing) {
  const CreatedForward forward = daemon().create_forward("vm-1", kDigestPort);
  TcpClient client(network().client(), kHostAddress, forward.host_port);
  EXPECT_TRUE(daemon().wait_for_metric("portway_source_mode_connections_total",
                                       {{"mode", "transparent"}, {"fallback", ""}}, 1))
      << "the guest has answered";
  network().pause_guest();
  constexpr std::uint64_t kBytes = 8 * 1024;  // fits into the send buffer of a new connection
  const std::string sha256 = client.send_pattern(kBytes);
  client.finish();
  // Until retransmissions have begun and back off: the daemon has sent its part, and counts it.
  EXPECT_TRUE(daemon().wait_for_metric("portway_forward_received_bytes_total", {{"forward", forward.id}},
                                       static_cast<double>(kBytes)));
  network().resume_guest();
  EXPECT_EQ(client.receive_to_end().bytes, std::to_string(kBytes) + " " + sha256 + "\n");
}

}  // namespace
}  // namespace portway::test
