// Guests in network namespaces of their own, with equal addresses behind equal taps. The node dials into
// each, and shows it its clients' addresses. No netfilter, and no loopback in the namespaces.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <optional>
#include <ostream>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "network/return_path.h"
#include "tests/network/named_namespaces.h"
#include "tests/network/world.h"
#include "tests/support/capabilities.h"
#include "tests/support/network.h"
#include "tests/support/tcx.h"

namespace portway {
namespace {

using namespace test;
using Netns = portway::NetworkNamespace;
using testing::AllOf;
using testing::ElementsAre;
using testing::FieldsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr int kTap = 2;  // the index, in each namespace
constexpr std::uint16_t kService = 3000;

/// node (up-NAME) -- (wan) network (tap0) -- (eth0) guest. The network has a name, and no loopback.
struct Home {
  Home(const test::NetworkNamespace& node, const std::string& name, int number) {
    network.mount_at("/run/netns/" + name);
    for (const test::NetworkNamespace* each : {&network, &guest}) {
      each->skip_address_detection();
    }
    add_guest(guest, "tap0", kTap, 2);
    const std::string digits = std::to_string(number);
    node.ip("link add up-" + name + " type veth peer name wan netns " + name);
    node.ip_batch("address add 198.18.10" + digits + ".1/24 dev up-" + name + "\naddress add fd00:10" +
                  digits + "::1/64 nodad dev up-" + name + "\nlink set up-" + name + " up\n");
    network.ip_batch("link set lo down\nlink set wan up\naddress add 198.18.10" + digits +
                     ".2/24 dev wan\naddress add fd00:10" + digits + "::2/64 nodad dev wan\n" +
                     "route add default via 198.18.10" + digits + ".1\nroute add ::/0 via fd00:10" + digits +
                     "::1\n");
    network.set("net/ipv4/ip_forward", "1");
    network.set("net/ipv6/conf/all/forwarding", "1");
  }

  void add_guest(const test::NetworkNamespace& machine, const std::string& tap, int index, int number) const {
    const std::string v4 = "198.18." + std::to_string(number);
    const std::string v6 = "fd00:" + std::to_string(number) + "::";
    network.ip("link add " + tap + " index " + std::to_string(index) + " type veth peer name eth0 netns " +
               machine.path());
    network.ip_batch("address add " + v4 + ".1/24 dev " + tap + "\naddress add " + v6 + "1/64 nodad dev " +
                     tap + "\nlink set " + tap + " up\n");
    machine.ip_batch("address add " + v4 + ".2/24 dev eth0\naddress add " + v6 +
                     "2/64 nodad dev eth0\nlink set eth0 up\nroute add default via " + v4 +
                     ".1\nroute add ::/0 via " + v6 + "1\n");
  }

  /// Without the programs' numbers.
  std::string listing() const {
    return std::regex_replace(listing_of(network, {"tap0", "tap1"}), std::regex(" id [0-9]+"), "");
  }

  test::NetworkNamespace network;
  test::NetworkNamespace guest;
};

struct Setting {
  std::string name;
  ReturnPath::Kind kind = ReturnPath::Kind::kProgram;
  bool v6 = false;
  bool tcx = true;

  friend void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }
};

class GuestNamespacesTest : public NamedNamespacesTest, public testing::WithParamInterface<Setting> {
 protected:
  void SetUp() override {
    NamedNamespacesTest::SetUp();
    if (IsSkipped()) return;
    make("unused");  // makes /run/netns
    node_.emplace();
    a_ = std::make_unique<Home>(*node_, "a", 1);
    b_ = std::make_unique<Home>(*node_, "b", 2);
    if (!GetParam().tcx) taken_ = take_all_tcx(a_->network, "tap0");
    before_a_ = a_->listing();
    before_b_ = b_->listing();
    node_->run([&] { path_ = ReturnPath::start(GetParam().kind).value(); });
  }
  void TearDown() override {
    if (node_) node_->run([&] { path_.reset(); });
    NamedNamespacesTest::TearDown();
  }

  const Network& network() const { return GetParam().v6 ? kV6 : kV4; }
  Endpoint client(std::uint16_t port) const { return {address(network().client), port}; }
  Endpoint guest(std::uint16_t port) const { return {address(network().guest), port}; }
  Endpoint neighbour(std::uint16_t port) const { return {address(network().neighbour), port}; }
  Endpoint node_side(std::uint16_t port) const {
    return {address(GetParam().v6 ? "fd00:2::1" : "198.18.2.1"), port};
  }

  Way add(const Netns::Ptr& netns, int tap, const IpAddress& address) {
    Way way;
    node_->run([&] {
      way = path_->add(tap, address, netns);
      EXPECT_EQ(path_->fault(way), "");
      EXPECT_TRUE(path_->add_port(way, kService));
    });
    return way;
  }
  Way add(const std::string& name) { return add(open_named(name), kTap, guest(0).address()); }
  void remove(const Way& way) {
    node_->run([&] { path_->remove(way); });
  }
  std::vector<ReturnPath::Change> repair(std::size_t links = 16) {
    std::vector<ReturnPath::Change> changes;
    node_->run([&] { changes = path_->repair(links); });
    return changes;
  }

  /// As the relay does it.
  static Connected connect_as(const std::string& name, const Endpoint& source, const Endpoint& destination,
                              std::string_view tap = "tap0", const timeval& timeout = kLong) {
    const std::vector<std::string> directories{"/run/netns"};
    const int family = source.protocol().family();
    Fd fd(Netns::open("/run/netns/" + name, directories)
              .value()
              ->make_socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    set_option(fd, SOL_SOCKET, SO_RCVTIMEO, kLong);
    return relay_to(std::move(fd), source, destination, tap, timeout);
  }

  void expect_a_conversation(const std::string& name, const Fd& listener, std::uint16_t port) const {
    const auto [upstream, error] = connect_as(name, client(port), local_of(listener));
    ASSERT_EQ(error, 0) << name << ": " << std::strerror(error);
    expect_conversation(upstream, listener, client(port));
  }

  /// A daemon that is killed once `use` has succeeded.
  template <class Use>
  void die_after(Use use) {
    node_->run([&] {
      path_.reset();
      const pid_t child = ::fork();
      if (child == 0) {
        auto path = ReturnPath::start(GetParam().kind);
        ::_exit(path && use(**path) ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      ASSERT_EQ(status, 0);
    });
  }
  static bool set_up(ReturnPath& path, const Netns::Ptr& netns, const IpAddress& address) {
    const Way way = path.add(kTap, address, netns);
    return path.add_port(way, kService) && path.fault(way).empty();
  }

  void expect_gone_from_node(const std::string& link) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    bool exists = true;
    while (exists && std::chrono::steady_clock::now() < deadline) {
      node_->run([&] { exists = ::if_nametoindex(link.c_str()) != 0; });
      std::this_thread::yield();
    }
    EXPECT_FALSE(exists) << link;
  }

  std::optional<test::NetworkNamespace> node_;
  std::unique_ptr<Home> a_;
  std::unique_ptr<Home> b_;
  std::vector<ForeignTcx> taken_;
  std::string before_a_;
  std::string before_b_;
  std::unique_ptr<ReturnPath> path_;
};
INSTANTIATE_TEST_SUITE_P(
    Settings, GuestNamespacesTest,
    testing::Values(Setting{.name = "ProgramV4"}, Setting{.name = "ProgramV6", .v6 = true},
                    Setting{.name = "FilterV4", .tcx = false},
                    Setting{.name = "FilterV6", .v6 = true, .tcx = false},
                    Setting{.name = "RulesV4", .kind = ReturnPath::Kind::kRules},
                    Setting{.name = "RulesV6", .kind = ReturnPath::Kind::kRules, .v6 = true}),
    [](const auto& test) { return test.param.name; });

TEST_P(GuestNamespacesTest, EqualGuestsAreReachedAtOnceAndEachAnswersItsOwnClient) {
  add("a");
  add("b");
  const Fd at_a = listen(a_->guest, guest(kService));
  const Fd at_b = listen(b_->guest, guest(kService));
  const auto to_a = connect_as("a", client(40000), guest(kService));
  const auto to_b = connect_as("b", client(40000), guest(kService));
  ASSERT_EQ(to_a.error, 0) << std::strerror(to_a.error);
  ASSERT_EQ(to_b.error, 0) << std::strerror(to_b.error);
  const Fd in_a = accept(at_a);
  const Fd in_b = accept(at_b);
  EXPECT_EQ(peer_of(in_a), client(40000));
  EXPECT_EQ(peer_of(in_b), client(40000));
  EXPECT_EQ(exchange(to_a.fd, in_a, "for a"), "for a");
  EXPECT_EQ(exchange(to_b.fd, in_b, "for b"), "for b");
  EXPECT_EQ(exchange(in_a, to_a.fd, "from a"), "from a");
  EXPECT_EQ(exchange(in_b, to_b.fd, "from b"), "from b");
  if (GetParam().kind == ReturnPath::Kind::kRules) return;  // each port has its own
  EXPECT_EQ(connect_as("a", client(40001), guest(1)).error, ECONNREFUSED) << "without a timeout";
}

TEST_P(GuestNamespacesTest, WithoutItAnswersAreLost) {
  const Fd at_a = listen(a_->guest, guest(kService));
  EXPECT_EQ(connect_as("a", client(40000), guest(kService), "tap0", kShort).error, EINPROGRESS);
}

TEST_P(GuestNamespacesTest, ANamespaceIsLeftAsItWasFound) {
  const Way in_a = add("a");
  const Way in_b = add("b");
  EXPECT_THAT(a_->listing(),
              AllOf(HasSubstr("local default dev tap0 table 5210 proto 210"),
                    HasSubstr(GetParam().kind == ReturnPath::Kind::kRules ? "sport 3000" : "portway_steer")));
  EXPECT_EQ(run_command(&a_->network, {"ip", "-o", "link", "show", "lo"}).find("UP"), std::string::npos);
  remove(in_a);
  EXPECT_EQ(a_->listing(), before_a_);
  const Fd at_b = listen(b_->guest, guest(kService));
  expect_a_conversation("b", at_b, 40000);
  EXPECT_NE(b_->listing(), before_b_);
  node_->run([&] { path_.reset(); });
  EXPECT_EQ(b_->listing(), before_b_);
  EXPECT_EQ(path_, nullptr);
  (void)in_b;
}

TEST_P(GuestNamespacesTest, TheNamespaceIsReferredToUntilItsLastGuestIsGone) {
  std::weak_ptr<const Netns> reference;
  Way one;
  {
    const Netns::Ptr netns = open_named("a");
    reference = netns;
    one = add(netns, kTap, guest(0).address());
  }
  const test::NetworkNamespace other;
  a_->add_guest(other, "tap1", 77, 3);
  const Way two = add(open_named("a"), 77, neighbour(0).address());
  EXPECT_EQ(one.space, two.space);
  remove(one);
  EXPECT_FALSE(reference.expired());
  remove(one);
  remove(two);
  EXPECT_TRUE(reference.expired());
  const Way again = add("a");
  EXPECT_NE(again.space, one.space);
  remove(two);
  node_->run([&] { EXPECT_EQ(path_->fault(two), ""); });
  const Fd listener = listen(a_->guest, guest(kService));
  expect_a_conversation("a", listener, 40000);
}

TEST_P(GuestNamespacesTest, WhatAKilledPredecessorLeftIsTakenOverByTheFirstGuestThere) {
  const Netns::Ptr netns = open_named("a");
  const Netns::Ptr other = open_named("b");
  die_after([&](ReturnPath& path) {
    return set_up(path, netns, guest(0).address()) && set_up(path, other, guest(0).address());
  });
  EXPECT_THAT(a_->listing(), HasSubstr("proto 210"));
  node_->run([&] { path_ = ReturnPath::start(GetParam().kind).value(); });
  const Way way = add("a");
  const Fd listener = listen(a_->guest, guest(kService));
  expect_a_conversation("a", listener, 40000);
  node_->run([&] { EXPECT_TRUE(path_->remove_leftovers(netns)); });
  expect_a_conversation("a", listener, 40001);
  remove(way);
  EXPECT_EQ(a_->listing(), before_a_);

  EXPECT_THAT(b_->listing(), HasSubstr("proto 210"));
  node_->run([&] { EXPECT_TRUE(path_->remove_leftovers(other)); });
  EXPECT_EQ(b_->listing(), before_b_);
}

TEST_P(GuestNamespacesTest, WhatSomebodyRemovedThereIsRepaired) {
  const Way way = add("a");
  add("b");
  const std::string with = a_->listing();
  a_->network.ip((GetParam().v6 ? "-6" : "-4") + std::string(" rule del pref 5109"));
  a_->network.ip((GetParam().v6 ? "-6" : "-4") + std::string(" route flush table 5210"));
  if (with.find("clsact") != std::string::npos) {
    run_command(&a_->network, {"tc", "qdisc", "del", "dev", "tap0", "clsact"});
  }
  EXPECT_NE(a_->listing(), with);
  for (int i = 0; i < 2; ++i) EXPECT_THAT(repair(1), IsEmpty());  // one of two links each time
  EXPECT_EQ(a_->listing(), with);

  a_->network.ip("link del tap0");
  EXPECT_THAT(repair(), ElementsAre(FieldsAre(way, AllOf(HasSubstr("there is no link"),
                                                         HasSubstr("in the guest's network namespace")))));
  EXPECT_THAT(repair(), IsEmpty());
}

TEST_P(GuestNamespacesTest, AGuestsAddressesChangeThere) {
  const Way way = add("a");
  const std::string with = a_->listing();
  const std::vector<IpAddress> both{address(kV4.guest), address(kV6.guest)};
  const auto change = [&](const std::vector<IpAddress>& addresses) {
    node_->run([&] {
      EXPECT_EQ(path_->change_addresses(way, addresses), way);
      EXPECT_EQ(path_->fault(way), "");
    });
  };
  change(both);
  const Fd listener = listen(a_->guest, guest(kService));
  expect_a_conversation("a", listener, 40000);
  change({guest(0).address()});
  EXPECT_EQ(a_->listing(), with);
  expect_a_conversation("a", listener, 40001);
  remove(way);
  EXPECT_EQ(a_->listing(), before_a_);
}

TEST_P(GuestNamespacesTest, ANamespaceThatCannotBeEnteredIsAFaultThatNamesTheCapability) {
  const Netns::Ptr netns = open_named("a");
  const Netns::Ptr other = open_named("b");
  node_->run([&] {
    drop_capabilities({CAP_SYS_ADMIN});
    const Way way = path_->add(kTap, guest(0).address(), netns);
    EXPECT_THAT(path_->fault(way), HasSubstr("CAP_SYS_ADMIN"));
    EXPECT_THAT(path_->fault(way, guest(0).address()), HasSubstr("CAP_SYS_ADMIN"));
    EXPECT_THAT(path_->repair(16), IsEmpty());
    EXPECT_FALSE(path_->remove_leftovers(other));
    path_->remove(way);
  });
  EXPECT_EQ(a_->listing(), before_a_);
  const Way way = add("a");
  node_->run([&] {
    drop_capabilities({CAP_SYS_ADMIN});
    EXPECT_THAT(path_->repair(16), ElementsAre(FieldsAre(way, HasSubstr("CAP_SYS_ADMIN"))));
  });
  EXPECT_THAT(repair(), ElementsAre(FieldsAre(way, "")));
}

TEST_P(GuestNamespacesTest, AMarkOfAnotherProgramsIsAFaultUntilItIsFree) {
  if (GetParam().kind != ReturnPath::Kind::kProgram) return;
  a_->network.ip("rule add pref 9000 fwmark 0x20000000/0x20000000 lookup main");
  const std::string before = a_->listing();
  Way way;
  node_->run([&] {
    way = path_->add(kTap, guest(0).address(), open_named("a"));
    EXPECT_THAT(path_->fault(way), HasSubstr("set proxy.source_mark_bit"));
  });
  EXPECT_EQ(a_->listing(), before);
  a_->network.ip("rule del pref 9000");
  EXPECT_THAT(repair(), ElementsAre(FieldsAre(way, "")));
  const Fd listener = listen(a_->guest, guest(kService));
  expect_a_conversation("a", listener, 40000);
}

TEST_P(GuestNamespacesTest, RulesThatOthersHaveThereComeAfterOurs) {
  a_->network.ip((GetParam().v6 ? "-6" : "-4") + std::string(" rule add pref 300 iif tap0 lookup main"));
  add("a");
  EXPECT_THAT(a_->listing(), HasSubstr("299:\tfrom"));
  const Fd listener = listen(a_->guest, guest(kService));
  expect_a_conversation("a", listener, 40000);
}

// ---- What keeps a namespace alive ----

TEST_P(GuestNamespacesTest, ADeletedNamespaceIsGoneAfterAKillWithEverythingInIt) {
  make("c");
  ip({"-n", "c", "link", "add", "tap0", "index", "2", "type", "veth", "peer", "name", "other", "netns",
      "unused"});
  node_->ip("link add up-c type veth peer name wan netns c");
  ip({"-n", "c", "link", "set", "tap0", "up"});
  for (const char* network : {"198.18.2.1/24", "fd00:2::1/64"}) {
    ip({"-n", "c", "address", "add", network, "dev", "tap0"});
  }
  Netns::Ptr netns = open_named("c");
  die_after([&](ReturnPath& path) { return set_up(path, netns, guest(0).address()); });
  netns.reset();
  NamedNamespacesTest::remove("c");
  expect_gone_from_node("up-c");
}

// The one thing of a guest's that stays open is its tcx link: it must not keep the namespace.
TEST_P(GuestNamespacesTest, AnAttachedProgramKeepsNoNamespace) {
  if (GetParam().kind != ReturnPath::Kind::kProgram || !GetParam().tcx) return;
  make("c");
  const GuestLink tap{.space = 1, .index = kTap};
  ip({"-n", "c", "link", "add", "tap0", "index", "2", "type", "veth", "peer", "name", "other", "netns",
      "unused"});
  node_->ip("link add up-c type veth peer name wan netns c");
  const auto program = SteerProgram::load(1).value();
  ASSERT_TRUE(program->set_guest(tap, {guest(0).address()}, true));
  {
    const Netns::Ptr netns = open_named("c");
    const auto inside = netns->enter();
    ASSERT_TRUE(program->attach(tap, program->make_attachable(tap).value()));
  }
  EXPECT_TRUE(program->is_attached(tap));
  NamedNamespacesTest::remove("c");
  expect_gone_from_node("up-c");
  EXPECT_FALSE(program->is_attached(tap));
}

// ---- What a guest may try ----

class GuestNamespacesAttackTest : public GuestNamespacesTest {
 protected:
  void SetUp() override {
    GuestNamespacesTest::SetUp();
    if (IsSkipped()) return;
    a_->network.set("net/ipv4/ip_early_demux", "0");  // as in ReturnPathAttackTest
    a_->add_guest(neighbour_, "tap1", 77, 3);
    for (const char* device : {"all", "tap0", "tap1", "wan"}) {
      a_->network.set(std::string("net/ipv4/conf/") + device + "/rp_filter", "0");
      if (std::string(device) != "tap1") {
        b_->network.set(std::string("net/ipv4/conf/") + device + "/rp_filter", "0");
      }
    }
    // What is not kept goes to the client, on the node.
    node_->ip("address add 198.18.1.2/32 dev lo");
    node_->ip("address add fd00:1::2/128 nodad dev lo");
    for (const char* device : {"all", "up-a", "up-b"}) {
      node_->set(std::string("net/ipv4/conf/") + device + "/rp_filter", "0");
    }
    add("a");
    add(open_named("a"), 77, neighbour(0).address());
    add("b");
    listener_ = listen(a_->guest, guest(kService));
    auto connected = connect_as("a", client(40000), guest(kService));
    ASSERT_EQ(connected.error, 0);
    upstream_ = std::move(connected.fd);
    accepted_ = accept(listener_);
    sniffer_.emplace(*node_, GetParam().v6);
  }

  /// Whether a segment of the connection, from this source, arrives at the client.
  bool reaches_the_client(const test::NetworkNamespace& from, const Endpoint& source,
                          const Endpoint& marker_source, std::uint8_t flags = TH_ACK) {
    forge(from, source, client(40000), kForged, flags);
    forge(from, marker_source, client(9), kMarker);
    const std::uint32_t first = sniffer_->first_of(kForged, kMarker);
    EXPECT_NE(first, 0) << "neither arrived";
    if (first == kForged) {
      EXPECT_EQ(sniffer_->first_of(kMarker, kMarker), kMarker);
    }
    return first == kForged;
  }
  std::uint64_t forged_packets() const { return path_->forged_packets(); }
  void expect_the_connection_to_live() const {
    EXPECT_EQ(exchange(upstream_, accepted_, "still"), "still");
    EXPECT_EQ(exchange(accepted_, upstream_, "there"), "there");
  }

  const test::NetworkNamespace neighbour_;
  Fd listener_;
  Fd upstream_;
  Fd accepted_;
  std::optional<Sniffer> sniffer_;
};
INSTANTIATE_TEST_SUITE_P(Families, GuestNamespacesAttackTest,
                         testing::Values(Setting{.name = "V4"}, Setting{.name = "V6", .v6 = true},
                                         Setting{.name = "FilterV4", .tcx = false}),
                         [](const auto& test) { return test.param.name; });

TEST_P(GuestNamespacesAttackTest, OnlyTheGuestOfAConnectionCanReachIt) {
  EXPECT_FALSE(reaches_the_client(a_->guest, guest(kService), guest(9))) << "steered";
  expect_the_connection_to_live();
  EXPECT_EQ(forged_packets(), 0U);
}

TEST_P(GuestNamespacesAttackTest, ANeighbourThatForgesTheGuestsAddressIsNotHeard) {
  EXPECT_FALSE(reaches_the_client(neighbour_, guest(kService), neighbour(9), TH_RST));
  EXPECT_EQ(forged_packets(), 1U) << "dropped, not steered";
  expect_the_connection_to_live();
}

TEST_P(GuestNamespacesAttackTest, AnEqualGuestInAnotherNamespaceForgesNothingAndReachesNothing) {
  EXPECT_TRUE(reaches_the_client(b_->guest, guest(kService), guest(9), TH_RST)) << "it has the address";
  EXPECT_EQ(forged_packets(), 0U);
  EXPECT_TRUE(reaches_the_client(b_->guest, neighbour(kService), guest(9), TH_RST))
      << "in its namespace no guest has it";
  EXPECT_EQ(forged_packets(), 0U);
  expect_the_connection_to_live();
}

TEST_P(GuestNamespacesAttackTest, TheNodesSideOfTheTapHasNoConnections) {
  // The kernel drops the node's own addresses at once (IPv4); for IPv6 they are anybody's.
  EXPECT_EQ(reaches_the_client(a_->guest, node_side(kService), guest(9), TH_RST), GetParam().v6);
  expect_the_connection_to_live();
}

TEST_P(GuestNamespacesAttackTest, ASynReachesNoServiceInTheNamespace) {
  const auto any = GetParam().v6 ? IpAddress(boost::asio::ip::address_v6::any())
                                 : IpAddress(boost::asio::ip::address_v4::any());
  const Fd service = listen(a_->network, {any, 40000});
  EXPECT_TRUE(reaches_the_client(a_->guest, guest(kService), guest(9), TH_SYN));
  EXPECT_TRUE(nobody_waits(service));
  expect_the_connection_to_live();
}

TEST_P(GuestNamespacesAttackTest, ARoutedConnectionIsKnownByItsSpace) {
  const std::string route =
      (GetParam().v6 ? "-6 route add fd00:2::2 via fd00:101::2" : "route add 198.18.2.2 via 198.18.101.2");
  node_->ip(route);
  const auto routed = connect_plainly(*node_, client(40007), guest(kService));
  ASSERT_EQ(routed.error, 0) << std::strerror(routed.error);
  const Fd at_guest = accept(listener_);
  EXPECT_EQ(exchange(routed.fd, at_guest, "by route"), "by route");
  EXPECT_EQ(exchange(at_guest, routed.fd, "and back"), "and back");
  const RoutedConnections& all = *path_->routed();
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  EXPECT_TRUE(all.contain(kTap, client(40007), kService, now, 1));
  EXPECT_FALSE(all.contain(kTap, client(40007), kService, now, 2)) << "in the other namespace";
  EXPECT_FALSE(all.contain(kTap, client(40007), kService, now)) << "in the node's own";
}

}  // namespace
}  // namespace portway
