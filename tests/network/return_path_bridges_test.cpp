// Two guests on one bridge, in the node's own network namespace and in one of guests. The node dials through
// the bridge, and shows each guest its clients' addresses. No netfilter.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <sys/mount.h>

#include <fstream>
#include <memory>
#include <optional>
#include <ostream>
#include <regex>
#include <string>
#include <vector>

#include "base/fd.h"
#include "network/return_path.h"
#include "tests/network/named_namespaces.h"
#include "tests/network/world.h"
#include "tests/support/network.h"
#include "tests/support/tcx.h"

namespace portway {
namespace {

using namespace test;
using testing::_;
using testing::ElementsAre;
using testing::FieldsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr std::uint16_t kService = 3000;

struct Setting {
  std::string name;
  ReturnPath::Kind kind = ReturnPath::Kind::kProgram;
  bool v6 = false;
  bool inside = false;  // a namespace of guests
  bool tcx = true;

  friend void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }
};

/// client (eth0) -- (eth0) network (br0: tap-a, tap-b) -- (eth0) guests a and b.
class BridgedGuestsTest : public NamedNamespacesTest, public testing::WithParamInterface<Setting> {
 protected:
  void SetUp() override {
    NamedNamespacesTest::SetUp();
    if (IsSkipped()) return;
    make("unused");  // makes /run/netns
    all_.emplace();
    for (const test::NetworkNamespace* each : {&all_->client, &all_->network, &all_->a, &all_->b}) {
      each->skip_address_detection();
    }
    test::connect({all_->client, "eth0", "198.18.1.2/24"}, {all_->network, "eth0", "198.18.1.1/24"});
    all_->client.ip_batch(
        "address add fd00:1::2/64 nodad dev eth0\nroute add default via 198.18.1.1\nroute add ::/0 via "
        "fd00:1::1\n");
    all_->network.ip("address add fd00:1::1/64 nodad dev eth0");
    make_bridge();
    plug(all_->a, "tap-a", 2);
    plug(all_->b, "tap-b", 3);
    for (const char* device : {"all", "br0", "eth0", "tap-a", "tap-b"}) {
      all_->network.set(std::string("net/ipv4/conf/") + device + "/rp_filter", "0");
    }
    all_->network.set("net/ipv4/ip_forward", "1");
    all_->network.set("net/ipv6/conf/all/forwarding", "1");
    all_->network.set("net/ipv4/ip_early_demux", "0");  // as in ReturnPathAttackTest
    if (GetParam().inside) all_->network.mount_at("/run/netns/guests");
    if (!GetParam().tcx) taken_ = take_all_tcx(all_->network, "br0");
    before_ = listing();
    node().run([&] { path_ = ReturnPath::start(GetParam().kind).value(); });
  }
  void TearDown() override {
    if (all_) node().run([&] { path_.reset(); });
    NamedNamespacesTest::TearDown();
  }

  void make_bridge() const {
    all_->network.ip("link add br0 type bridge");
    all_->network.ip_batch(
        "address add 198.18.2.1/24 dev br0\naddress add fd00:2::1/64 nodad dev br0\nlink set br0 up\n");
  }
  void plug(const test::NetworkNamespace& guest, const std::string& tap, int number) const {
    const std::string digits = std::to_string(number);
    test::connect({guest, "eth0", "198.18.2." + digits + "/24"}, {all_->network, tap, "198.18.9.1/32"});
    all_->network.ip("address flush dev " + tap);
    all_->network.ip("link set " + tap + " master br0");
    guest.ip_batch("address add fd00:2::" + digits +
                   "/64 nodad dev eth0\nroute add default via 198.18.2.1\nroute add ::/0 via fd00:2::1\n");
  }

  const test::NetworkNamespace& node() const { return GetParam().inside ? all_->node : all_->network; }
  bool v6() const { return GetParam().v6; }
  Endpoint client(std::uint16_t port) const { return {address(v6() ? "fd00:1::2" : "198.18.1.2"), port}; }
  Endpoint a(std::uint16_t port) const { return {address(v6() ? "fd00:2::2" : "198.18.2.2"), port}; }
  Endpoint b(std::uint16_t port) const { return {address(v6() ? "fd00:2::3" : "198.18.2.3"), port}; }
  int link(const char* name) const {
    int index = 0;
    all_->network.run([&] { index = static_cast<int>(::if_nametoindex(name)); });
    return index;
  }
  std::string listing() const {
    return std::regex_replace(listing_of(all_->network, {"br0", "tap-a", "tap-b"}), std::regex(" id [0-9]+"),
                              "");
  }

  GuestPlace place(const char* tap, const std::string& bridge = "br0") const {
    return {.link = link(tap), .netns = GetParam().inside ? open_named("guests") : nullptr, .bridge = bridge};
  }
  Way add(const char* tap, const Endpoint& guest) {
    Way way;
    node().run([&] {
      way = path_->add(place(tap), {guest.address()});
      EXPECT_EQ(path_->fault(way), "");
      EXPECT_TRUE(path_->add_port(way, kService));
    });
    return way;
  }
  void remove(const Way& way) {
    node().run([&] { path_->remove(way); });
  }
  std::vector<ReturnPath::Change> repair() {
    std::vector<ReturnPath::Change> changes;
    node().run([&] { changes = path_->repair(16); });
    return changes;
  }

  /// As the relay does it.
  Connected connect_as(const Endpoint& source, const Endpoint& destination,
                       const timeval& timeout = kLong) const {
    Connected connected;
    all_->network.run([&] {
      Fd fd = make_socket(source.protocol().family(), SOCK_STREAM, 0);
      connected = relay_to(std::move(fd), source, destination, "br0", timeout);
    });
    return connected;
  }
  void expect_a_conversation(const Fd& listener, std::uint16_t port) const {
    const auto [upstream, error] = connect_as(client(port), local_of(listener));
    ASSERT_EQ(error, 0) << std::strerror(error);
    expect_conversation(upstream, listener, client(port));
  }

  struct All {
    test::NetworkNamespace client;
    test::NetworkNamespace node;
    test::NetworkNamespace network;
    test::NetworkNamespace a;
    test::NetworkNamespace b;
  };
  std::optional<All> all_;
  std::vector<ForeignTcx> taken_;
  std::string before_;
  std::unique_ptr<ReturnPath> path_;
};
INSTANTIATE_TEST_SUITE_P(
    Settings, BridgedGuestsTest,
    testing::Values(Setting{.name = "ProgramV4"}, Setting{.name = "ProgramV6", .v6 = true},
                    Setting{.name = "FilterV4", .tcx = false},
                    Setting{.name = "RulesV4", .kind = ReturnPath::Kind::kRules},
                    Setting{.name = "RulesV6", .kind = ReturnPath::Kind::kRules, .v6 = true},
                    Setting{.name = "InsideProgramV4", .inside = true},
                    Setting{.name = "InsideProgramV6", .v6 = true, .inside = true},
                    Setting{.name = "InsideRulesV4", .kind = ReturnPath::Kind::kRules, .inside = true}),
    [](const auto& test) { return test.param.name; });

TEST_P(BridgedGuestsTest, EachGuestSeesItsClientsAndItsAnswersComeBack) {
  const Fd at_a = listen(all_->a, a(kService));
  const Fd at_b = listen(all_->b, b(kService));
  EXPECT_EQ(connect_as(client(40000), a(kService), kShort).error, EINPROGRESS) << "without it";
  const Way way_a = add("tap-a", a(0));
  expect_a_conversation(at_a, 40001);
  const Way way_b = add("tap-b", b(0));
  expect_a_conversation(at_b, 40001);
  remove(way_a);
  expect_a_conversation(at_b, 40002);
  remove(way_b);
  EXPECT_EQ(listing(), before_);
}

TEST_P(BridgedGuestsTest, NothingIsLeftByItsDestructor) {
  add("tap-a", a(0));
  add("tap-b", b(0));
  add("tap-a", a(0));
  node().run([&] { path_.reset(); });
  EXPECT_EQ(listing(), before_);
}

TEST_P(BridgedGuestsTest, ATapThatIsNoPortOfTheBridgeIsAFaultThatSaysWhatToDo) {
  all_->network.ip("link set tap-b nomaster");
  node().run([&] {
    EXPECT_TRUE(ReturnPath::is_bridge_port(place("tap-a")));
    EXPECT_FALSE(ReturnPath::is_bridge_port(place("tap-a", "br1")));
    EXPECT_FALSE(ReturnPath::is_bridge_port(place("tap-b")));
  });
  Way way;
  node().run([&] {
    way = path_->add(place("tap-b"), {b(0).address()});
    EXPECT_THAT(path_->fault(way), HasSubstr("ip link set tap-b master br0"));
  });
  all_->network.ip("link set tap-b master br0");
  EXPECT_THAT(repair(), ElementsAre(FieldsAre(way, "")));
}

TEST_P(BridgedGuestsTest, ABridgeThatIsCreatedAgainIsFollowed) {
  add("tap-a", a(0));
  add("tap-b", b(0));
  taken_.clear();
  all_->network.ip("link del br0");
  EXPECT_THAT(repair(), UnorderedElementsAre(FieldsAre(_, HasSubstr("no port of a bridge br0")),
                                             FieldsAre(_, HasSubstr("no port of a bridge br0"))));
  make_bridge();
  all_->network.set("net/ipv4/conf/br0/rp_filter", "0");
  all_->network.ip("link set tap-a master br0");
  all_->network.ip("link set tap-b master br0");
  EXPECT_THAT(repair(), UnorderedElementsAre(FieldsAre(_, ""), FieldsAre(_, "")));
  EXPECT_THAT(repair(), IsEmpty());
  const Fd at_a = listen(all_->a, a(kService));
  const Fd at_b = listen(all_->b, b(kService));
  expect_a_conversation(at_a, 40000);
  expect_a_conversation(at_b, 40000);
}

class BridgedGuestsAttackTest : public BridgedGuestsTest {
 protected:
  void SetUp() override {
    BridgedGuestsTest::SetUp();
    if (IsSkipped()) return;
    add("tap-a", a(0));
    add("tap-b", b(0));
    listener_ = listen(all_->a, a(kService));
    auto connected = connect_as(client(40000), a(kService));
    ASSERT_EQ(connected.error, 0);
    upstream_ = std::move(connected.fd);
    accepted_ = accept(listener_);
    sniffer_.emplace(all_->client, v6());
  }
  bool reaches_the_client(const test::NetworkNamespace& from, const Endpoint& source,
                          const Endpoint& marker_source, std::uint8_t flags) {
    forge(from, source, client(40000), kForged, flags);
    forge(from, marker_source, client(9), kMarker);
    const std::uint32_t first = sniffer_->first_of(kForged, kMarker);
    EXPECT_NE(first, 0) << "neither arrived";
    if (first == kForged) {
      EXPECT_EQ(sniffer_->first_of(kMarker, kMarker), kMarker);
    }
    return first == kForged;
  }
  void expect_the_connection_to_live() const {
    EXPECT_EQ(exchange(upstream_, accepted_, "still"), "still");
    EXPECT_EQ(exchange(accepted_, upstream_, "there"), "there");
  }

  Fd listener_;
  Fd upstream_;
  Fd accepted_;
  std::optional<Sniffer> sniffer_;
};
INSTANTIATE_TEST_SUITE_P(Families, BridgedGuestsAttackTest,
                         testing::Values(Setting{.name = "V4"}, Setting{.name = "V6", .v6 = true},
                                         Setting{.name = "InsideV4", .inside = true},
                                         Setting{.name = "InsideV6", .v6 = true, .inside = true}),
                         [](const auto& test) { return test.param.name; });

TEST_P(BridgedGuestsAttackTest, AGuestThatForgesTheOthersAddressIsNotHeard) {
  EXPECT_FALSE(reaches_the_client(all_->b, a(kService), b(9), TH_RST));
  EXPECT_EQ(path_->forged_packets(), 1U) << "dropped, not steered";
  expect_the_connection_to_live();
}

TEST_P(BridgedGuestsAttackTest, AGuestsOwnPacketsGoTheirWay) {
  EXPECT_TRUE(reaches_the_client(all_->b, b(kService), b(9), TH_RST)) << "of no connection";
  EXPECT_FALSE(reaches_the_client(all_->a, a(kService), a(9), TH_ACK)) << "steered";
  EXPECT_TRUE(reaches_the_client(all_->a, a(kService), a(9), TH_SYN));
  EXPECT_EQ(path_->forged_packets(), 0U);
  expect_the_connection_to_live();
}

TEST_P(BridgedGuestsAttackTest, ARefusalByIcmpOfTheGuestItselfCountsAndNoOthers) {
  if (v6()) return;
  Sniffer at_guest(all_->a, false);
  make_deaf(listener_);
  const auto [upstream, error] = connect_as(client(40001), a(kService), kShort);
  ASSERT_EQ(error, EINPROGRESS);
  std::string packet;
  while (const auto segment = at_guest.next()) {
    if (ntohs(segment->tcp.source) != 40001 || segment->tcp.syn == 0) continue;
    packet = make_packet(client(40001), a(kService), ntohl(segment->tcp.seq), TH_SYN);
    break;
  }
  const std::string refusal = make_error(false, ICMP_DEST_UNREACH, ICMP_PKT_FILTERED, 0, packet);
  const auto error_of = [&socket = upstream] {
    int value = 0;
    socklen_t size = sizeof value;
    EXPECT_EQ(::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &value, &size), 0);
    return value;
  };
  const std::uint64_t before = path_->forged_packets();
  send_icmp(all_->b, a(0).address(), client(0).address(), refusal);
  forge(all_->b, b(9), client(9), kMarker);
  EXPECT_EQ(sniffer_->first_of(kMarker, kMarker), kMarker);
  EXPECT_EQ(error_of(), 0);
  EXPECT_EQ(path_->forged_packets(), before + 1);
  send_icmp(all_->a, a(0).address(), client(0).address(), refusal);
  forge(all_->a, a(9), client(9), kMarker);
  EXPECT_EQ(sniffer_->first_of(kMarker, kMarker), kMarker);
  EXPECT_EQ(error_of(), EHOSTUNREACH);
}

}  // namespace
}  // namespace portway
