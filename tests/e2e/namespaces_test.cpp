// Guests in network namespaces of their own, as the clones of a snapshot are: each has the same address
// behind a tap of the same name.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <sys/mount.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "tests/e2e/daemon.h"
#include "tests/e2e/guest_network.h"
#include "tests/support/guest_ports.h"
#include "tests/support/requirements.h"
#include "tests/support/tcp_client.h"

namespace portway::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

constexpr const char* kAddress = "198.19.4.2";
constexpr const char* kAddress6 = "fd00:19::42";
constexpr std::uint16_t kNamePort = 7000;
/// Answers each client with the guest's name and the address that the guest sees as the client's, and keeps
/// the connection until the client ends it.
constexpr const char* kNameService = R"py(
import socket, sys, threading
def serve(client, address):
    client.sendall(f"{sys.argv[1]} {address[0].removeprefix('::ffff:')}\n".encode())
    while client.recv(4096): pass
    client.close()
listener = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()
)py";

/// Prints the sequence number that follows on the guest's first data.
constexpr const char* kSniffer = R"py(
import socket, struct
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
print("ready", flush=True)
while True:
    packet = packets.recv(65535)[14:]
    if packet[0] >> 4 != 4 or packet[9] != 6: continue
    tcp = packet[4 * (packet[0] & 15):struct.unpack(">H", packet[2:4])[0]]
    source, _, sequence = struct.unpack(">HHI", tcp[:8])
    size = len(tcp) - 4 * (tcp[12] >> 4)
    if source == 7000 and size > 0:
        print("next", (sequence + size) % 2**32, flush=True)
        break
)py";
/// Sends a RST with these addresses and this sequence number, whoever has them.
constexpr const char* kForger = R"py(
import socket, struct, sys
source, destination = (socket.inet_aton(each) for each in sys.argv[1:3])
tcp = struct.pack(">HHIIBBHHH", 7000, int(sys.argv[3]), int(sys.argv[4]), 0, 5 << 4, 4, 0, 0, 0)
pseudo = source + destination + struct.pack(">HH", 6, len(tcp)) + tcp
total = sum(struct.unpack(">%dH" % (len(pseudo) // 2), pseudo))
while total >> 16: total = (total & 0xffff) + (total >> 16)
tcp = tcp[:16] + struct.pack(">H", ~total & 0xffff) + tcp[18:]
ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, source, destination)
socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(ip + tcp, (sys.argv[2], 0))
)py";

/// A namespace with a name, as `ip netns add` makes it. A link from it to the node shows how long it lives.
class NamedNamespace {
 public:
  NamedNamespace(const NetworkNamespace& host, const std::filesystem::path& directory,
                 const std::string& name)
      : path_(directory / name), host_(host), sign_("sign-" + name) {
    network_.emplace();
    network_->mount_at(path_);
    host.ip("link add " + sign_ + " type veth peer name sign netns " + network_->path());
  }
  ~NamedNamespace() { remove_name(); }
  NamedNamespace(const NamedNamespace&) = delete;
  NamedNamespace& operator=(const NamedNamespace&) = delete;

  std::string path() const { return path_; }
  const NetworkNamespace& network() const { return *network_; }

  /// As `ip netns del`: the namespace lives on as long as somebody holds it.
  void remove_name() {
    network_.reset();
    ::umount2(path_.c_str(), MNT_DETACH);
    ::unlink(path_.c_str());
  }
  /// Whether the namespace is gone within this time.
  bool is_gone_within(milliseconds limit) const {
    const auto deadline = steady_clock::now() + limit;
    const auto exists = [this] {
      bool found = false;
      host_.run([&] { found = ::if_nametoindex(sign_.c_str()) != 0; });
      return found;
    };
    while (exists()) {
      if (steady_clock::now() > deadline) return false;
    }
    return true;
  }

 private:
  const std::filesystem::path path_;
  const NetworkNamespace& host_;
  const std::string sign_;
  std::optional<NetworkNamespace> network_;
};

/// One with a tap, which is the end of a veth of a guest. The guest is another namespace.
class Sandbox : public NamedNamespace {
 public:
  Sandbox(const NetworkNamespace& host, const std::filesystem::path& directory, const std::string& name)
      : NamedNamespace(host, directory, name) {
    network().ip("link add tap0 type veth peer name eth0 netns " + guest_.path());
    network().ip("link set tap0 up");
    network().ip("address add 198.19.4.1/24 dev tap0");
    network().ip("address add fd00:19::41/64 dev tap0 nodad");
    guest_.ip("address add 198.19.4.2/24 dev eth0");
    guest_.ip("address add fd00:19::42/64 dev eth0 nodad");
    guest_.ip("link set eth0 up");
    guest_.ip("route add default via 198.19.4.1");
    guest_.ip("-6 route add default via fd00:19::41");
    service_ = std::make_unique<Process>(
        SpawnOptions{.command = {"python3", "-c", kNameService, name}, .network = &guest_});
    if (!service_->wait_for_output("ready", seconds(30))) ADD_FAILURE() << service_->output();
  }

  const NetworkNamespace& guest() const { return guest_; }

 private:
  NetworkNamespace guest_;
  std::unique_ptr<Process> service_;
};

class NamespacesTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    network_ = std::make_unique<GuestNetwork>(GuestKind::kVeth);
    daemon_ = std::make_unique<Daemon>(*network_, DaemonOptions{.io_backend = GetParam()});
  }
  void TearDown() override {
    if (!daemon_) return;
    EXPECT_EQ(daemon_->stop(SIGTERM), 0) << "a sanitizer's report, too, shows in the exit code";
  }

  const NetworkNamespace& host() { return network_->host(); }
  std::unique_ptr<Sandbox> sandbox(const std::string& name) {
    return std::make_unique<Sandbox>(host(), daemon_->netns_directory(), name);
  }
  HttpResponse put(const std::string& id, boost::json::object place) {
    if (!place.contains("guest_address")) {
      place["guest_addresses"] = boost::json::array{kAddress, kAddress6};
    }
    place["owner"] = "alice";
    return daemon_->api("PUT", "/instances/" + id, boost::json::serialize(place));
  }
  HttpResponse put(const std::string& id, const Sandbox& sandbox) {
    return put(id, {{"tap", "tap0"}, {"netns", sandbox.path()}});
  }
  /// A sandbox whose guest is registered as vm-NAME, and a forward to its service.
  struct Clone {
    std::unique_ptr<Sandbox> sandbox;
    CreatedForward forward;
  };
  Clone clone(const std::string& name) {
    Clone made{.sandbox = sandbox(name), .forward = {}};
    EXPECT_EQ(put("vm-" + name, *made.sandbox).status, 201);
    made.forward = daemon_->create_forward("vm-" + name, kNamePort);
    return made;
  }
  /// A client whom the guest with this name serves.
  TcpClient client_of(const std::string& name, const CreatedForward& forward) {
    TcpClient client(network_->client(), kHostAddress, forward.host_port);
    EXPECT_EQ(client.receive(name.size()), name);
    return client;
  }
  std::string ask(const CreatedForward& forward, const char* address = kHostAddress) {
    TcpClient client(network_->client(), address, forward.host_port);
    if (client.connect_error() != 0) return "";
    try {
      client.finish();
    } catch (const std::system_error&) {
      return "";  // it was reset already
    }
    return client.receive_to_end().bytes;
  }
  std::string ask_until_answered(const CreatedForward& forward) {
    const auto deadline = steady_clock::now() + seconds(10);
    std::string answer;
    while (answer.empty() && steady_clock::now() < deadline) answer = ask(forward);
    return answer;
  }
  std::string instance(const std::string& id) { return daemon_->api("GET", "/instances/" + id).body; }
  template <class Condition>
  bool comes_true(Condition condition, milliseconds limit = seconds(10)) {
    const auto deadline = steady_clock::now() + limit;
    while (!condition()) {
      if (steady_clock::now() > deadline) return false;
    }
    return true;
  }
  bool becomes(const std::string& id, const std::string& text, milliseconds limit = seconds(10)) {
    return comes_true([&] { return instance(id).find(text) != std::string::npos; }, limit);
  }
  /// Replaces text in the configuration, and has the daemon read it again.
  void change_config(const std::string& before, const std::string& after) {
    const std::filesystem::path file = daemon_->directory() / "portway.toml";
    std::string text{std::istreambuf_iterator<char>(std::ifstream(file).rdbuf()), {}};
    const std::size_t place = text.find(before);
    ASSERT_NE(place, std::string::npos) << text;
    std::ofstream(file) << text.replace(place, before.size(), after);
    daemon_->process().signal(SIGHUP);
  }

  std::unique_ptr<GuestNetwork> network_;
  std::unique_ptr<Daemon> daemon_;
};

INSTANTIATE_TEST_SUITE_P(Backends, NamespacesTest, testing::Values("uring", "epoll"),
                         [](const auto& each) { return each.param; });

TEST_P(NamespacesTest, ClonesOfOneSnapshotAreToldApart) {
  const auto a = sandbox("a");
  const auto b = sandbox("b");
  ASSERT_EQ(put("vm-a", *a).status, 201);
  ASSERT_EQ(put("vm-b", *b).status, 201) << "the same address and tap, in another namespace";
  ASSERT_EQ(put("vm-b", *b).status, 200);
  EXPECT_THAT(instance("vm-a"),
              AllOf(HasSubstr(R"("netns":")" + a->path()), HasSubstr(R"("tap_state":"up")")));
  EXPECT_EQ(put("vm-c", *b).status, 409) << "its tap is taken";
  const CreatedForward to_a = daemon_->create_forward("vm-a", kNamePort);
  const CreatedForward to_b = daemon_->create_forward("vm-b", kNamePort);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(ask(to_a), "a 198.18.0.2\n") << "the client's own address";
    EXPECT_EQ(ask(to_b), "b 198.18.0.2\n");
    EXPECT_EQ(ask(to_a, kHostAddress6), "a fd00:18::2\n");
    EXPECT_EQ(ask(to_b, kHostAddress6), "b fd00:18::2\n");
  }
  const HttpResponse check = daemon_->api("GET", "/instances/vm-a/port-forwards/" + to_a.id + "/check");
  EXPECT_THAT(check.body,
              AllOf(HasSubstr(R"({"check":{"ok":true)"), HasSubstr("198.19.4.2 is reached over tap0")));

  // Each session ends with its own tap.
  a->network().ip("link del tap0");
  EXPECT_TRUE(becomes("vm-a", R"("state":"stopped")"));
  EXPECT_THAT(ask(to_b), HasSubstr("b "));
}

TEST_P(NamespacesTest, ASessionEndsWithItsTapWhereverThatIs) {
  const auto a = sandbox("a");
  const auto b = sandbox("b");
  ASSERT_EQ(put("vm-a", *a).status, 201);
  ASSERT_EQ(put("vm-b", *b).status, 201);
  a->guest().ip("link set eth0 down");
  EXPECT_TRUE(becomes("vm-a", "carrier_lost"));
  b->network().ip("link set tap0 netns " + a->network().path() + " name tap1");
  EXPECT_TRUE(becomes("vm-b", R"("state":"stopped")"));
}

// Both guests have the address that the segment claims to come from. Only the one in whose namespace the
// connection is can end it.
TEST_P(NamespacesTest, AGuestCannotForgeSegmentsOfItsTwin) {
  const auto a = sandbox("a");
  const auto b = sandbox("b");
  ASSERT_EQ(put("vm-a", *a).status, 201);
  ASSERT_EQ(put("vm-b", *b).status, 201);
  const CreatedForward to_b = daemon_->create_forward("vm-b", kNamePort);
  Process sniffer({.command = {"python3", "-c", kSniffer}, .network = &b->guest()});
  ASSERT_TRUE(sniffer.wait_for_output("ready", seconds(30)));
  TcpClient client(network_->client(), kHostAddress, to_b.host_port);
  ASSERT_EQ(client.receive(2), "b ");
  ASSERT_EQ(sniffer.wait(seconds(30)), 0);
  const std::string output = sniffer.output();
  const std::string sequence =
      output.substr(output.find("next ") + 5, output.rfind('\n') - output.find("next ") - 5);
  const auto forge = [&](const NetworkNamespace& from, const std::string& source) {
    run_command(&from, {"python3", "-c", kForger, source, "198.18.0.2", std::to_string(client.local().port()),
                        sequence});
  };
  forge(a->guest(), kAddress);
  forge(a->guest(), "198.19.4.1");  // the node's
  client.send("still there?");
  EXPECT_EQ(ask(to_b), "b 198.18.0.2\n");
  forge(b->guest(), kAddress);
  EXPECT_EQ(client.receive_to_end().error, ECONNRESET) << "of what use is the test otherwise?";
}

TEST_P(NamespacesTest, ARenamedTapIsTheSame) {
  const auto a = sandbox("a");
  ASSERT_EQ(put("vm-a", *a).status, 201);
  const CreatedForward to_a = daemon_->create_forward("vm-a", kNamePort);
  a->network().ip("link set tap0 name tap9");
  EXPECT_THAT(ask(to_a), HasSubstr("a "));
  EXPECT_THAT(instance("vm-a"), HasSubstr(R"("tap_state":"up")"));
}

TEST_P(NamespacesTest, ASessionEndsWithTheNameOfItsNamespaceAndKeepsNothingOfIt) {
  const auto [a, to_a] = clone("a");
  const auto [b, to_b] = clone("b");
  TcpClient client = client_of("a", to_a);
  const TcpClient other = client_of("b", to_b);

  a->remove_name();
  EXPECT_TRUE(becomes("vm-a", "netns_gone"));
  EXPECT_TRUE(a->is_gone_within(seconds(10)));
  EXPECT_EQ(client.receive_to_end().error, ECONNRESET);
  EXPECT_EQ(ask(to_a), "");
  EXPECT_THAT(ask(to_b), HasSubstr("b ")) << "the other's goes on";
  // The machine dies: the RSTs of its connections have nowhere to go.
  const TcpClient last = client_of("b", to_b);
  b->guest().ip("link set eth0 down");
  EXPECT_TRUE(becomes("vm-b", "carrier_lost"));
  b->remove_name();
  EXPECT_TRUE(b->is_gone_within(seconds(10)));
}

TEST_P(NamespacesTest, APathMayBeSpeltInAnotherWay) {
  const auto [a, to_a] = clone("a");
  TcpClient client = client_of("a", to_a);
  const std::string twice = daemon_->netns_directory().string() + "//./a";
  const HttpResponse again = put("vm-a", {{"tap", "tap0"}, {"netns", twice}});
  EXPECT_EQ(again.status, 200) << again.body;
  EXPECT_THAT(again.body, HasSubstr(a->path()));
  EXPECT_THAT(ask(to_a), HasSubstr("a ")) << "nothing has changed";
  EXPECT_EQ(put("vm-a", {{"tap", "tap0"}, {"netns", a->path()}, {"tap_netns", twice}}).status, 200);
  EXPECT_THAT(ask(to_a), HasSubstr("a "));
}

TEST_P(NamespacesTest, ANamespaceCanBeUnmountedWhileItsSessionRuns) {
  const auto [a, to_a] = clone("a");
  const TcpClient client = client_of("a", to_a);
  EXPECT_EQ(::umount2(a->path().c_str(), 0), 0) << std::strerror(errno);
  EXPECT_TRUE(becomes("vm-a", "netns_gone"));
}

TEST_P(NamespacesTest, AReloadChangesTheDirectories) {
  const auto [a, to_a] = clone("a");
  const auto c = sandbox("c");
  const std::string own = daemon_->netns_directory();
  change_config('"' + own + '"', R"("/run/elsewhere")");
  // Not before: a session that began would go on.
  ASSERT_TRUE(daemon_->process().wait_for_output("configuration reloaded", seconds(10)));
  const HttpResponse answer = put("vm-c", *c);
  EXPECT_EQ(answer.status, 422);
  EXPECT_THAT(answer.body, HasSubstr("netns_directories (/run/elsewhere)"));
  EXPECT_THAT(ask(to_a), HasSubstr("a ")) << "what runs goes on";
  change_config(R"("/run/elsewhere")", '"' + own + '"');
  EXPECT_TRUE(comes_true([&] { return put("vm-c", *c).status == 201; }));
}

TEST_P(NamespacesTest, ConnectionsIntoThemOutliveAKillAndAnUpgrade) {
  const auto [a, to_a] = clone("a");
  const auto [b, to_b] = clone("b");
  TcpClient client = client_of("a", to_a);
  TcpClient other = client_of("b", to_b);
  for (int round = 0; round < 2; ++round) {
    daemon_->stop(SIGKILL);
    daemon_->start();
    EXPECT_THAT(ask(to_a), HasSubstr("a "));
    daemon_->upgrade();
    EXPECT_THAT(ask(to_b), HasSubstr("b "));
  }
  for (TcpClient* each : {&client, &other}) {
    each->finish();
    EXPECT_EQ(each->receive_to_end().error, 0);
  }
  const TcpClient last = client_of("a", to_a);
  a->guest().ip("link set eth0 down");
  EXPECT_TRUE(becomes("vm-a", "carrier_lost")) << "the session is watched";
  b->remove_name();
  EXPECT_TRUE(b->is_gone_within(seconds(10))) << "nothing of the daemons before keeps it";
}

TEST_P(NamespacesTest, AKilledDaemonKeepsNoNamespaceAndItsSuccessorFindsTheSessions) {
  const auto [a, to_a] = clone("a");
  const auto [b, to_b] = clone("b");
  const auto c = sandbox("c");
  ASSERT_EQ(put("vm-c", *c).status, 201);
  const TcpClient client = client_of("a", to_a);
  const TcpClient other = client_of("b", to_b);
  // The guest is silent: the kernel would try for minutes to tell it that the connection has ended.
  a->guest().ip("address flush dev eth0");
  daemon_->stop(SIGKILL);
  a->remove_name();
  EXPECT_TRUE(a->is_gone_within(seconds(10)));
  // Another namespace has the name by now.
  c->remove_name();
  ASSERT_TRUE(c->is_gone_within(seconds(10)));
  const auto later = sandbox("c");
  daemon_->start();
  EXPECT_THAT(instance("vm-a"), HasSubstr("netns_gone"));
  EXPECT_THAT(instance("vm-c"), HasSubstr("netns_gone"));
  EXPECT_THAT(ask_until_answered(to_b), HasSubstr("b "));
}

TEST_P(NamespacesTest, WhatIsWatchedMayBeElsewhereThanWhatIsDialled) {
  // As under CNI: the tap is in the pod's namespace, whose address the node reaches by its routes.
  const auto a = sandbox("a");
  host().ip("link set sign-a up");
  host().ip("address add 198.19.5.1/24 dev sign-a");
  a->network().ip("link set sign up");
  a->network().ip("address add 198.19.5.2/24 dev sign");
  Process service({.command = {"python3", "-c", kNameService, "pod"}, .network = &a->network()});
  ASSERT_TRUE(service.wait_for_output("ready", seconds(30)));
  boost::json::object place{{"guest_address", "198.19.5.2"}, {"tap", "tap0"}, {"tap_netns", a->path()}};
  const HttpResponse no_device = put("vm-a", place);
  EXPECT_EQ(no_device.status, 422);
  EXPECT_THAT(no_device.body, HasSubstr(R"("field":"device")"));
  place["device"] = "none";
  ASSERT_EQ(put("vm-a", place).status, 201);
  const CreatedForward forward = daemon_->create_forward("vm-a", kNamePort);
  EXPECT_THAT(ask(forward), HasSubstr("pod 198.19.5.1"));
  a->guest().ip("link set eth0 down");
  EXPECT_TRUE(becomes("vm-a", "carrier_lost"));
}

TEST_P(NamespacesTest, AProcessAloneMayBeWatched) {
  const auto a = sandbox("a");
  Process vmm({.command = {"sh", "-c", "echo ready; exec sleep 1000"}, .network = &a->network()});
  ASSERT_TRUE(vmm.wait_for_output("ready", seconds(30)));
  boost::json::object place{{"netns", "vmm_pid"}, {"vmm_pid", vmm.pid()}};
  const HttpResponse no_device = put("vm-a", place);
  EXPECT_EQ(no_device.status, 422);
  EXPECT_THAT(no_device.body, HasSubstr(R"("field":"device")"));
  place["device"] = "tap0";
  ASSERT_EQ(put("vm-a", place).status, 201);
  EXPECT_THAT(instance("vm-a"), HasSubstr(R"("tap_state":"none")"));
  const CreatedForward forward = daemon_->create_forward("vm-a", kNamePort);
  EXPECT_THAT(ask(forward), HasSubstr("a 198.19.4.1"));
  daemon_->stop(SIGKILL);
  daemon_->start();
  EXPECT_THAT(ask_until_answered(forward), HasSubstr("a 198.19.4.1"));
  vmm.signal(SIGKILL);
  EXPECT_TRUE(becomes("vm-a", "vmm_exited"));
}

TEST_P(NamespacesTest, WhatAKilledDaemonHasLeftInTheNamespaceOfAProcessIsRemoved) {
  const auto a = sandbox("a");
  Process vmm({.command = {"sh", "-c", "echo ready; exec sleep 1000"}, .network = &a->network()});
  ASSERT_TRUE(vmm.wait_for_output("ready", seconds(30)));
  const auto rules = [&a] {
    Process process({.command = {"ip", "rule", "list"}, .network = &a->network()});
    process.wait(seconds(10));
    return process.output();
  };
  const std::string before = rules();
  ASSERT_EQ(put("vm-a", {{"netns", "vmm_pid"}, {"vmm_pid", vmm.pid()}, {"tap", "tap0"}}).status, 201);
  EXPECT_NE(rules(), before) << "the return path";
  daemon_->stop(SIGKILL);
  vmm.signal(SIGKILL);
  vmm.wait(seconds(10));
  daemon_->start();
  EXPECT_TRUE(becomes("vm-a", "vmm_exited"));
  EXPECT_EQ(rules(), before) << "its path is not the instance's, but leads to the namespace";
}

TEST_P(NamespacesTest, AClosedPortRefusesClientsUntilAServiceListensThere) {
  const auto a = sandbox("a");
  ASSERT_EQ(put("vm-a", *a).status, 201);
  const CreatedForward forward = daemon_->create_forward("vm-a", 7001);
  EXPECT_EQ(ask(forward), "");
  const HttpResponse check = daemon_->api("GET", "/instances/vm-a/port-forwards/" + forward.id + "/check");
  EXPECT_THAT(check.body, AllOf(HasSubstr(R"("ok":false)"), HasSubstr("nothing listens on 198.19.4.2:7001")));
  std::string service = kNameService;
  service.replace(service.find("7000"), 4, "7001");
  Process late({.command = {"python3", "-c", service, "late"}, .network = &a->guest()});
  ASSERT_TRUE(late.wait_for_output("ready", seconds(30)));
  EXPECT_THAT(ask_until_answered(forward), HasSubstr("late ")) << "the gate's probes reach the guest";
}

TEST_P(NamespacesTest, ACaptureIsMadeAtTheTapInTheNamespace) {
  const auto a = sandbox("a");
  ASSERT_EQ(put("vm-a", *a).status, 201);
  const CreatedForward forward = daemon_->create_forward("vm-a", kNamePort);
  auto capture = std::async(std::launch::async, [&] {
    return daemon_->api("POST", "/instances/vm-a/port-forwards/" + forward.id + "/capture?max_bytes=2000");
  });
  while (capture.wait_for(milliseconds(0)) != std::future_status::ready) ask(forward);
  const HttpResponse captured = capture.get();
  EXPECT_EQ(captured.status, 200);
  EXPECT_GT(captured.body.size(), 1000U) << "packets, not only the file's header";
}

TEST_P(NamespacesTest, WhatIsNoNamespaceIsRefusedWithItsReason) {
  const auto a = sandbox("a");
  const std::filesystem::path directory = daemon_->netns_directory();
  std::ofstream(directory / "file") << "text";
  std::ofstream(directory / "empty").close();
  std::filesystem::create_symlink(a->path(), directory / "link");
  struct Case {
    std::string netns;
    std::string field;
    std::string reason;
  };
  const std::string of_host = "/proc/" + std::to_string(daemon_->process().pid()) + "/ns/net";
  std::ofstream(directory / "own").close();
  ASSERT_EQ(::mount(of_host.c_str(), (directory / "own").c_str(), nullptr, MS_BIND, nullptr), 0);
  for (const Case& each :
       {Case{"/run/elsewhere/a", "netns", "netns_directories"}, Case{"a", "netns", "must be the path"},
        Case{directory / "missing", "netns", "There is no"},
        Case{directory / "file", "netns", "is no network namespace"},
        Case{directory / "empty", "netns", "empty file"}, Case{directory / "link", "netns", "symbolic link"},
        Case{directory / "own", "netns", "leave this field out"},
        Case{directory / std::string(300, 'a'), "netns", "more than 255 bytes"},
        Case{directory / ".." / "netns" / "a", "netns", "\\\"..\\\""},
        Case{"vmm_pid", "netns", "give vmm_pid"}}) {
    const HttpResponse refused = put("vm-x", {{"tap", "tap0"}, {"netns", each.netns}});
    EXPECT_EQ(refused.status, 422) << each.netns;
    EXPECT_THAT(refused.body, AllOf(HasSubstr(R"("field":")" + each.field), HasSubstr(each.reason)));
  }
  ::umount2((directory / "own").c_str(), MNT_DETACH);
  const HttpResponse own_address =
      put("vm-x", {{"tap", "tap0"}, {"netns", a->path()}, {"guest_address", "198.19.4.1"}});
  EXPECT_EQ(own_address.status, 422) << "the namespace's own address";
  EXPECT_THAT(own_address.body, HasSubstr(R"("field":"guest_address")"));
  EXPECT_EQ(daemon_->api("GET", "/instances/vm-x").status, 404);
  a->remove_name();
  EXPECT_TRUE(a->is_gone_within(seconds(10))) << "nothing was kept open";
}

// Two virtual machines of one image, as two clones of a snapshot: the same address, the same name of the tap.
TEST(VirtualMachinesInNamespacesTest, TwoMachinesOfOneImageServeTheirOwnClients) {
  PORTWAY_NEEDS(why_no_namespaces());
  GuestNetwork network(GuestKind::kVeth);
  Daemon daemon(network, {.io_backend = "uring"});
  struct Clone {
    Clone(const NetworkNamespace& host, const std::filesystem::path& directory, const std::string& name)
        : netns(host, directory, name) {
      netns.network().ip("tuntap add dev tap0 mode tap");
      netns.network().ip("address add 198.19.4.1/24 dev tap0");
      netns.network().ip("address add fd00:19::41/64 dev tap0 nodad");
      netns.network().ip("link set tap0 up");
      machine = boot_machine(netns.network(), {.address = "198.19.4.2/24",
                                               .gateway = "198.19.4.1",
                                               .name = name,
                                               .address6 = "fd00:19::42/64",
                                               .gateway6 = "fd00:19::41"});
    }
    NamedNamespace netns;
    std::unique_ptr<Process> machine;
  };
  std::vector<std::unique_ptr<Clone>> clones;
  for (const char* name : {"one", "two"}) {
    clones.push_back(std::make_unique<Clone>(network.host(), daemon.netns_directory(), name));
  }
  std::vector<CreatedForward> forwards;
  for (const auto& clone : clones) {
    ASSERT_TRUE(clone->machine->wait_for_output(kGuestReadyLine, std::chrono::minutes(2)))
        << clone->machine->output();
    const std::string id = std::filesystem::path(clone->netns.path()).filename();
    const HttpResponse put = daemon.api("PUT", "/instances/" + id,
                                        boost::json::serialize(boost::json::object{
                                            {"guest_addresses", boost::json::array{kAddress, kAddress6}},
                                            {"tap", "tap0"},
                                            {"netns", clone->netns.path()},
                                            {"vmm_pid", clone->machine->pid()},
                                            {"owner", "alice"}}));
    ASSERT_EQ(put.status, 201) << put.body;
    forwards.push_back(daemon.create_forward(id, kHttpPort));
  }
  const auto greeting = [&](std::size_t i, const char* address) {
    TcpClient client(network.client(), address, forwards[i].host_port);
    if (client.connect_error() != 0) return std::string();
    client.send("GET / HTTP/1.0\r\n\r\n");
    return client.receive_to_end().bytes;
  };
  for (const char* backend : {"uring", "epoll"}) {
    for (const char* address : {kHostAddress, kHostAddress6}) {
      EXPECT_THAT(greeting(0, address), HasSubstr("Hello from one"));
      EXPECT_THAT(greeting(1, address), HasSubstr("Hello from two"));
    }
    if (std::string_view(backend) == "epoll") break;
    ASSERT_EQ(daemon.stop(SIGTERM), 0);
    daemon.start({.io_backend = "epoll"});
  }
  clones[0]->machine->signal(SIGKILL);
  const auto deadline = steady_clock::now() + seconds(10);
  std::string first;
  while (first.find(R"("state":"stopped")") == std::string::npos && steady_clock::now() < deadline) {
    first = daemon.api("GET", "/instances/one").body;
  }
  EXPECT_THAT(first, AnyOf(HasSubstr("vmm_exited"), HasSubstr("carrier_lost")));
  EXPECT_THAT(greeting(1, kHostAddress), HasSubstr("Hello from two")) << "the other machine goes on";
  EXPECT_EQ(daemon.stop(SIGTERM), 0);
}

}  // namespace
}  // namespace portway::test
