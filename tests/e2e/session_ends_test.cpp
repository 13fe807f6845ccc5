// Everything in a session ends with it, even what the API no longer shows: connections of forwards deleted
// earlier, and of forwards that the daemon has closed because it is shutting down. What an old client
// sends never reaches the next machine on the tap.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <string>

#include "tests/e2e/daemon.h"
#include "tests/e2e/guest_network.h"
#include "tests/support/guest_ports.h"
#include "tests/support/requirements.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

using std::chrono::seconds;

/// Everything that arrives at a device, from its construction on.
class Arrivals {
 public:
  Arrivals(const NetworkNamespace& network, const char* device) {
    network.run([&] {
      socket_.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)));
      sockaddr_ll address{};
      address.sll_family = AF_PACKET;
      address.sll_protocol = htons(ETH_P_ALL);
      address.sll_ifindex = static_cast<int>(::if_nametoindex(device));
      EXPECT_EQ(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    });
  }

  /// The bytes of all packets up to the one that has `last` in it.
  std::string until(std::string_view last) {
    std::string all;
    while (all.find(last) == std::string::npos) {
      pollfd readable{.fd = socket_.get(), .events = POLLIN, .revents = 0};
      if (::poll(&readable, 1, 10'000) != 1) {
        ADD_FAILURE() << last << " did not arrive";
        break;
      }
      char packet[2048];
      const auto size = ::recv(socket_.get(), packet, sizeof packet, 0);
      if (size > 0) all.append(packet, static_cast<std::size_t>(size));
    }
    return all;
  }

 private:
  Fd socket_;
};

/// A datagram from the host to the guest's address.
void send_datagram(const NetworkNamespace& host, const std::string& bytes) {
  host.run([&] {
    const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const Endpoint guest(*parse_address(kGuestAddress), 9);
    EXPECT_EQ(::sendto(socket.get(), bytes.data(), bytes.size(), 0, guest.data(),
                       static_cast<socklen_t>(guest.size())),
              static_cast<ssize_t>(bytes.size()));
  });
}

class SessionEndsTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    network_ = std::make_unique<GuestNetwork>(GuestKind::kVeth);
    daemon_ = std::make_unique<Daemon>(
        *network_, DaemonOptions{.io_backend = GetParam(), .proxy = "drain_timeout_s = 60\n"});
    daemon_->put_instance("vm-1");
    forward_ = daemon_->create_forward("vm-1", kEchoPort);
    client_ = std::make_unique<TcpClient>(network_->client(), kHostAddress, forward_.host_port);
    expect_echo();
  }

  void expect_echo() {
    client_->send("ping");
    EXPECT_EQ(client_->receive(4), "ping");
  }
  void delete_forward(const std::string& policy) {
    const std::string path = "/instances/vm-1/port-forwards/" + forward_.id + "?connections=" + policy;
    EXPECT_EQ(daemon_->api("DELETE", path).status, 204);
    expect_echo();
  }
  void begin_to_drain() {
    daemon_->process().signal(SIGTERM);
    ASSERT_TRUE(daemon_->process().wait_for_output("draining for up to 60 s", seconds(10)));
    expect_echo();
  }
  /// The tap's other end goes to another machine, which is registered for another tenant.
  void hand_the_tap_on() {
    next_tenant_.emplace();
    network_->guest()->ip("link set eth0 netns /proc/" + std::to_string(::getpid()) + "/fd/" +
                          std::to_string(next_tenant_->fd()));
    next_tenant_->ip("address add 198.19.0.2/24 dev eth0");
    next_tenant_->ip("link set eth0 up");
  }
  void expect_reset() { EXPECT_EQ(client_->receive_to_end().error, ECONNRESET); }
  void expect_nothing_of_the_client_arrives() {
    Arrivals arrivals(*next_tenant_, "eth0");
    try {
      client_->send("secret");
    } catch (const std::system_error&) {  // there is no link left to send over
    }
    send_datagram(network_->host(), "the last one");
    EXPECT_EQ(arrivals.until("the last one").find("secret"), std::string::npos);
  }

  std::unique_ptr<GuestNetwork> network_;
  std::unique_ptr<Daemon> daemon_;
  CreatedForward forward_;
  std::unique_ptr<TcpClient> client_;
  std::optional<NetworkNamespace> next_tenant_;
};
INSTANTIATE_TEST_SUITE_P(Backends, SessionEndsTest, testing::Values("uring", "epoll"),
                         [](const auto& backend) { return backend.param; });

TEST_P(SessionEndsTest, AStopEndsAKeptConnectionOfADeletedForward) {
  delete_forward("keep");
  EXPECT_EQ(daemon_->api("POST", "/instances/vm-1/stop").status, 200);
  expect_reset();
  hand_the_tap_on();
  daemon_->put_instance("vm-2");
  expect_nothing_of_the_client_arrives();
}

TEST_P(SessionEndsTest, AStopEndsADrainedConnectionOfADeletedForward) {
  delete_forward("drain");
  EXPECT_EQ(daemon_->api("POST", "/instances/vm-1/stop").status, 200);
  expect_reset();
  hand_the_tap_on();
  daemon_->put_instance("vm-2");
  expect_nothing_of_the_client_arrives();
}

TEST_P(SessionEndsTest, ATapThatIsHandedOnEndsAKeptConnection) {
  delete_forward("keep");
  hand_the_tap_on();  // the kernel reports a carrier that was lost and is back
  expect_reset();
  expect_nothing_of_the_client_arrives();
}

TEST_P(SessionEndsTest, ANewSessionEndsAKeptConnection) {
  delete_forward("keep");
  daemon_->put_instance("vm-1", "198.19.0.9");
  expect_reset();
}

TEST_P(SessionEndsTest, ADeletedInstanceEndsAKeptConnection) {
  delete_forward("keep");
  EXPECT_EQ(daemon_->api("DELETE", "/instances/vm-1").status, 204);
  expect_reset();
}

TEST_P(SessionEndsTest, ATapThatIsDeletedWhileTheDaemonGoesDownEndsItsConnections) {
  begin_to_drain();
  network_->host().ip("link del tap0");
  expect_reset();
  EXPECT_EQ(daemon_->process().wait(seconds(10)), 0) << "with nothing left it need not wait";
}

TEST_P(SessionEndsTest, ATapThatIsHandedOnWhileTheDaemonGoesDownEndsItsConnections) {
  delete_forward("keep");
  begin_to_drain();
  hand_the_tap_on();
  expect_reset();
  expect_nothing_of_the_client_arrives();
  EXPECT_EQ(daemon_->process().wait(seconds(10)), 0);
}

TEST_P(SessionEndsTest, AStopWhileTheDaemonGoesDownEndsItsConnections) {
  begin_to_drain();
  EXPECT_EQ(daemon_->api("POST", "/instances/vm-1/stop").status, 200);
  expect_reset();
  EXPECT_EQ(daemon_->process().wait(seconds(10)), 0);
}

}  // namespace
}  // namespace portway::test
