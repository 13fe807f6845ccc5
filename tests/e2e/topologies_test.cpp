// Guests that are reached through something other than a tap with an address of its own: a bridge, the
// node's routes, or one of several taps whose guests all have the same address.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/e2e/daemon.h"
#include "tests/e2e/guest_network.h"
#include "tests/support/requirements.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

using std::chrono::seconds;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr std::uint16_t kNamePort = 7000;
/// Answers each client with the guest's name and the address that the guest sees as the client's.
constexpr const char* kNameService = R"py(
import socket, sys
v6 = ":" in sys.argv[2]
listener = socket.create_server(("::" if v6 else "0.0.0.0", 7000), family=socket.AF_INET6 if v6 else socket.AF_INET)
print("ready", flush=True)
while True:
    client, address = listener.accept()
    client.sendall(f"{sys.argv[1]} {address[0]}".encode())
    client.close()
)py";

/// Sends each client back what it gets.
constexpr std::uint16_t kEchoPort = 7001;
constexpr const char* kEchoService = R"py(
import socket, threading
def serve(client):
    try:
        while data := client.recv(65536):
            client.sendall(data)
    except OSError:
        pass
    client.close()
listener = socket.create_server(("::", 7001), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
)py";

/// A machine of its own: a namespace behind a veth, whose end on the node stands for its tap.
class Guest {
 public:
  Guest(const NetworkNamespace& host, const std::string& name, const std::string& tap,
        const std::string& address)
      : name_(name) {
    host.ip("link add " + tap + " type veth peer name eth0 netns /proc/" + std::to_string(::getpid()) +
            "/fd/" + std::to_string(network_.fd()));
    host.ip("link set " + tap + " up");
    const bool v6 = address.find(':') != std::string::npos;
    network_.ip("address add " + address + (v6 ? "/64 nodad" : "/24") + " dev eth0");
    network_.ip("link set eth0 up");
    service_ = start({"python3", "-c", kNameService, name, address});
  }
  void serve_echo() { echo_service_ = start({"python3", "-c", kEchoService}); }

  const NetworkNamespace& network() const { return network_; }
  const std::string& name() const { return name_; }

 private:
  std::unique_ptr<Process> start(std::vector<std::string> command) const {
    auto service =
        std::make_unique<Process>(SpawnOptions{.command = std::move(command), .network = &network_});
    if (!service->wait_for_output("ready", seconds(30))) ADD_FAILURE() << service->output();
    return service;
  }

  const std::string name_;
  NetworkNamespace network_;
  std::unique_ptr<Process> service_;
  std::unique_ptr<Process> echo_service_;
};

class TopologiesTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    network_ = std::make_unique<GuestNetwork>(GuestKind::kVeth);
    daemon_ = std::make_unique<Daemon>(*network_, DaemonOptions{.io_backend = GetParam()});
  }

  const NetworkNamespace& host() { return network_->host(); }
  HttpResponse put(const std::string& id, const std::string& address, const std::string& tap,
                   const std::string& device = "") {
    boost::json::object body{{"guest_address", address}, {"tap", tap}, {"owner", "alice"}};
    if (!device.empty()) body["device"] = device;
    return daemon_->api("PUT", "/instances/" + id, boost::json::serialize(body));
  }
  HttpResponse move(const std::string& id, const std::string& address) {
    return daemon_->api("PATCH", "/instances/" + id,
                        boost::json::serialize(boost::json::object{{"guest_address", address}}));
  }
  /// What a client of the forward gets: "NAME ADDRESS".
  std::string ask(const CreatedForward& forward, const char* node = kHostAddress) {
    TcpClient client(network_->client(), node, forward.host_port);
    return client.receive_to_end().bytes;
  }
  /// The same once the client is not reset any more.
  std::string ask_until_answered(const CreatedForward& forward) {
    const auto deadline = std::chrono::steady_clock::now() + seconds(10);
    std::string answer;
    while (answer.empty() && std::chrono::steady_clock::now() < deadline) answer = ask(forward);
    return answer;
  }
  static bool comes_true(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + seconds(10);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
    }
    return true;
  }
  /// Whether the JSON of the instance, or of something of it, has this text within ten seconds.
  bool becomes(const std::string& id, const std::string& text, const std::string& of_it = "") {
    return comes_true(
        [&] { return daemon_->api("GET", "/instances/" + id + of_it).body.find(text) != std::string::npos; });
  }
  std::string instance(const std::string& id) { return daemon_->api("GET", "/instances/" + id).body; }

  /// Each guest's tap gets the node's address, and a route to the address that all of the guests have.
  void route_to_each(const std::string& address, const std::string& node_address,
                     std::initializer_list<const Guest*> guests) {
    int metric = 100;
    for (const Guest* guest : guests) {
      const std::string tap = "tap-" + guest->name();
      host().ip("address add " + node_address + "/32 dev " + tap);
      host().ip("route add " + address + " dev " + tap + " metric " + std::to_string(metric++));
      guest->network().ip("route add default via " + node_address);
    }
  }

  std::unique_ptr<GuestNetwork> network_;
  std::unique_ptr<Daemon> daemon_;
};

INSTANTIATE_TEST_SUITE_P(Backends, TopologiesTest, testing::Values("uring", "epoll"),
                         [](const auto& each) { return each.param; });

TEST_P(TopologiesTest, GuestsBehindABridgeAreReachedThroughIt) {
  host().ip("link add br0 type bridge");
  host().ip("link set br0 up");
  host().ip("address add 198.19.1.1/24 dev br0");
  const Guest a(host(), "a", "tap-a", "198.19.1.2");
  const Guest b(host(), "b", "tap-b", "198.19.1.3");
  host().ip("link set tap-a master br0");
  host().ip("link set tap-b master br0");

  const HttpResponse refused = put("vm-a", "198.19.1.2", "tap-a");
  EXPECT_EQ(refused.status, 422) << "its clients would time out";
  EXPECT_THAT(refused.body, AllOf(HasSubstr(R"("field":"tap")"), HasSubstr("with the device br0")));
  const HttpResponse missing = put("vm-a", "198.19.1.2", "tap-a", "br1");
  EXPECT_EQ(missing.status, 422);
  EXPECT_THAT(missing.body, AllOf(HasSubstr(R"("field":"device")"), HasSubstr("no interface br1")));
  ASSERT_EQ(put("vm-a", "198.19.1.2", "tap-a", "br0").status, 201);
  ASSERT_EQ(put("vm-a", "198.19.1.2", "tap-a", "br0").status, 200);
  EXPECT_THAT(instance("vm-a"), HasSubstr(R"("device":"br0")"));
  const HttpResponse taken = put("vm-b", "198.19.1.2", "tap-b", "br0");
  EXPECT_EQ(taken.status, 409);
  EXPECT_THAT(taken.body, AllOf(HasSubstr("guest_address_in_use"), HasSubstr("vm-a")));
  ASSERT_EQ(put("vm-b", "198.19.1.3", "tap-b", "br0").status, 201);

  const CreatedForward to_a = daemon_->create_forward("vm-a", kNamePort);
  const CreatedForward to_b = daemon_->create_forward("vm-b", kNamePort);
  EXPECT_EQ(ask(to_a), "a 198.19.1.1");
  EXPECT_EQ(ask(to_b), "b 198.19.1.1");
  EXPECT_THAT(instance("vm-a"), AllOf(HasSubstr("no_return_path"), HasSubstr("reached through br0")));
  const HttpResponse check = daemon_->api("GET", "/instances/vm-a/port-forwards/" + to_a.id + "/check");
  EXPECT_THAT(check.body, AllOf(HasSubstr(R"({"check":{"ok":true)"), HasSubstr("is reached over br0")));
  // Its answers may go to another router on the bridge, unless the operator knows better.
  a.network().ip("route add default via 198.19.1.1");
  EXPECT_EQ(ask(daemon_->create_forward("vm-a", kNamePort, "transparent")), "a 198.18.0.2");

  Process echo({.command = {"python3", "-c", kEchoService}, .network = &a.network()});
  ASSERT_TRUE(echo.wait_for_output("ready", seconds(30))) << echo.output();
  TcpClient held(network_->client(), kHostAddress, daemon_->create_forward("vm-a", kEchoPort).host_port);
  held.send("hello");
  ASSERT_EQ(held.receive(5), "hello");

  host().ip("link del br0");  // its ports stay, with their guests
  EXPECT_EQ(held.receive_to_end().error, ECONNRESET) << "it would hang, also once the bridge is there again";
  EXPECT_EQ(ask(to_a), "") << "reset, and not sent by another way";
  host().ip("link add br0 type bridge");
  host().ip("link set br0 up");
  host().ip("address add 198.19.1.1/24 dev br0");
  host().ip("link set tap-a master br0");
  host().ip("link set tap-b master br0");
  EXPECT_THAT(ask_until_answered(to_a), StartsWith("a "));

  a.network().ip("link set eth0 down");
  EXPECT_TRUE(becomes("vm-a", "carrier_lost"));
  EXPECT_THAT(ask_until_answered(to_b), StartsWith("b ")) << "each session ends with its own tap";

  ASSERT_EQ(daemon_->stop(SIGTERM), 0);
  daemon_->start();
  EXPECT_THAT(ask_until_answered(to_b), StartsWith("b ")) << "the device is in the store";
}

// DHCP may give a guest another address when it resumes.
TEST_P(TopologiesTest, AGuestWhoseAddressChangesKeepsItsHostPortsAndItsNeighbourItsConnections) {
  host().ip("link add br0 type bridge");
  host().ip("link set br0 up");
  host().ip("address add 198.19.1.1/24 dev br0");
  Guest a(host(), "a", "tap-a", "198.19.1.2");
  Guest b(host(), "b", "tap-b", "198.19.1.3");
  for (Guest* guest : {&a, &b}) {
    host().ip("link set tap-" + guest->name() + " master br0");
    guest->serve_echo();
  }
  ASSERT_EQ(put("vm-a", "198.19.1.2", "tap-a", "br0").status, 201);
  ASSERT_EQ(put("vm-b", "198.19.1.3", "tap-b", "br0").status, 201);
  const CreatedForward name_of_a = daemon_->create_forward("vm-a", kNamePort);
  const CreatedForward to_a = daemon_->create_forward("vm-a", kEchoPort);
  const CreatedForward to_b = daemon_->create_forward("vm-b", kEchoPort);
  TcpClient client_a(network_->client(), kHostAddress, to_a.host_port);
  TcpClient client_b(network_->client(), kHostAddress, to_b.host_port);
  for (TcpClient* client : {&client_a, &client_b}) {
    client->send("hello");
    ASSERT_EQ(client->receive(5), "hello");
  }

  EXPECT_EQ(move("vm-a", "198.19.1.3").status, 409) << "it is the neighbour's";
  a.network().ip("address del 198.19.1.2/24 dev eth0");
  a.network().ip("address add 198.19.1.9/24 dev eth0");
  const HttpResponse moved = move("vm-a", "198.19.1.9");
  ASSERT_EQ(moved.status, 200) << moved.body;
  EXPECT_EQ(move("vm-a", "198.19.1.9").body, moved.body);
  EXPECT_EQ(client_a.receive_to_end().error, ECONNRESET);
  client_b.send("still here");
  EXPECT_EQ(client_b.receive(10), "still here");
  EXPECT_EQ(ask_until_answered(name_of_a), "a 198.19.1.1");
  EXPECT_TRUE(becomes("vm-a", R"("how":"address_changed")",
                      "/port-forwards/" + to_a.id + "/connections?state=closed"));
  const HttpResponse check = daemon_->api("GET", "/instances/vm-a/port-forwards/" + to_a.id + "/check");
  EXPECT_THAT(check.body, AllOf(HasSubstr(R"({"check":{"ok":true)"), HasSubstr("198.19.1.9")));

  client_b.finish();
  EXPECT_EQ(client_b.receive_to_end().error, 0);
  ASSERT_EQ(daemon_->stop(SIGTERM), 0);
  daemon_->start();
  EXPECT_EQ(ask_until_answered(name_of_a), "a 198.19.1.1") << "the store has the new address";
}

TEST_P(TopologiesTest, AGuestSeesItsClientsAtItsNewAddressAsAtTheOldOne) {
  const Guest a(host(), "a", "tap-a", "198.19.2.2");
  host().ip("address add 198.19.2.1/24 dev tap-a");
  a.network().ip("route add default via 198.19.2.1");
  ASSERT_EQ(put("vm-a", "198.19.2.2", "tap-a").status, 201);
  const CreatedForward to_a = daemon_->create_forward("vm-a", kNamePort);
  EXPECT_EQ(ask(to_a), "a 198.18.0.2");
  a.network().ip("address add 198.19.2.9/24 dev eth0");
  for (const char* address : {"198.19.2.9", "198.19.2.2", "198.19.2.9"}) {
    ASSERT_EQ(move("vm-a", address).status, 200);
    EXPECT_EQ(ask(to_a), "a 198.18.0.2") << address;
  }
  EXPECT_THAT(instance("vm-a"), HasSubstr(R"("source_mode":"transparent")"));
  // The old address is free for another guest.
  const Guest b(host(), "b", "tap-b", "198.19.2.2");
  host().ip("address add 198.19.2.1/32 dev tap-b");
  host().ip("route add 198.19.2.2 dev tap-b");
  b.network().ip("route add default via 198.19.2.1");
  ASSERT_EQ(put("vm-b", "198.19.2.2", "tap-b").status, 201);
  EXPECT_EQ(ask(daemon_->create_forward("vm-b", kNamePort)), "b 198.18.0.2");
  EXPECT_EQ(ask(to_a), "a 198.18.0.2");
}

TEST_P(TopologiesTest, GuestsWithOneAddressBehindTwoTapsAreToldApart) {
  const Guest a(host(), "a", "tap-a", "198.19.2.2");
  const Guest b(host(), "b", "tap-b", "198.19.2.2");
  route_to_each("198.19.2.2", "198.19.2.1", {&a, &b});
  ASSERT_EQ(put("vm-a", "198.19.2.2", "tap-a").status, 201);
  ASSERT_EQ(put("vm-b", "198.19.2.2", "tap-b").status, 201) << "an address is unique behind its device";
  const CreatedForward to_a = daemon_->create_forward("vm-a", kNamePort);
  const CreatedForward to_b = daemon_->create_forward("vm-b", kNamePort);
  host().ip("link set tap-b name tap-c");
  EXPECT_EQ(put("vm-c", "198.19.2.2", "tap0", "tap-c").status, 409) << "whatever its device is called now";
  EXPECT_EQ(put("vm-c", "198.19.2.2", "tap0", "none").status, 409) << "the routes lead to a";
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(ask(to_a), "a 198.18.0.2");
    EXPECT_EQ(ask(to_b), "b 198.18.0.2");
  }
}

// As in every clone of a snapshot of some platforms.
TEST_P(TopologiesTest, GuestsMayHaveALinkLocalAddressBehindTheirTaps) {
  const Guest a(host(), "a", "tap-a", "169.254.0.21");
  const Guest b(host(), "b", "tap-b", "169.254.0.21");
  route_to_each("169.254.0.21", "169.254.0.22", {&a, &b});
  ASSERT_EQ(put("vm-a", "169.254.0.21", "tap-a").status, 201);
  ASSERT_EQ(put("vm-b", "169.254.0.21", "tap-b").status, 201);
  EXPECT_EQ(ask(daemon_->create_forward("vm-a", kNamePort)), "a 198.18.0.2");
  EXPECT_EQ(ask(daemon_->create_forward("vm-b", kNamePort)), "b 198.18.0.2");
  EXPECT_EQ(put("vm-c", "169.254.0.21", "tap-c", "none").status, 422);
}

// Each link has its fe80::21.
TEST_P(TopologiesTest, GuestsMayHaveALinkLocalIPv6AddressBehindTheirTaps) {
  Guest a(host(), "a", "tap-a", "fe80::21");
  const Guest b(host(), "b", "tap-b", "fe80::21");
  for (const Guest* guest : std::initializer_list<const Guest*>{&a, &b}) {
    host().ip("address add fe80::22/64 nodad dev tap-" + guest->name());
    guest->network().ip("route add default via fe80::22 dev eth0");
  }
  ASSERT_EQ(put("vm-a", "fe80::21", "tap-a").status, 201);
  ASSERT_EQ(put("vm-b", "fe80::21", "tap-b").status, 201);
  const CreatedForward to_a = daemon_->create_forward("vm-a", kNamePort);
  const CreatedForward to_b = daemon_->create_forward("vm-b", kNamePort);
  EXPECT_EQ(ask(to_a, kHostAddress6), "a fd00:18::2") << instance("vm-a");
  EXPECT_EQ(ask(to_b, kHostAddress6), "b fd00:18::2");
  EXPECT_THAT(ask(to_a), StartsWith("a fe80::22")) << "an IPv4 client is seen as the node";
  const HttpResponse check =
      daemon_->api("GET", "/instances/vm-a/port-forwards/" + to_a.id + "/check?client=fd00:18::2");
  EXPECT_THAT(check.body, AllOf(HasSubstr(R"({"check":{"ok":true)"), HasSubstr("is reached over tap-a")));
  for (const char* refused : {"none", "no-such0"})
    EXPECT_EQ(put("vm-c", "fe80::21", "tap0", refused).status, 422);
  EXPECT_EQ(put("vm-c", "fe80::a9fe:a9fe", "tap0").status, 422) << "a cloud's metadata service";
  EXPECT_EQ(put("vm-c", "fe80::21%tap0", "tap0").status, 422);

  // A port that is closed: the node probes it until it is open.
  const CreatedForward closed = daemon_->create_forward("vm-a", kEchoPort);
  EXPECT_EQ(ask(closed, kHostAddress6), "");
  const auto is_refused = [&] {
    return TcpClient(network_->client(), kHostAddress6, closed.host_port).connect_error() == ECONNREFUSED;
  };
  EXPECT_TRUE(comes_true(is_refused));
  a.serve_echo();
  EXPECT_TRUE(comes_true([&] { return !is_refused(); }));
}

TEST_P(TopologiesTest, AGuestMayBeReachedByTheNodesRoutes) {
  const Guest a(host(), "a", "tap-a", "198.19.3.2");
  host().ip("address add 198.19.3.1/24 dev tap-a");
  ASSERT_EQ(put("vm-a", "198.19.3.2", "tap-a", "none").status, 201);
  const CreatedForward to_a = daemon_->create_forward("vm-a", kNamePort);
  EXPECT_EQ(ask(to_a), "a 198.19.3.1");
  const HttpResponse check = daemon_->api("GET", "/instances/vm-a/port-forwards/" + to_a.id + "/check");
  EXPECT_THAT(check.body, AllOf(HasSubstr(R"({"check":{"ok":true)"), HasSubstr("is reached over tap-a")));
  host().ip("route del 198.19.3.0/24 dev tap-a");
  EXPECT_EQ(ask(to_a), "");
  host().ip("route add 198.19.3.2 dev tap-a");
  EXPECT_EQ(ask_until_answered(to_a), "a 198.19.3.1");
}

}  // namespace
}  // namespace portway::test
