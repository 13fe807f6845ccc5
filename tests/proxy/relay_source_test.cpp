// The address that a guest sees as its client's. The kernel's part is in tests/e2e and tests/network;
// here, what is tried, and what next.

#include <arpa/inet.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <string>
#include <vector>

#include "network/bpf_object.h"
#include "network/proxy_header.h"
#include "network/routed_connections.h"
#include "network/steer.h"
#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class RelaySource : public RelaySuite {
 protected:
  static bool counts_one(Rig& rig, SourcePlan plan) {
    return rig.run_until([&] { return rig.counters().sources[static_cast<std::size_t>(plan)].get() == 1; },
                         1s);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, RelaySource, testing::ValuesIn(kBackends), backend_name);

class RelaySourceInTheKernel : public RelaySource {};
INSTANTIATE_TEST_SUITE_P(Backends, RelaySourceInTheKernel, testing::Values(Backend::kUring, Backend::kEpoll),
                         backend_name);

class RelaySourceSimulated : public RelaySource {};
INSTANTIATE_TEST_SUITE_P(Backends, RelaySourceSimulated, testing::Values(Backend::kSim), backend_name);

TEST_P(RelaySource, AProxyHeaderComesBeforeTheClientsBytes) {
  Rig rig(GetParam(), {.source = SourcePlan::kProxyV2});
  auto [client, guest] = rig.open();
  client.send("hello");
  ASSERT_TRUE(rig.run_until([&guest = guest] { return guest.received().ends_with("hello"); }));
  ASSERT_EQ(rig.connections().size(), 1u);
  const LiveConnection live = rig.connections().front();
  const std::string header = guest.received().substr(0, guest.received().size() - 5);
  ASSERT_EQ(header.size(), 28u) << "TCP over IPv4";
  EXPECT_EQ(header.substr(0, 12), std::string("\r\n\r\n\0\r\nQUIT\n", 12));
  EXPECT_EQ(header.substr(16, 4),
            (std::string{static_cast<char>(live.client.address().to_v4().to_bytes()[0]),
                         static_cast<char>(live.client.address().to_v4().to_bytes()[1]),
                         static_cast<char>(live.client.address().to_v4().to_bytes()[2]),
                         static_cast<char>(live.client.address().to_v4().to_bytes()[3])}));
  EXPECT_EQ(live.source, SourcePlan::kProxyV2);
  EXPECT_EQ(live.received_bytes, 5u) << "the client's own bytes";
  EXPECT_TRUE(counts_one(rig, SourcePlan::kProxyV2));
}

TEST_P(RelaySource, AProxyHeaderComesAlsoToAServiceThatSpeaksFirst) {
  Rig rig(GetParam(), {.source = SourcePlan::kProxyV2});
  auto [client, guest] = rig.open();
  guest.send("220 welcome");
  EXPECT_TRUE(rig.run_until([&, &client = client, &guest = guest] {
    return client.received() == "220 welcome" && guest.received_bytes() == 28;
  }));
}

TEST_P(RelaySourceInTheKernel, AClientAtTheGuestsOwnAddressIsSeenAsTheNode) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.open();
  EXPECT_TRUE(counts_one(rig, SourcePlan::kHairpin));
}

TEST_P(RelaySourceSimulated, TheGuestSeesTheClientsAddressAndPort) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  auto [client, guest] = rig.open();
  EXPECT_EQ(guest.socket().remote(), rig.connections().at(0).client);
  EXPECT_TRUE(counts_one(rig, SourcePlan::kTransparent));
  client.shutdown_write();
  guest.shutdown_write();
  ASSERT_TRUE(rig.run_until([&] { return rig.records().size() == 1; }));
  EXPECT_EQ(rig.records()[0].source, SourcePlan::kTransparent);
}

TEST_P(RelaySourceSimulated, APortThatIsTakenIsReplaced) {
  for (const int error : {EADDRINUSE, EADDRNOTAVAIL}) {
    Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
    rig.sim()->fail(SimIo::Call::kBindTransparent, 1, error);
    EXPECT_EQ(rig.open().guest.socket().remote().port(), 0) << "the simulator's word for any";
    EXPECT_TRUE(counts_one(rig, SourcePlan::kPortInUse));
  }
}

TEST_P(RelaySourceSimulated, APortThatIsTakenIsFoundOutByConnectToo) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.sim()->fail(SimIo::Call::kConnect, 1, EADDRNOTAVAIL, 2);
  rig.open();
  EXPECT_TRUE(counts_one(rig, SourcePlan::kPortInUse));
}

/// To the guest the two would be one connection. Another client may have the same port.
TEST_P(RelaySourceSimulated, APortThatTheClientUsesByARouteOfItsOwnIsReplaced) {
  constexpr int kTap = 7;
  std::vector<RoutedSet> table(std::size_t{kRoutedBuckets} * kRoutedSets);
  const RoutedConnections routed(table);
  Rig rig(GetParam(),
          {.connections = {.routed = &routed}, .device = kTap, .source = SourcePlan::kTransparent});
  const IpAddress client = parse_address("203.0.113.7").value();
  const BpfAddress address = to_bpf_address(client);
  for (std::uint16_t port = 30000; port < 30032; ++port) {  // the first ones of such clients
    const RoutedKey key =
        routed_key(0, kTap, &address, htons(port), htons(rig.forward().guest().endpoint.port()));
    auto* const free = std::ranges::find(table[key.index].entry, 0U);
    ASSERT_NE(free, std::end(table[key.index].entry));
    *free = std::uint64_t{key.tag} << 32 | ((1U << kRoutedStateShift) - 1);
  }
  rig.connect(client);
  rig.accept();
  EXPECT_TRUE(counts_one(rig, SourcePlan::kPortInUse));
  rig.connect(parse_address("203.0.113.8").value());
  rig.accept();
  EXPECT_TRUE(counts_one(rig, SourcePlan::kTransparent));
}

TEST_P(RelaySourceSimulated, APortThatIsBoundAtAnotherAddressIsKept) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.sim()->set_local_ports({{1, 65535}});
  rig.sim()->fail(SimIo::Call::kConnect, 1, EADDRNOTAVAIL);
  rig.open();
  EXPECT_TRUE(counts_one(rig, SourcePlan::kTransparent));
}

TEST_P(RelaySourceSimulated, APrivilegedPortIsReplacedAndTheAddressKept) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.sim()->fail(SimIo::Call::kBindTransparent, 1, EACCES);
  auto [client, guest] = rig.open();
  EXPECT_EQ(guest.socket().remote().port(), 0);
  EXPECT_EQ(guest.socket().remote().address(), rig.connections().at(0).client.address());
  EXPECT_TRUE(counts_one(rig, SourcePlan::kPortPrivileged));
}

/// A guest's packet filter may let the node in, and not this client.
TEST_P(RelaySourceSimulated, NothingThatTheKernelSaysMakesAClientLookLikeTheNode) {
  for (const int error : {EPERM, EINVAL, EADDRNOTAVAIL, EADDRINUSE, EACCES, ENOPROTOOPT}) {
    Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
    rig.sim()->fail(SimIo::Call::kBindTransparent, 1, error, 100);
    Peer& client = rig.connect();
    ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); })) << error;
    EXPECT_EQ(rig.try_accept(), nullptr) << error;
    EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kConnectError), 1u);
  }
}

TEST_P(RelaySourceSimulated, AClientThatHasUsedUpItsPortsIsResetAndNotSeenAsTheNode) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.sim()->set_local_ports({{32768, 60999}});
  rig.sim()->fail(SimIo::Call::kConnect, 1, EADDRNOTAVAIL, 100);
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }));
  EXPECT_EQ(rig.try_accept(), nullptr);
  EXPECT_EQ(rig.stats().connect_errors[static_cast<std::size_t>(ConnectError::kSourcePorts)], 1u);
  EXPECT_EQ(rig.records().back().error, EADDRNOTAVAIL);
}

TEST_P(RelaySourceSimulated, AGuestThatAnswersTheNodeAndNotItsClientsIsSilentToThem) {
  Rig rig(GetParam(), {.connections = {.config = {.connect_timeout = 2000ms}},
                       .guest = GuestAnswer::kServesNode,
                       .source = SourcePlan::kTransparent});
  for (int i = 0; i < 2; ++i) {
    const Nanos start = rig.world().now();
    Peer& client = rig.connect();
    ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }));
    EXPECT_NEAR(static_cast<double>((rig.world().now() - start) / 1ms), 2000, 20);
    EXPECT_EQ(rig.try_accept(), nullptr) << "nobody came from the node's address";
  }
  EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kConnectTimeout), 2u);
}

TEST_P(RelaySourceSimulated, WithoutAReturnPathAForwardThatIsTransparentByNameTurnsClientsAway) {
  Rig rig(GetParam(), {.source = {SourcePlan::kNoReturnPath, true}});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }));
  EXPECT_EQ(rig.try_accept(), nullptr);
  EXPECT_EQ(rig.stats().rejected[static_cast<std::size_t>(RejectReason::kSourceAddress)], 1u);
}

TEST_P(RelaySourceSimulated, WithoutAReturnPathAnotherForwardsClientsAreSeenAsTheNode) {
  Rig rig(GetParam(), {.source = SourcePlan::kNoReturnPath});
  rig.open();
  EXPECT_TRUE(counts_one(rig, SourcePlan::kNoReturnPath));
}

TEST_P(RelaySourceSimulated, AFewPortsAreTriedForAConnectionFromTheNodesAddress) {
  Rig rig(GetParam());
  rig.sim()->set_local_ports({{32768, 60999}});
  rig.sim()->fail(SimIo::Call::kConnect, 1, EADDRNOTAVAIL, UpstreamOpener::kTries - 1);
  rig.open();
  rig.sim()->fail(SimIo::Call::kConnect, 1, EADDRNOTAVAIL, UpstreamOpener::kTries);
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }));
  EXPECT_EQ(rig.stats().connect_errors[static_cast<std::size_t>(ConnectError::kSourcePorts)], 1u);
}

TEST_P(RelaySourceSimulated, AGuestThatIsSilentToEverybodyIsATimeout) {
  Rig rig(GetParam(), {.connections = {.config = {.connect_timeout = 2000ms}},
                       .guest = GuestAnswer::kSilent,
                       .source = SourcePlan::kTransparent});
  const Nanos start = rig.world().now();
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }));
  EXPECT_NEAR(static_cast<double>((rig.world().now() - start) / 1ms), 2000, 20);
  EXPECT_EQ(rig.closed(CloseSide::kGuest, CloseHow::kConnectTimeout), 1u);
}

}  // namespace
}  // namespace portway::test
