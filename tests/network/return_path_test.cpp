// Client, node and two guests in network namespaces of their own; connections from the node to a guest
// carry the client's address, and the guest's answers must find their way back to the node, whatever the
// node's settings. No netfilter.

#include "network/return_path.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "tests/network/world.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"
#include "tests/support/tcx.h"

namespace portway {
namespace {

using namespace test;
using test::NetworkNamespace;
using testing::_;
using testing::AllOf;
using testing::ElementsAre;
using testing::FieldsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::UnorderedElementsAre;

/// Without obstacles.
Way add(ReturnPath& path, int link, const IpAddress& guest) {
  const Way way = path.add(link, guest);
  EXPECT_EQ(path.fault(way), "");
  return way;
}

class ReturnPathTest : public WorldTest {};

/// A daemon that is killed once `use` has succeeded: what it made stays.
template <class Use>
void die_after(const test::NetworkNamespace& node, Use use,
               ReturnPath::Kind kind = ReturnPath::Kind::kProgram, const ReturnPathSettings& settings = {}) {
  node.run([&] {
    const pid_t child = ::fork();
    if (child == 0) {
      auto path = ReturnPath::start(kind, settings);
      ::_exit(path && use(**path) ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  });
}

// ---- Connections, under all settings of the node ----

struct Setting {
  std::string name;
  bool v6 = false;
  std::string rp_filter = "0";
  std::string src_valid_mark = "0";
  std::string forward = "1";

  friend void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }
};

std::vector<Setting> all_settings() {
  std::vector<Setting> all;
  for (const std::string forward : {"0", "1"}) {
    all.push_back({.name = "V6Forward" + forward, .v6 = true, .forward = forward});
    for (const std::string rp_filter : {"0", "1", "2"}) {
      for (const std::string mark : {"0", "1"}) {
        all.push_back({"V4RpFilter" + rp_filter + "SrcValidMark" + mark + "Forward" + forward, false,
                       rp_filter, mark, forward});
      }
    }
  }
  return all;
}

class ReturnPathSettingTest : public ReturnPathTest, public testing::WithParamInterface<Setting> {
 protected:
  void SetUp() override {
    ReturnPathTest::SetUp();
    if (!world_) return;
    world_->set_rp_filter(GetParam().rp_filter);
    world_->set_src_valid_mark(GetParam().src_valid_mark);
    world_->set_forward(GetParam().forward);
  }

  /// A client of the guest's service, with its own address and port.
  void expect_a_conversation(const Fd& listener) const {
    const auto [upstream, error] = world_->connect_as(client(40000), local_of(listener));
    ASSERT_EQ(error, 0) << std::strerror(error);
    const Fd accepted = accept(listener);
    EXPECT_EQ(peer_of(accepted), client(40000));
    EXPECT_EQ(exchange(upstream, accepted, "question"), "question");
    EXPECT_EQ(exchange(accepted, upstream, "answer"), "answer");
    ::shutdown(accepted.get(), SHUT_WR);
    char byte = 0;
    EXPECT_EQ(::recv(upstream.get(), &byte, 1, 0), 0);
  }

  const Network& network() const { return GetParam().v6 ? kV6 : kV4; }
  Endpoint client(std::uint16_t port) const { return {address(network().client), port}; }
  Endpoint guest(std::uint16_t port) const { return {address(network().guest), port}; }
  Endpoint neighbour(std::uint16_t port) const { return {address(network().neighbour), port}; }
};
INSTANTIATE_TEST_SUITE_P(Settings, ReturnPathSettingTest, testing::ValuesIn(all_settings()),
                         [](const auto& test) { return test.param.name; });

TEST_P(ReturnPathSettingTest, TheGuestSeesTheClientsAddressAndPortAndItsAnswersComeBack) {
  const auto path = world_->start();
  add(*path, world_->link("tap0"), guest(0).address());
  const Fd listener = listen(world_->guest, guest(0));
  expect_a_conversation(listener);

  const Endpoint closed(guest(0).address(), 1);
  EXPECT_EQ(world_->connect_as(client(40001), closed).error, ECONNREFUSED);
}

TEST_P(ReturnPathSettingTest, WithRulesTooIfThePortWasAdded) {
  const auto path = world_->start(ReturnPath::Kind::kRules);
  ASSERT_EQ(path->kind(), ReturnPath::Kind::kRules);
  const Fd listener = listen(world_->guest, guest(0));
  world_->node.run([&] {
    const Way way = add(*path, world_->link("tap0"), guest(0).address());
    ASSERT_TRUE(path->add_port(way, local_of(listener).port()));
  });
  expect_a_conversation(listener);
}

class ReturnPathForwardTest : public ReturnPathSettingTest {};
INSTANTIATE_TEST_SUITE_P(Families, ReturnPathForwardTest,
                         testing::Values(Setting{.name = "V4"}, Setting{.name = "V4Strict", .rp_filter = "1"},
                                         Setting{.name = "V6", .v6 = true}),
                         [](const auto& test) { return test.param.name; });

TEST_P(ReturnPathForwardTest, TheGuestsOwnConnectionsAndRoutedOnesGoTheirWay) {
  const auto path = world_->start();
  add(*path, world_->link("tap0"), guest(0).address());
  const Fd guest_listener = listen(world_->guest, guest(0));
  const Fd client_listener = listen(world_->client, client(0));
  const auto forwarded = world_->connect_as(client(40000), local_of(guest_listener));
  ASSERT_EQ(forwarded.error, 0);
  const Fd at_guest = accept(guest_listener);

  // Out of the guest, from the very port that is forwarded.
  const auto outbound = connect_plainly(world_->guest, local_of(guest_listener), local_of(client_listener));
  ASSERT_EQ(outbound.error, 0) << std::strerror(outbound.error);
  const Fd at_client = accept(client_listener);
  EXPECT_EQ(exchange(outbound.fd, at_client, "out"), "out");
  EXPECT_EQ(exchange(at_client, outbound.fd, "back"), "back");

  // Through the node to the forwarded port, without the proxy.
  const auto routed = connect_plainly(world_->client, client(40002), local_of(guest_listener));
  ASSERT_EQ(routed.error, 0) << std::strerror(routed.error);
  const Fd at_guest_too = accept(guest_listener);
  EXPECT_EQ(exchange(routed.fd, at_guest_too, "in"), "in");
  EXPECT_EQ(exchange(at_guest_too, routed.fd, "back"), "back");

  EXPECT_EQ(exchange(at_guest, forwarded.fd, "still there"), "still there");
}

// ---- What a guest may try. rp_filter is off, and the node forwards: nothing else would stop it ----

class ReturnPathAttackTest : public ReturnPathSettingTest {
 protected:
  void SetUp() override {
    ReturnPathSettingTest::SetUp();
    if (!world_) return;
    // Otherwise a segment that is not steered may be dropped because of the socket that early demux found,
    // and could not be distinguished from a steered one.
    world_->node.set("net/ipv4/ip_early_demux", "0");
    path_ = world_->start();
    add(*path_, world_->link("tap0"), guest(0).address());
    listener_ = listen(world_->guest, guest(0));
    auto connected = world_->connect_as(client(40000), local_of(listener_));
    ASSERT_EQ(connected.error, 0);
    upstream_ = std::move(connected.fd);
    accepted_ = accept(listener_);
    sniffer_.emplace(world_->client, GetParam().v6);
  }

  /// Whether a segment of the connection with that client port, sent by `from`, stays in the node; else it
  /// goes to the real client.
  bool is_steered(const NetworkNamespace& from, const Endpoint& marker_source, std::uint16_t port = 40000,
                  std::uint8_t flags = TH_ACK) {
    forge(from, local_of(listener_), client(port), kForged, flags);
    forge(from, marker_source, client(9), kMarker);  // of no connection: always forwarded
    const std::uint32_t first = sniffer_->first_of(kForged, kMarker);
    EXPECT_NE(first, 0) << "neither arrived";
    return first == kMarker;
  }

  std::unique_ptr<ReturnPath> path_;
  Fd listener_;
  Fd upstream_;
  Fd accepted_;
  std::optional<Sniffer> sniffer_;
};
INSTANTIATE_TEST_SUITE_P(Families, ReturnPathAttackTest,
                         testing::Values(Setting{.name = "V4"}, Setting{.name = "V6", .v6 = true}),
                         [](const auto& test) { return test.param.name; });

TEST_P(ReturnPathAttackTest, OnlyTheGuestOfAConnectionCanReachIt) {
  EXPECT_TRUE(is_steered(world_->guest, guest(9)));
}

TEST_P(ReturnPathAttackTest, ALinkWithoutAGuestCannot) {
  EXPECT_FALSE(is_steered(world_->neighbour, neighbour(9)));
}

TEST_P(ReturnPathAttackTest, ANeighbourThatForgesTheGuestsAddressIsNotHeardByAnybody) {
  add(*path_, world_->link("tap1"), neighbour(0).address());
  const auto unbound = world_->connect_as(client(40001), local_of(listener_), "");
  ASSERT_EQ(unbound.error, 0);
  for (const int port : {40000, 40001}) {
    forge(world_->neighbour, local_of(listener_), client(static_cast<std::uint16_t>(port)), kForged);
  }
  forge(world_->neighbour, neighbour(9), client(9), kMarker);
  EXPECT_EQ(sniffer_->first_of(kForged, kMarker), kMarker);
  EXPECT_EQ(path_->forged_packets(), 2U) << "dropped, not steered";
}

TEST_P(ReturnPathAttackTest, AGuestWithTheSameAddressOnAnotherTapCannot) {
  add(*path_, world_->link("tap1"), guest(0).address());
  EXPECT_FALSE(is_steered(world_->neighbour, neighbour(9)));
}

TEST_P(ReturnPathAttackTest, TheNodesServicesAreNotReachedByForeignAddresses) {
  const auto any = GetParam().v6 ? IpAddress(boost::asio::ip::address_v6::any())
                                 : IpAddress(boost::asio::ip::address_v4::any());
  const Fd of_client = listen(world_->client, client(0));
  const Fd of_node = listen(world_->node, {any, local_of(of_client).port()});
  const auto connected = connect_plainly(world_->guest, guest(0), local_of(of_client));
  ASSERT_EQ(connected.error, 0);
  EXPECT_TRUE(accept(of_client));
  EXPECT_TRUE(nobody_waits(of_node));

  // If the client has no such connection, the client itself refuses.
  const std::uint16_t port = local_of(of_node).port();
  const auto refused = connect_plainly(world_->guest, guest(0), client(static_cast<std::uint16_t>(port ^ 1)));
  EXPECT_EQ(refused.error, ECONNREFUSED);
}

// ---- ICMP errors about a connection ----

struct Unreachable {
  std::uint8_t code;
  int error;
};

class ReturnPathIcmpTest : public ReturnPathSettingTest {
 protected:
  void SetUp() override {
    ReturnPathSettingTest::SetUp();
    if (!world_) return;
    world_->node.set("net/ipv4/ip_early_demux", "0");  // as in ReturnPathAttackTest
    path_ = world_->start();
    add(*path_, world_->link("tap0"), guest(0).address());
    add(*path_, world_->link("tap1"), neighbour(0).address());
    listener_ = listen(world_->guest, guest(0));
    at_client_.emplace(world_->client, v6());
    at_guest_.emplace(world_->guest, v6());
  }

  bool v6() const { return GetParam().v6; }
  std::uint8_t unreachable() const { return v6() ? ICMP6_DST_UNREACH : ICMP_DEST_UNREACH; }
  std::uint8_t prohibited() const { return v6() ? ICMP6_DST_UNREACH_ADMIN : ICMP_PKT_FILTERED; }

  std::string too_big(const std::string& quoted) const {
    return v6() ? make_error(true, ICMP6_PACKET_TOO_BIG, 0, kSmall, quoted)
                : make_error(false, ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED, kSmall, quoted);
  }
  std::string refusal(const std::string& quoted) const {
    return make_error(v6(), unreachable(), prohibited(), 0, quoted);
  }

  /// A connection as the proxy makes it, and what an error about it would quote.
  struct Flow {
    Fd upstream;
    Fd accepted;
    std::string packet;
  };
  Flow open(std::uint16_t port) {
    auto [upstream, error] = world_->connect_as(client(port), local_of(listener_));
    EXPECT_EQ(error, 0);
    Fd accepted = accept(listener_);
    return {std::move(upstream), std::move(accepted), last_packet_of(port, /* syn= */ false)};
  }
  Flow open_unanswered(std::uint16_t port) {
    make_deaf(listener_);
    auto [upstream, error] = world_->connect_as(client(port), local_of(listener_), "tap0", kShort);
    EXPECT_EQ(error, EINPROGRESS);
    return {std::move(upstream), {}, last_packet_of(port, /* syn= */ true)};
  }
  std::string last_packet_of(std::uint16_t port, bool syn) {
    while (const auto segment = at_guest_->next()) {
      if (ntohs(segment->tcp.source) != port || (segment->tcp.syn != 0) != syn) continue;
      return make_packet(client(port), local_of(listener_), ntohl(segment->tcp.seq), segment->tcp.th_flags);
    }
    ADD_FAILURE() << "the guest got no such packet";
    return "";
  }

  /// Whether the message stays in the node; else it goes to the real client. Waits for a later packet to
  /// arrive.
  bool is_kept(const NetworkNamespace& from, const IpAddress& source, const std::string& message) {
    const std::string marker =
        refusal(make_packet(client(1), local_of(listener_), ++markers_, TH_ACK));  // of no connection
    send_icmp(from, source, client(0).address(), message);
    send_icmp(from, from_address(from), client(0).address(), marker);
    const int first = at_client_->first_of(message, marker);
    EXPECT_NE(first, 0) << "neither arrived";
    if (first == 1) {
      EXPECT_EQ(at_client_->first_of(marker, marker), 1);
    }
    return first == 2;
  }
  bool is_kept(const std::string& message) { return is_kept(world_->guest, guest(0).address(), message); }
  IpAddress from_address(const NetworkNamespace& from) const {
    return &from == &world_->guest ? guest(0).address() : neighbour(0).address();
  }

  int path_mtu(const Flow& flow) const {
    int mtu = 0;
    socklen_t size = sizeof mtu;
    EXPECT_EQ(
        ::getsockopt(flow.upstream.get(), v6() ? SOL_IPV6 : SOL_IP, v6() ? IPV6_MTU : IP_MTU, &mtu, &size),
        0);
    return mtu;
  }
  static int error_of(const Flow& flow) {
    int error = 0;
    socklen_t size = sizeof error;
    EXPECT_EQ(::getsockopt(flow.upstream.get(), SOL_SOCKET, SO_ERROR, &error, &size), 0);
    return error;
  }

  static constexpr std::uint32_t kSmall = 1300;
  static constexpr int kLarge = 1500;
  std::unique_ptr<ReturnPath> path_;
  Fd listener_;
  std::optional<IcmpSniffer> at_client_;
  std::optional<Sniffer> at_guest_;
  std::uint32_t markers_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Families, ReturnPathIcmpTest,
                         testing::Values(Setting{.name = "V4"},
                                         Setting{.name = "V4Strict", .rp_filter = "1", .src_valid_mark = "1"},
                                         Setting{.name = "V6", .v6 = true}),
                         [](const auto& test) { return test.param.name; });

// A guest that rejects by ICMP once cost the client the whole connect timeout, and gave it an address that
// it does not know.
TEST_P(ReturnPathIcmpTest, AGuestsRefusalEndsTheConnectAtOnce) {
  const std::vector<Unreachable> all =
      v6() ? std::vector<Unreachable>{{ICMP6_DST_UNREACH_NOPORT, ECONNREFUSED},
                                      {ICMP6_DST_UNREACH_ADMIN, EACCES},
                                      {ICMP6_DST_UNREACH_ADDR, EHOSTUNREACH},
                                      {ICMP6_DST_UNREACH_NOROUTE, ENETUNREACH}}
           : std::vector<Unreachable>{{ICMP_PORT_UNREACH, ECONNREFUSED},
                                      {ICMP_PKT_FILTERED, EHOSTUNREACH},
                                      {ICMP_NET_ANO, ENETUNREACH},
                                      {ICMP_HOST_UNREACH, EHOSTUNREACH}};
  std::uint16_t port = 40000;
  for (const auto& [code, error] : all) {
    const Flow flow = open_unanswered(++port);
    EXPECT_TRUE(is_kept(make_error(v6(), unreachable(), code, 0, flow.packet))) << int{code};
    EXPECT_EQ(error_of(flow), error) << int{code};
  }
}

TEST_P(ReturnPathIcmpTest, AnErrorAboutAnEstablishedConnectionDoesNotEndIt) {
  const Flow flow = open(40000);
  EXPECT_TRUE(is_kept(refusal(flow.packet)));
  EXPECT_EQ(exchange(flow.upstream, flow.accepted, "still there"), "still there");
}

TEST_P(ReturnPathIcmpTest, ARouterBehindTheTapReportsThePathsMtu) {
  const Flow flow = open(40000);
  ASSERT_EQ(path_mtu(flow), kLarge);
  const IpAddress router = address(v6() ? "fd00:2::77" : "198.18.2.77");
  EXPECT_TRUE(is_kept(world_->guest, router, too_big(flow.packet)));
  EXPECT_EQ(path_mtu(flow), int{kSmall});
}

TEST_P(ReturnPathIcmpTest, OfTwoConnectionsTheOneIsMeantThatIsQuoted) {
  const Flow one = open_unanswered(40001);
  const Flow other = open_unanswered(40002);
  EXPECT_TRUE(is_kept(refusal(one.packet)));
  EXPECT_NE(error_of(one), 0);
  EXPECT_EQ(error_of(other), 0);
}

TEST_P(ReturnPathIcmpTest, AnotherGuestsErrorsHaveNoEffect) {
  const Flow flow = open_unanswered(40001);
  EXPECT_FALSE(is_kept(world_->neighbour, neighbour(0).address(), refusal(flow.packet)));
  EXPECT_EQ(error_of(flow), 0);
  // With the address of the guest that is meant; the source guard drops it.
  EXPECT_TRUE(is_kept(world_->neighbour, guest(0).address(), refusal(flow.packet)));
  EXPECT_EQ(path_->forged_packets(), 1U);
  EXPECT_EQ(error_of(flow), 0);
  // Both have the same address; a strict rp_filter would let only one of them communicate.
  world_->set_rp_filter("0");
  add(*path_, world_->link("tap1"), guest(0).address());
  EXPECT_FALSE(is_kept(world_->neighbour, guest(0).address(), refusal(flow.packet)));
  EXPECT_EQ(error_of(flow), 0);
}

TEST_P(ReturnPathIcmpTest, OnlyWhatQuotesAPacketOfTheConnectionIsKept) {
  const Flow flow = open_unanswered(40001);
  const auto quote = [&](const Endpoint& source, const Endpoint& destination) {
    return refusal(make_packet(source, destination, kForged, TH_SYN));
  };
  const Endpoint service = local_of(listener_);
  EXPECT_FALSE(is_kept(quote(client(40002), service))) << "no such connection";
  EXPECT_FALSE(is_kept(quote(client(40001), neighbour(service.port())))) << "a packet to another guest";
  EXPECT_FALSE(is_kept(quote(neighbour(40001), service)))
      << "sent to another than the quoted packet's source";
  EXPECT_FALSE(is_kept(quote(service, client(40001)))) << "a packet of the guest";
  const std::uint8_t echo = v6() ? ICMP6_ECHO_REPLY : ICMP_ECHOREPLY;
  EXPECT_FALSE(is_kept(make_error(v6(), echo, 0, 0, flow.packet))) << "no error";
  EXPECT_EQ(error_of(flow), 0);
}

TEST_P(ReturnPathIcmpTest, QuotesAreReadWithinTheirBounds) {
  const Flow flow = open_unanswered(40001);
  const std::size_t ports_end = flow.packet.size() - sizeof(tcphdr) + 4;
  const std::size_t enough = ports_end + 4;  // for the kernel
  for (std::size_t size = 0; size <= enough; ++size) {
    EXPECT_EQ(is_kept(refusal(flow.packet.substr(0, size))), size >= ports_end) << size;
    EXPECT_EQ(error_of(flow) != 0, size == enough) << size;
  }
}

TEST_P(ReturnPathIcmpTest, AQuotedPacketMayHaveOptions) {
  const Flow flow = open_unanswered(40001);
  std::string packet = flow.packet;
  if (v6()) {
    packet = make_packet(client(40001), local_of(listener_), 0, TH_SYN,
                         {IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_DSTOPTS})  // the sequence number is below
                 .substr(0, sizeof(ip6_hdr) + 24) +
             flow.packet.substr(sizeof(ip6_hdr));
  } else {
    packet[0] = 0x4f;  // 40 bytes of them
    packet.insert(sizeof(iphdr), 40, '\x01');
  }
  EXPECT_TRUE(is_kept(refusal(packet)));
  EXPECT_NE(error_of(flow), 0);
}

TEST_P(ReturnPathIcmpTest, AQuotedFragmentHasNoPorts) {
  const Flow flow = open_unanswered(40001);
  std::string packet = flow.packet;
  if (v6()) {
    packet[6] = IPPROTO_FRAGMENT;
    packet.insert(sizeof(ip6_hdr), std::string{IPPROTO_TCP, 0, 0, 8, 0, 0, 0, 1});
  } else {
    packet[7] = 1;
  }
  EXPECT_FALSE(is_kept(refusal(packet)));
  EXPECT_EQ(error_of(flow), 0);
}

/// No router forwards one of IPv6.
class ReturnPathRedirectTest : public ReturnPathIcmpTest {};
INSTANTIATE_TEST_SUITE_P(Families, ReturnPathRedirectTest,
                         testing::Values(Setting{.name = "V4"},
                                         Setting{
                                             .name = "V4Strict", .rp_filter = "1", .src_valid_mark = "1"}),
                         [](const auto& test) { return test.param.name; });

TEST_P(ReturnPathRedirectTest, ARedirectGoesNowhere) {
  const Flow flow = open(40000);
  EXPECT_TRUE(is_kept(make_error(false, ICMP_REDIRECT, ICMP_REDIR_HOST, 0xc6120363, flow.packet)));
  EXPECT_THAT(run_command(&world_->node, {"ip", "route", "get", guest(0).address().to_string()}),
              Not(HasSubstr("redirect")));
  EXPECT_EQ(exchange(flow.upstream, flow.accepted, "still there"), "still there");
}

// ---- Whatever the node has for the client's address and port, a SYN of the guest goes to the client ----

/// A service of the node on all addresses. With IP_TRANSPARENT, as another proxy would be: without, an IPv4
/// listener cannot answer from an address that is not the node's, an IPv6 one can.
Fd start_wildcard_service(const World& world, bool v6, std::uint16_t port) {
  const auto any =
      v6 ? IpAddress(boost::asio::ip::address_v6::any()) : IpAddress(boost::asio::ip::address_v4::any());
  Fd service = listen(world.node, {any, port});
  if (!v6) set_option(service, SOL_IP, IP_TRANSPARENT, kOn);
  return service;
}

enum class RelayState : std::uint8_t {
  kSynSent,
  kEstablished,
  kFinWait1,
  kFinWait2,
  kClosing,
  kCloseWait,
  kLastAck,
  kTimeWait,
  kGone
};
constexpr std::array kRelayStates = {
    std::pair(RelayState::kSynSent, "SynSent"),   std::pair(RelayState::kEstablished, "Established"),
    std::pair(RelayState::kFinWait1, "FinWait1"), std::pair(RelayState::kFinWait2, "FinWait2"),
    std::pair(RelayState::kClosing, "Closing"),   std::pair(RelayState::kCloseWait, "CloseWait"),
    std::pair(RelayState::kLastAck, "LastAck"),   std::pair(RelayState::kTimeWait, "TimeWait"),
    std::pair(RelayState::kGone, "Gone"),
};

struct StateSetting {
  RelayState state;
  std::string name;
  bool v6;
  bool service_first;

  friend void PrintTo(const StateSetting& setting, std::ostream* out) { *out << setting.name; }
};

std::vector<StateSetting> all_states() {
  std::vector<StateSetting> all;
  for (const auto& [state, name] : kRelayStates) {
    for (const bool v6 : {false, true}) {
      for (const bool first : {false, true}) {
        all.push_back({state,
                       std::string(name) + (v6 ? "V6" : "V4") + (first ? "ServiceFirst" : "ServiceAfter"), v6,
                       first});
      }
    }
  }
  return all;
}

void wait_for_state(const Fd& socket, int wanted) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  tcp_info info{};
  do {
    socklen_t size = sizeof info;
    ASSERT_EQ(::getsockopt(socket.get(), SOL_TCP, TCP_INFO, &info, &size), 0);
    std::this_thread::yield();
  } while (info.tcpi_state != wanted && std::chrono::steady_clock::now() < deadline);
  ASSERT_EQ(info.tcpi_state, wanted);
}

class ReturnPathStateTest : public ReturnPathTest, public testing::WithParamInterface<StateSetting> {
 protected:
  static constexpr std::uint16_t kPort = 9100;

  void SetUp() override {
    ReturnPathTest::SetUp();
    if (!world_) return;
    world_->node.set("net/ipv4/ip_early_demux", "0");  // as in ReturnPathAttackTest
    path_ = world_->start();
    add(*path_, world_->link("tap0"), guest(0).address());
    listener_ = listen(world_->guest, guest(0));
    if (GetParam().service_first) service_ = start_service();
    bring_about(GetParam().state);
    if (HasFatalFailure()) return;
    if (!GetParam().service_first) service_ = start_service();
    at_client_.emplace(world_->client, GetParam().v6);
    at_guest_.emplace(world_->guest, GetParam().v6);
  }

  Fd start_service() const { return start_wildcard_service(*world_, GetParam().v6, kPort); }

  void bring_about(RelayState state) {
    if (state == RelayState::kSynSent) make_deaf(listener_);
    auto connected = world_->connect_as(client(kPort), local_of(listener_), "tap0",
                                        state == RelayState::kSynSent ? kShort : kLong,
                                        /* share_port= */ GetParam().service_first);
    relay_ = std::move(connected.fd);
    if (state == RelayState::kSynSent) {
      ASSERT_EQ(connected.error, EINPROGRESS);
      return wait_for_state(relay_, TCP_SYN_SENT);
    }
    ASSERT_EQ(connected.error, 0) << std::strerror(connected.error);
    accepted_ = accept(listener_);
    switch (state) {
      case RelayState::kFinWait1:
        make_deaf(accepted_);
        ::shutdown(relay_.get(), SHUT_WR);
        return wait_for_state(relay_, TCP_FIN_WAIT1);
      case RelayState::kFinWait2:
        ::shutdown(relay_.get(), SHUT_WR);
        return wait_for_state(relay_, TCP_FIN_WAIT2);
      case RelayState::kClosing:
        make_deaf(accepted_);
        ::shutdown(relay_.get(), SHUT_WR);
        ::shutdown(accepted_.get(), SHUT_WR);
        return wait_for_state(relay_, TCP_CLOSING);
      case RelayState::kCloseWait:
        ::shutdown(accepted_.get(), SHUT_WR);
        return wait_for_state(relay_, TCP_CLOSE_WAIT);
      case RelayState::kLastAck:
        ::shutdown(accepted_.get(), SHUT_WR);
        wait_for_state(relay_, TCP_CLOSE_WAIT);
        make_deaf(accepted_);
        ::shutdown(relay_.get(), SHUT_WR);
        return wait_for_state(relay_, TCP_LAST_ACK);
      case RelayState::kTimeWait:
        ::shutdown(relay_.get(), SHUT_WR);
        wait_for_state(accepted_, TCP_CLOSE_WAIT);
        accepted_.reset();
        return wait_for_state(relay_, TCP_CLOSE);  // what is left of it is TIME_WAIT, without a descriptor
      case RelayState::kGone: {
        const linger reset{.l_onoff = 1, .l_linger = 0};
        set_option(relay_, SOL_SOCKET, SO_LINGER, reset);
        relay_.reset();
        return;
      }
      case RelayState::kSynSent:
      case RelayState::kEstablished:
        return;
    }
  }

  /// Whether a segment of the guest on the connection is kept in the node; else it goes to the real client.
  bool is_steered(std::uint8_t flags) {
    forge(world_->guest, local_of(listener_), client(kPort), kForged, flags);
    forge(world_->guest, guest(9), client(9), kMarker);
    const std::uint32_t first = at_client_->first_of(kForged, kMarker);
    EXPECT_NE(first, 0) << "neither arrived";
    if (first == kForged) {
      EXPECT_EQ(at_client_->first_of(kMarker, kMarker), kMarker);
    }
    return first == kMarker;
  }

  const Network& network() const { return GetParam().v6 ? kV6 : kV4; }
  Endpoint client(std::uint16_t port) const { return {address(network().client), port}; }
  Endpoint guest(std::uint16_t port) const { return {address(network().guest), port}; }

  std::unique_ptr<ReturnPath> path_;
  Fd listener_;  // the guest's
  Fd service_;   // the node's, on all addresses and the client's port
  Fd relay_;
  Fd accepted_;
  std::optional<Sniffer> at_client_;
  std::optional<Sniffer> at_guest_;
};
INSTANTIATE_TEST_SUITE_P(States, ReturnPathStateTest, testing::ValuesIn(all_states()),
                         [](const auto& test) { return test.param.name; });

// The node's own services could once be reached by a client's address: for a SYN that a TIME_WAIT socket
// lets pass, the kernel looks for a listener, and one on all addresses matches.
TEST_P(ReturnPathStateTest, ASynOfTheGuestReachesTheClientAndNoServiceOfTheNode) {
  for (const int flags : {TH_SYN, TH_SYN | TH_FIN, TH_SYN | TH_PUSH, TH_SYN | TH_URG}) {
    EXPECT_FALSE(is_steered(static_cast<std::uint8_t>(flags))) << flags;
  }
  EXPECT_TRUE(nobody_waits(service_));
  EXPECT_FALSE(at_guest_->has_syn_ack_of(kPort));
}

TEST_P(ReturnPathStateTest, OtherSegmentsReachTheRelaysSocketAsLongAsThereIsOne) {
  EXPECT_EQ(is_steered(TH_ACK), GetParam().state != RelayState::kGone);
  EXPECT_TRUE(nobody_waits(service_));
}

// A rule cannot match TCP flags. From a forwarded port the guest could once reach, by any foreign address,
// every service of the node that listens on all addresses.
class ReturnPathRulesTest : public ReturnPathSettingTest {
 protected:
  static constexpr std::uint16_t kServicePort = 9100;
  static constexpr std::uint16_t kForwarded = 3000;

  void SetUp() override {
    ReturnPathSettingTest::SetUp();
    if (!world_) return;
    path_ = world_->start(ReturnPath::Kind::kRules);
    way_ = add(*path_, world_->link("tap0"), guest(0).address());
    ASSERT_TRUE(path_->add_port(way_, kForwarded));
    ASSERT_TRUE(path_->add_port(way_, kForwarded + 1));
    service_ = start_wildcard_service(*world_, GetParam().v6, kServicePort);
    at_guest_.emplace(world_->guest, GetParam().v6);
    // The node already knows the guest's Ethernet address: that does not delay an answer.
    const Endpoint any(GetParam().v6 ? IpAddress(boost::asio::ip::address_v6::any())
                                     : IpAddress(boost::asio::ip::address_v4::any()),
                       0);
    EXPECT_EQ(connect_plainly(world_->node, any, guest(1)).error, ECONNREFUSED);
  }

  std::string syn(std::uint16_t from, const std::vector<std::uint8_t>& extensions = {}) const {
    return make_packet(guest(from), client(kServicePort), kForged, TH_SYN, extensions);
  }
  bool is_answered(const std::string& packet, int tags = 0) {
    send_frame(world_->guest, world_->mac("tap0"), packet, tags);
    return at_guest_->has_syn_ack_of(kServicePort);
  }

  std::unique_ptr<ReturnPath> path_;
  Way way_;
  Fd service_;
  std::optional<Sniffer> at_guest_;
};
INSTANTIATE_TEST_SUITE_P(Families, ReturnPathRulesTest,
                         testing::Values(Setting{.name = "V4"}, Setting{.name = "V6", .v6 = true}),
                         [](const auto& test) { return test.param.name; });

TEST_P(ReturnPathRulesTest, ASynFromAForwardedPortReachesNoServiceOfTheNode) {
  for (const std::uint16_t port : {kForwarded, static_cast<std::uint16_t>(kForwarded + 1)}) {
    for (const int tags : {0, 1, 2, 3, 8}) EXPECT_FALSE(is_answered(syn(port), tags)) << tags << " tags";
    if (!GetParam().v6) continue;
    for (const std::uint8_t header : {IPPROTO_HOPOPTS, IPPROTO_DSTOPTS}) {
      EXPECT_FALSE(is_answered(syn(port, {header})));
      EXPECT_FALSE(is_answered(syn(port, {header, IPPROTO_DSTOPTS})));
    }
  }
  EXPECT_TRUE(nobody_waits(service_));

  world_->delete_hook("tap0");
  EXPECT_TRUE(is_answered(syn(kForwarded))) << "this is what it is for";
  EXPECT_THAT(path_->repair(16), IsEmpty());
  EXPECT_FALSE(is_answered(syn(kForwarded))) << "it is put back";
}

TEST_P(ReturnPathRulesTest, TheFilterFollowsThePorts) {
  const std::string before = world_->listing();
  path_->remove_port(way_, kForwarded);
  Sniffer at_client(world_->client, GetParam().v6);
  // No rule and no filter: it goes where it is addressed.
  forge(world_->guest, guest(kForwarded), client(kServicePort), kForged, TH_SYN);
  EXPECT_EQ(at_client.first_of(kForged, kForged), kForged);
  EXPECT_FALSE(is_answered(syn(kForwarded + 1)));
  path_->remove_port(way_, kForwarded + 1);
  EXPECT_THAT(world_->listing(), AllOf(Not(HasSubstr("bytecode")), Not(HasSubstr("clsact"))));
  ASSERT_TRUE(path_->add_port(way_, kForwarded));
  ASSERT_TRUE(path_->add_port(way_, kForwarded + 1));
  EXPECT_EQ(world_->listing(), before);
  path_->remove(way_);
  EXPECT_THAT(world_->listing(), Not(HasSubstr("clsact")));
}

TEST_P(ReturnPathRulesTest, AFilterOfAKilledPredecessorIsRemovedByTheNextStart) {
  const std::string before = world_->listing();
  EXPECT_THAT(before, HasSubstr("bytecode"));
  path_.reset();
  die_after(
      world_->node,
      [&](ReturnPath& path) {
        return static_cast<bool>(path.add_port(path.add(way_.link, guest(0).address()), kForwarded));
      },
      ReturnPath::Kind::kRules);
  EXPECT_THAT(world_->listing(), HasSubstr("bytecode"));
  path_ = world_->start();
  EXPECT_THAT(world_->listing(), Not(HasSubstr("clsact")));
}

// ---- The source guard, where no address of a client is ever used ----

class SourceGuardTest : public ReturnPathSettingTest {
 protected:
  void SetUp() override {
    ReturnPathSettingTest::SetUp();
    if (!world_) return;
    path_ = world_->start(ReturnPath::Kind::kGuardOnly);
    way_ = add(*path_, world_->link("tap0"), guest(0).address());
    add(*path_, world_->link("tap1"), neighbour(0).address());
    sniffer_.emplace(world_->client, GetParam().v6);
  }

  /// Whether packets that the neighbour sends from that address arrive.
  bool passes(const Endpoint& source) {
    forge(world_->neighbour, source, client(9), kForged);
    forge(world_->neighbour, neighbour(9), client(9), kMarker);
    const std::uint32_t first = sniffer_->first_of(kForged, kMarker);
    EXPECT_NE(first, 0) << "neither arrived";
    if (first == kForged) {
      EXPECT_EQ(sniffer_->first_of(kMarker, kMarker), kMarker);
    }
    return first == kForged;
  }

  std::unique_ptr<ReturnPath> path_;
  Way way_;  // the guest's, not the neighbour's
  std::optional<Sniffer> sniffer_;
};
INSTANTIATE_TEST_SUITE_P(Families, SourceGuardTest,
                         testing::Values(Setting{.name = "V4"}, Setting{.name = "V4Loose", .rp_filter = "2"},
                                         Setting{.name = "V6", .v6 = true}),
                         [](const auto& test) { return test.param.name; });

TEST_P(SourceGuardTest, AGuestSendsWithNoOtherGuestsAddress) {
  EXPECT_FALSE(passes(guest(9)));
  EXPECT_EQ(path_->forged_packets(), 1U);
  EXPECT_TRUE(passes(neighbour(10))) << "its own";
  EXPECT_EQ(path_->forged_packets(), 1U);
}

TEST_P(SourceGuardTest, AGuestMayRouteForMachinesThatAreNoGuests) {
  world_->set_rp_filter("0");
  EXPECT_TRUE(passes({address(GetParam().v6 ? "fd00:77::1" : "198.18.77.1"), 9}));
}

TEST_P(SourceGuardTest, TwoGuestsWithOneAddressBothUseIt) {
  add(*path_, world_->link("tap1"), guest(0).address());
  EXPECT_TRUE(passes(guest(9)));
}

TEST_P(SourceGuardTest, AnAddressIsFreeWhenItsLastGuestIsGone) {
  world_->node.ip("link add tap7 index 777 type veth peer name peer7");
  const Way other = add(*path_, 777, guest(0).address());
  path_->remove(way_);
  EXPECT_FALSE(passes(guest(9)));
  path_->remove(other);
  EXPECT_TRUE(passes(guest(9)));
}

TEST_P(SourceGuardTest, ItLeavesRoutingAndMarksAlone) {
  const std::string listing = world_->listing();
  EXPECT_THAT(listing, AllOf(HasSubstr("portway_steer"), Not(HasSubstr("proto 210"))));
  EXPECT_EQ(path_->kind(), ReturnPath::Kind::kGuardOnly);
}

// ---- What it makes and removes ----

TEST_F(ReturnPathTest, WithoutItAnswersAreLost) {
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  const auto connected = world_->connect_as({address(kV4.client), 40000}, local_of(listener), "tap0", kShort);
  EXPECT_EQ(connected.error, EINPROGRESS);  // how SO_SNDTIMEO reports that its time is over
}

/// By tcx, and by filters if that is not available.
class ReturnPathHookTest : public ReturnPathTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    ReturnPathTest::SetUp();
    if (!world_ || by_tcx()) return;
    for (const char* tap : {"tap0", "tap1"}) taken_.push_back(take_all_tcx(world_->node, tap));
  }

  static bool by_tcx() { return GetParam(); }

  std::vector<std::vector<ForeignTcx>> taken_;
};
INSTANTIATE_TEST_SUITE_P(Hooks, ReturnPathHookTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "Tcx" : "Filter"; });

TEST_P(ReturnPathHookTest, NothingIsMadeBeforeTheFirstGuestAndNothingStaysAfterTheLast) {
  const std::string before = world_->listing();
  const auto path = world_->start();
  EXPECT_EQ(world_->listing(), before);
  const Way v4 = add(*path, world_->link("tap0"), address(kV4.guest));
  const Way v6 = add(*path, world_->link("tap1"), address(kV6.neighbour));
  const std::string with = world_->listing();
  EXPECT_THAT(with, HasSubstr("5108:\tfrom all fwmark 0x20000000/0x20000000 iif lo lookup main proto 210"));
  EXPECT_THAT(with, HasSubstr("5109:\tfrom all fwmark 0x20000000/0x20000000 lookup 5210 proto 210"));
  EXPECT_THAT(with, HasSubstr("local default dev lo table 5210 proto 210"));
  EXPECT_THAT(with,
              HasSubstr(by_tcx() ? "tap0 tcx portway_steer" : "bpf chain 0 handle 0x5211 portway_steer"));
  EXPECT_EQ(with.find("clsact") == std::string::npos, by_tcx());
  path->remove(v4);
  EXPECT_NE(world_->listing(), before);
  path->remove(v6);
  EXPECT_EQ(world_->listing(), before);
  path->remove(v6);
  EXPECT_EQ(world_->listing(), before);
}

TEST_P(ReturnPathHookTest, ItsDestructorRemovesEverything) {
  const std::string before = world_->listing();
  {
    const auto path = world_->start();
    add(*path, world_->link("tap0"), address(kV4.guest));
    add(*path, world_->link("tap1"), address(kV6.neighbour));
    add(*path, world_->link("tap1"), address(kV6.neighbour));  // a second time
    add(*path, world_->link("tap1"), address(kV4.neighbour));  // with another address
  }
  EXPECT_EQ(world_->listing(), before);
}

TEST_P(ReturnPathHookTest, WhatAKilledPredecessorLeftIsRemovedByTheNextStart) {
  const std::string before = world_->listing();
  const int tap0 = world_->link("tap0");
  const int tap1 = world_->link("tap1");
  world_->add_hook("tap1");
  const std::string with_hook_of_others = world_->listing();
  die_after(world_->node, [&](ReturnPath& path) {
    return path.fault(path.add(tap0, address(kV4.guest))).empty() &&
           path.fault(path.add(tap1, address(kV6.guest))).empty();
  });
  EXPECT_THAT(world_->listing(), HasSubstr("proto 210"));
  EXPECT_EQ(world_->listing().find("portway_steer") == std::string::npos, by_tcx())
      << "a tcx program ends with it";
  const auto path = world_->start();
  EXPECT_EQ(world_->listing(), with_hook_of_others);
  world_->delete_hook("tap1");
  EXPECT_EQ(world_->listing(), before);
}

TEST_P(ReturnPathHookTest, OtherProgramsRulesAndFiltersStayAndKeepWorking) {
  world_->node.ip("rule add pref 5209 fwmark 0x1/0x1 lookup main");
  world_->node.ip("rule add pref 5211 fwmark 0x2/0x2 lookup main");
  world_->node.ip("route add local 203.0.113.7 dev lo table 5210");
  world_->add_hook("tap0");
  world_->add_foreign_filter("tap0", "ingress", "1");
  world_->add_foreign_filter("tap0", "ingress", "7");
  world_->add_foreign_filter("tap0", "egress", "1");
  const std::string before = world_->listing();
  const auto path = world_->start();
  EXPECT_EQ(world_->listing(), before);
  const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  EXPECT_EQ(world_->connect_as({address(kV4.client), 40000}, local_of(listener)).error, 0);
  run_command(&world_->node, {"tc", "filter", "add", "dev", "tap0", "ingress", "pref", "5", "protocol", "all",
                              "bpf", "da", "bytecode", "1,6 0 0 2"});  // TC_ACT_SHOT
  EXPECT_EQ(world_->connect_as({address(kV4.client), 40001}, local_of(listener), "tap0", kShort).error,
            EINPROGRESS)
      << "theirs may still drop it";
  run_command(&world_->node, {"tc", "filter", "del", "dev", "tap0", "ingress", "pref", "5"});
  EXPECT_EQ(world_->connect_as({address(kV4.client), 40002}, local_of(listener)).error, 0);
  path->remove(way);
  EXPECT_EQ(world_->listing(), before);
}

TEST_F(ReturnPathTest, OtherTcxProgramsKeepWorkingBeforeItAfterItAndWithoutIt) {
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  std::optional<ForeignTcx> first(std::in_place, world_->node, "tap0");
  const auto path = world_->start();
  const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
  const ForeignTcx last(world_->node, "tap0");
  EXPECT_THAT(tcx_programs(world_->node, "tap0"), ElementsAre("portway_steer", "foreign", "foreign"));
  std::uint16_t port = 40000;
  const auto expect_a_connection = [&] {
    const std::uint64_t before = last.packets();
    EXPECT_EQ(world_->connect_as({address(kV4.client), port++}, local_of(listener)).error, 0);
    EXPECT_GT(last.packets(), before);
  };
  expect_a_connection();
  EXPECT_GT(first->packets(), 0U);

  first.emplace(world_->node, "tap0", ForeignTcx::Place::kFirst);
  EXPECT_THAT(tcx_programs(world_->node, "tap0"), ElementsAre("foreign", "portway_steer", "foreign"));
  expect_a_connection();
  EXPECT_GT(first->packets(), 0U);
  first.reset();
  expect_a_connection();
  EXPECT_THAT(path->repair(16), IsEmpty());

  path->remove(way);
  EXPECT_THAT(tcx_programs(world_->node, "tap0"), ElementsAre("foreign"));
  const std::uint64_t before = last.packets();
  EXPECT_EQ(connect_plainly(world_->node, {address("198.18.2.1"), 0}, local_of(listener)).error, 0);
  EXPECT_GT(last.packets(), before);
}

TEST_F(ReturnPathTest, OthersWhoTakeTheHookAwayTakeNoTcxProgramOfOurs) {
  world_->add_hook("tap0");
  const auto path = world_->start();
  add(*path, world_->link("tap0"), address(kV4.guest));
  world_->delete_hook("tap0");
  EXPECT_THAT(tcx_programs(world_->node, "tap0"), ElementsAre("portway_steer"));
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  EXPECT_EQ(world_->connect_as({address(kV4.client), 40000}, local_of(listener)).error, 0);
}

TEST_F(ReturnPathTest, TheRulesComeBeforeEverybodyElsesThatAreThereAtStart) {
  world_->add_default_route();
  world_->node.ip("rule add pref 300 iif tap0 lookup main");
  world_->node.ip("-6 rule add pref 200 iif tap0 lookup main");
  const auto path = world_->start();
  add(*path, world_->link("tap0"), address(kV4.guest));
  EXPECT_THAT(world_->listing(),
              AllOf(HasSubstr("198:\tfrom all fwmark"), HasSubstr("199:\tfrom all fwmark")));
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  EXPECT_EQ(world_->connect_as({address(kV4.client), 40000}, local_of(listener)).error, 0);
}

constexpr ReturnPathSettings kOtherNumbers{.rule_preference = 1200, .table = 70'000, .mark_bit = 0};

TEST_F(ReturnPathTest, PreferenceTableAndMarkBitCanBeChosen) {
  world_->add_default_route();
  const std::string before = world_->listing();
  for (const std::uint32_t bit : {0U, 31U}) {
    SCOPED_TRACE(bit);
    ReturnPathSettings settings = kOtherNumbers;
    settings.mark_bit = bit;
    const auto path = world_->start(ReturnPath::Kind::kProgram, settings);
    const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
    const Way v6 = add(*path, world_->link("tap1"), address(kV6.neighbour));
    const std::string mark = bit == 0 ? "0x1/0x1" : "0x80000000/0x80000000";
    EXPECT_THAT(world_->listing(),
                AllOf(HasSubstr("1199:\tfrom all fwmark " + mark + " iif lo lookup main proto 210"),
                      HasSubstr("1200:\tfrom all fwmark " + mark + " lookup 70000 proto 210"),
                      HasSubstr("local default dev lo table 70000 proto 210"), Not(HasSubstr("5210 proto"))));
    const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
    EXPECT_EQ(world_->connect_as({address(kV4.client), 40000}, local_of(listener)).error, 0);
    const Fd listener_v6 = listen(world_->neighbour, {address(kV6.neighbour), 0});
    EXPECT_EQ(world_->connect_as({address(kV6.client), 40000}, local_of(listener_v6), "tap1").error, 0);
    path->remove(way);
    path->remove(v6);
    EXPECT_EQ(world_->listing(), before);
  }
}

TEST_F(ReturnPathTest, PreferenceAndTableOfPortsRulesCanBeChosenToo) {
  const auto path = world_->start(ReturnPath::Kind::kRules, kOtherNumbers);
  const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  ASSERT_TRUE(path->add_port(way, local_of(listener).port()));
  EXPECT_THAT(world_->listing(),
              AllOf(HasSubstr("1200:\t"), HasSubstr("lookup 70000"), Not(HasSubstr("5210"))));
  EXPECT_EQ(world_->connect_as({address(kV4.client), 40000}, local_of(listener)).error, 0);
}

TEST_F(ReturnPathTest, WhatAKilledPredecessorWithOtherNumbersLeftIsRemovedToo) {
  world_->node.ip("route add local 203.0.113.7 dev lo table 70000");
  world_->node.ip("route add local default dev lo table 70001 proto static");
  const std::string before = world_->listing();
  const int tap0 = world_->link("tap0");
  const int tap1 = world_->link("tap1");
  die_after(
      world_->node,
      [&](ReturnPath& path) {
        return path.fault(path.add(tap0, address(kV4.guest))).empty() &&
               path.fault(path.add(tap1, address(kV6.neighbour))).empty();
      },
      ReturnPath::Kind::kProgram, kOtherNumbers);
  EXPECT_THAT(world_->listing(), HasSubstr("table 70000 proto 210"));
  const auto path = world_->start(ReturnPath::Kind::kGuardOnly);
  EXPECT_EQ(world_->listing(), before);
}

TEST_F(ReturnPathTest, AMarkBitThatAnothersRuleHasIsRefused) {
  world_->node.ip("-6 rule add pref 9000 fwmark 0x30000000/0xf0000000 lookup main");
  const std::string before = world_->listing();
  EXPECT_EQ(world_->start(ReturnPath::Kind::kGuardOnly)->kind(), ReturnPath::Kind::kGuardOnly)
      << "marks nothing";
  const auto refused = ReturnPath::start();
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().detail, AllOf(HasSubstr("preference 9000, fwmark 0x30000000"),
                                            HasSubstr("bit 29"), HasSubstr("set proxy.source_mark_bit")));
  EXPECT_EQ(world_->listing(), before);
  const auto path = world_->start(ReturnPath::Kind::kProgram, {.mark_bit = 30});
  add(*path, world_->link("tap0"), address(kV4.guest));
}

TEST_F(ReturnPathTest, AnEarlierRuleOfEqualPreferenceIsReportedIfItIsInTheWay) {
  world_->add_default_route();
  world_->node.ip("rule add pref 1200 iif tap0 lookup main");
  const auto path = world_->start(ReturnPath::Kind::kProgram, kOtherNumbers);
  const Way way = path->add(world_->link("tap0"), address(kV4.guest));
  EXPECT_THAT(path->fault(way), HasSubstr("(preference 1200): 1200"));
}

// Tailscale deletes any rule at its preferences.
TEST_F(ReturnPathTest, TailscalesCleanUpTakesNoRuleOfOurs) {
  for (const char* preference : {"5210", "5230", "5250", "5270"}) {
    world_->node.ip(std::string("rule add fwmark 0x80000/0xff0000 lookup main pref ") + preference);
  }
  const auto path = world_->start();
  add(*path, world_->link("tap0"), address(kV4.guest));
  for (const char* preference : {"5210", "5230", "5250", "5270"}) {
    world_->node.ip(std::string("rule del pref ") + preference);
  }
  EXPECT_THAT(path->repair(16), IsEmpty());
  EXPECT_THAT(world_->listing(), AllOf(HasSubstr("5108:\tfrom all"), HasSubstr("5109:\tfrom all")));
}

TEST_F(ReturnPathTest, AHookThatOthersCameToUseStays) {
  const auto taken = take_all_tcx(world_->node, "tap0");
  const auto path = world_->start();
  const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
  world_->add_foreign_filter("tap0", "egress", "7");
  path->remove(way);
  EXPECT_THAT(world_->listing(), AllOf(HasSubstr("clsact"), HasSubstr("pref 7"), Not(HasSubstr("portway"))));
}

TEST_F(ReturnPathTest, AFirstPlaceThatIsTakenIsAFaultUntilItIsFree) {
  const auto taken = take_all_tcx(world_->node, "tap0");
  world_->add_hook("tap0");
  world_->add_foreign_filter("tap0", "ingress", "1", "ip");
  const std::string before = world_->listing();
  const auto path = world_->start();
  const Way way = path->add(world_->link("tap0"), address(kV4.guest));
  EXPECT_THAT(path->fault(way), HasSubstr("tc filter add pref 1"));
  EXPECT_EQ(world_->listing(), before);
  run_command(&world_->node, {"tc", "filter", "del", "dev", "tap0", "ingress", "pref", "1"});
  EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, "")));
  EXPECT_EQ(path->fault(way), "");
}

TEST_F(ReturnPathTest, ALinkThatIsNotThereIsAnErrorAndNothingStays) {
  const std::string before = world_->listing();
  const auto path = world_->start();
  const Way way = path->add(99'999, address(kV4.guest));
  EXPECT_THAT(path->fault(way), HasSubstr("link 99999"));
  EXPECT_EQ(world_->listing(), before);
}

TEST_F(ReturnPathTest, ALinkThatIsGoneIsRemovedAndANewOneWithItsIndexIsAdded) {
  const auto path = world_->start();
  world_->node.ip("link add tap7 index 777 type veth peer name peer7");
  add(*path, 777, address("198.18.7.2"));
  world_->node.ip("link del tap7");
  world_->node.ip("link add tap7 index 777 type veth peer name peer7");
  const Way way = add(*path, 777, address("198.18.7.2"));
  EXPECT_THAT(tcx_programs(world_->node, "tap7"), ElementsAre("portway_steer"));
  world_->node.ip("link del tap7");
  world_->node.ip("link add tap7 index 777 type veth peer name peer7");
  EXPECT_THAT(path->repair(16), IsEmpty());
  EXPECT_THAT(tcx_programs(world_->node, "tap7"), ElementsAre("portway_steer"));
  world_->node.ip("link del tap7");
  path->remove(way);
  EXPECT_THAT(world_->listing(), Not(HasSubstr("proto 210")));
}

TEST_F(ReturnPathTest, TheNextAddPutsBackWhatSomebodyRemoved) {
  const auto taken = take_all_tcx(world_->node, "tap0");
  const auto path = world_->start();
  add(*path, world_->link("tap0"), address(kV4.guest));
  const std::string with = world_->listing();
  world_->node.ip("rule del pref 5109");
  world_->node.ip("route flush table 5210");
  world_->delete_hook("tap0");
  add(*path, world_->link("tap0"), address(kV4.guest));
  EXPECT_EQ(world_->listing(), with);
}

TEST_F(ReturnPathTest, ATableThatAnotherProgramUsesIsAFaultAndStays) {
  world_->node.ip("route add local default dev lo table 5210 proto static");
  const std::string before = world_->listing();
  const auto path = world_->start();
  const Way way = path->add(world_->link("tap0"), address(kV4.guest));
  EXPECT_THAT(path->fault(way), HasSubstr("table 5210"));
  path->remove(way);
  EXPECT_EQ(world_->listing(), before);
}

TEST_F(ReturnPathTest, ASecondOneInTheNetworkNamespaceDoesNotStart) {
  const auto path = world_->start();
  world_->node.run([] {
    const auto second = ReturnPath::start();
    ASSERT_FALSE(second);
    EXPECT_THAT(second.error().detail, HasSubstr("another Portway"));
  });
}

TEST_F(ReturnPathTest, WhatSomebodyRemovedIsRepaired) {
  const auto taken = take_all_tcx(world_->node, "tap0");
  const auto path = world_->start();
  add(*path, world_->link("tap0"), address(kV4.guest));
  add(*path, world_->link("tap1"), address(kV6.neighbour));
  const std::string with = world_->listing();
  world_->node.ip("rule del pref 5109");
  world_->node.ip("-6 rule del pref 5108");
  world_->node.ip("route flush table 5210");
  world_->delete_hook("tap0");
  EXPECT_THAT(path->repair(1), IsEmpty());
  EXPECT_THAT(path->repair(1), IsEmpty());
  EXPECT_EQ(world_->listing(), with);
}

TEST_F(ReturnPathTest, ALinkThatCannotBeRepairedIsReportedOnce) {
  const auto path = world_->start();
  const Way gone = add(*path, world_->link("tap0"), address(kV4.guest));
  add(*path, world_->link("tap1"), address(kV4.neighbour));
  world_->node.ip("link del tap0");
  EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(gone, HasSubstr("there is no link"))));
  EXPECT_THAT(path->repair(16), IsEmpty());
  path->remove(gone);
  EXPECT_EQ(path->fault(gone), "");
}

// ---- What stands in the way is found without a client ----

TEST_P(ReturnPathForwardTest, AnotherProgramsEarlierRuleIsReportedAndSoIsItsRemoval) {
  world_->add_default_route();
  const std::string family = GetParam().v6 ? "-6 " : "-4 ";
  const auto path = world_->start();
  const Way way = add(*path, world_->link("tap0"), guest(0).address());
  for (const char* action : {"lookup main", "blackhole", "prohibit", "unreachable"}) {
    SCOPED_TRACE(action);
    world_->node.ip(family + "rule add pref 77 iif tap0 " + action);
    const Fd listener = listen(world_->guest, guest(0));
    EXPECT_EQ(world_->connect_as(client(0), local_of(listener), "tap0", kShort).error, EINPROGRESS)
        << "this is what would happen to clients";
    EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, AllOf(HasSubstr(guest(0).address().to_string()),
                                                                   HasSubstr("tap0"), HasSubstr("77")))));
    world_->node.ip(family + "rule del pref 77");
    EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, "")));
    EXPECT_EQ(world_->connect_as(client(0), local_of(listener)).error, 0);
  }
}

TEST_F(ReturnPathTest, ACheckOfTheSourceAddressThatRefusesTheGuestIsReported) {
  world_->set_rp_filter("1");
  const auto path = world_->start();
  world_->node.ip("address del 198.18.2.1/24 dev tap0");
  const Way way = path->add(world_->link("tap0"), address(kV4.guest));
  EXPECT_THAT(path->fault(way), AllOf(HasSubstr("rp_filter"), HasSubstr("198.18.2.2"), HasSubstr("tap0")));
  world_->node.ip("address add 198.18.2.1/24 dev tap0");
  EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, "")));
}

TEST_F(ReturnPathTest, ARuleThatComesBeforeAPortsIsReportedToo) {
  world_->add_default_route();
  const auto path = world_->start(ReturnPath::Kind::kRules);
  world_->node.run([&] {
    const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
    ASSERT_TRUE(path->add_port(way, 3000));
    world_->node.ip("rule add pref 77 iif tap0 ipproto tcp sport 3000 lookup main");
    const auto more = path->add_port(way, 3001);
    EXPECT_TRUE(more);
    EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, HasSubstr("77"))));
    world_->node.ip("rule add pref 78 iif tap0 lookup main");
    const auto refused = path->add_port(way, 3002);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().detail, HasSubstr("77, 78"));
    EXPECT_THAT(world_->listing(), Not(HasSubstr("sport 3002")));
    world_->node.ip("rule del pref 77");
    world_->node.ip("rule del pref 78");
    EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, "")));
  });
}

TEST_F(ReturnPathTest, AFaultOfTheNodeIsReportedForAllItsGuestsAtOnce) {
  const auto path = world_->start();
  const Way one = add(*path, world_->link("tap0"), address(kV4.guest));
  const Way other = add(*path, world_->link("tap1"), address(kV4.neighbour));
  world_->node.ip("route flush table 5210");
  world_->node.ip("route add local default dev lo table 5210 proto static");
  EXPECT_THAT(path->repair(1), UnorderedElementsAre(FieldsAre(one, HasSubstr("table 5210")),
                                                    FieldsAre(other, HasSubstr("table 5210"))));
  world_->node.ip("route flush table 5210");
  EXPECT_THAT(path->repair(1), ElementsAre(FieldsAre(_, "")));
  EXPECT_THAT(path->repair(1), ElementsAre(FieldsAre(_, "")));
}

TEST_F(ReturnPathTest, ADeviceThatIsNoEthernetIsAFault) {
  world_->node.ip("tuntap add tun0 mode tun");
  const auto path = world_->start();
  const Way way = path->add(world_->link("tun0"), address(kV4.guest));
  EXPECT_THAT(path->fault(way), HasSubstr("tun0 is no Ethernet device"));
}

TEST_F(ReturnPathTest, RulesGoWithTheLastUserOfTheirPort) {
  const std::string before = world_->listing();
  const auto path = world_->start(ReturnPath::Kind::kRules);
  world_->node.run([&] {
    const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
    ASSERT_TRUE(path->add_port(way, 3000));
    ASSERT_TRUE(path->add_port(way, 3000)) << "another forward to the same port";
    ASSERT_TRUE(path->add_port(way, 5432));
    EXPECT_THAT(world_->listing(), HasSubstr("iif tap0 ipproto tcp sport 3000 lookup 5210"));
    path->remove_port(way, 3000);
    EXPECT_THAT(world_->listing(), HasSubstr("sport 3000"));
    path->remove_port(way, 3000);
    EXPECT_THAT(world_->listing(), Not(HasSubstr("sport 3000")));
    EXPECT_THAT(world_->listing(), HasSubstr("sport 5432"));
    path->remove(way);
  });
  EXPECT_EQ(world_->listing(), before);
}

TEST_F(ReturnPathTest, ThereAreOnlySoManyRules) {
  const auto path = world_->start(ReturnPath::Kind::kRules);
  world_->node.run([&] {
    const Way way = add(*path, world_->link("tap1"), address(kV6.neighbour));
    for (std::size_t i = 0; i < ReturnPath::kPortsMax; ++i) {
      ASSERT_TRUE(path->add_port(way, static_cast<std::uint16_t>(1000 + i)));
    }
    const auto more = path->add_port(way, 999);
    ASSERT_FALSE(more);
    EXPECT_THAT(more.error().detail, HasSubstr("CAP_BPF"));
  });
}

// The clean-up of a session that had ended a second before once removed the rule of the next one on its
// tap, whose connections then hung.
TEST_F(ReturnPathTest, ALateCleanUpOfAnEarlierSessionDoesNotHitTheNextOneOnItsTap) {
  const auto path = world_->start(ReturnPath::Kind::kRules);
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  const std::uint16_t port = local_of(listener).port();
  world_->node.run([&] {
    const Way first = add(*path, world_->link("tap0"), address(kV4.guest));
    ASSERT_TRUE(path->add_port(first, port));
    const Way second = add(*path, world_->link("tap0"), address(kV4.guest));
    EXPECT_NE(first, second);
    EXPECT_THAT(world_->listing(), Not(HasSubstr("sport"))) << "its ports are its own";
    ASSERT_TRUE(path->add_port(second, port));
    path->remove_port(first, port);
    path->remove(first);
    ASSERT_TRUE(path->add_port(first, 1)) << "says nothing";
    EXPECT_THAT(world_->listing(),
                AllOf(HasSubstr("sport " + std::to_string(port)), Not(HasSubstr("sport 1 "))));
    EXPECT_EQ(world_->connect_as({address(kV4.client), 40000}, local_of(listener)).error, 0);
    path->remove(second);
    EXPECT_THAT(world_->listing(), Not(HasSubstr("proto 210")));
  });
}

TEST_F(ReturnPathTest, ALateCleanUpDoesNotDetachTheProgramEither) {
  const auto path = world_->start();
  const Way first = add(*path, world_->link("tap0"), address(kV4.guest));
  add(*path, world_->link("tap0"), address(kV4.guest));
  const std::string with = world_->listing();
  path->remove(first);
  EXPECT_EQ(world_->listing(), with);
}

// A rule names the interface: a renamed tap once lost its rules, and the next tap with the old name
// inherited them.
TEST_F(ReturnPathTest, RulesFollowATapThatIsRenamed) {
  const auto path = world_->start(ReturnPath::Kind::kRules);
  const Fd listener = listen(world_->guest, {address(kV4.guest), 0});
  world_->node.run([&] {
    const Way way = add(*path, world_->link("tap0"), address(kV4.guest));
    ASSERT_TRUE(path->add_port(way, local_of(listener).port()));
    world_->node.ip("link set tap0 down");
    world_->node.ip("link set tap0 name tap9");
    world_->node.ip("link set tap9 up");
    world_->node.ip("link add tap0 type veth peer name other");
    EXPECT_THAT(path->repair(16), IsEmpty());
    EXPECT_THAT(world_->listing(), AllOf(HasSubstr("iif tap9 ipproto tcp"), Not(HasSubstr("iif tap0"))));
    EXPECT_EQ(world_->connect_as({address(kV4.client), 40000}, local_of(listener), "tap9").error, 0);
    world_->node.ip("link set tap9 down");
    world_->node.ip("link set tap9 name tap8");
    world_->node.ip("link set tap8 up");
    ASSERT_TRUE(path->add_port(way, 1));
    EXPECT_THAT(world_->listing(), Not(HasSubstr("iif tap9"))) << "a new port finds it too";
    path->remove(way);
    EXPECT_THAT(world_->listing(), Not(HasSubstr("proto 210")));
  });
}

// As root all capabilities are there, and CAP_PERFMON lets the verifier accept more: a daemon that had only
// the two that the documents name got rules, and no source guard.
TEST_F(ReturnPathTest, NeedsNoMoreThanCapBpfAndCapNetAdmin) {
  const int tap = world_->link("tap0");
  world_->node.run([tap] {
    keep_capabilities({CAP_BPF, CAP_NET_ADMIN});
    const auto path = ReturnPath::start();
    ASSERT_TRUE(path) << path.error().detail;
    EXPECT_EQ((*path)->kind(), ReturnPath::Kind::kProgram) << (*path)->why_rules();
    add(**path, tap, address(kV4.guest));
  });
}

TEST_F(ReturnPathTest, WithoutTheCapabilitiesItSaysWhichItNeeds) {
  world_->node.run([] {
    drop_capabilities({CAP_BPF, CAP_SYS_ADMIN});
    const auto path = ReturnPath::start();
    ASSERT_TRUE(path);
    EXPECT_EQ((*path)->kind(), ReturnPath::Kind::kRules);
    EXPECT_THAT((*path)->why_rules(), HasSubstr("CAP_BPF and CAP_NET_ADMIN"));
  });
  world_->node.run([] {
    drop_capabilities({CAP_BPF, CAP_SYS_ADMIN, CAP_NET_ADMIN});
    const auto path = ReturnPath::start();
    ASSERT_FALSE(path);
    EXPECT_EQ(path.error().code, ErrorCode::kResourceExhausted);
    EXPECT_THAT(path.error().detail, HasSubstr("CAP_BPF and CAP_NET_ADMIN"));
  });
  // It started, but no guest's answers ever came back: CAP_SYS_ADMIN is enough to load the program.
  for (const ReturnPath::Kind kind : {ReturnPath::Kind::kProgram, ReturnPath::Kind::kGuardOnly}) {
    world_->node.run([kind] {
      drop_capabilities({CAP_NET_ADMIN});
      const auto path = ReturnPath::start(kind);
      ASSERT_FALSE(path);
      EXPECT_THAT(path.error().detail, HasSubstr("it needs CAP_NET_ADMIN"));
    });
  }
  const auto path = world_->start();
  world_->node.run([&] {
    drop_capabilities({CAP_NET_ADMIN});
    const Way way = path->add(static_cast<int>(::if_nametoindex("tap0")), address(kV4.guest));
    EXPECT_THAT(path->fault(way), HasSubstr("it needs CAP_NET_ADMIN"));
  });
}

}  // namespace
}  // namespace portway
