// A guest with an address of each family behaves towards its clients as with one DNAT rule per family.

#include <cerrno>

#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class RelayDualStack : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayDualStack, testing::ValuesIn(kBackends), backend_name);

class RelayDualStackSimulated : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayDualStackSimulated, testing::Values(Backend::kSim), backend_name);

constexpr bool kFamilies[] = {false, true};  // IPv6?

Peer& connect(Rig& rig, bool v6) {
  return v6 ? rig.connect_v6() : rig.connect();
}
Peer* try_accept(Rig& rig, bool v6) {
  return v6 ? rig.try_accept_v6() : rig.try_accept();
}
void set_serving(Rig& rig, bool v6, bool serving) {
  v6 ? rig.set_serving_v6(serving) : rig.set_serving(serving);
}

Rig::Pair open(Rig& rig, bool v6) {
  Peer& client = connect(rig, v6);
  Peer* guest = nullptr;
  if (!rig.run_until([&] { return (guest = try_accept(rig, v6)) != nullptr; }))
    throw std::runtime_error("no connection came to the guest");
  return {client, *guest};
}

bool is_served(Rig& rig, bool v6) {
  Peer& client = connect(rig, v6);
  Peer* guest = nullptr;
  EXPECT_TRUE(rig.run_until([&] { return client.ended() || (guest = try_accept(rig, v6)) != nullptr; }));
  const bool served = guest != nullptr;
  if (served) rig.drop(*guest);
  rig.drop(client);
  return served;
}

bool is_refused(Rig& rig, bool v6) {
  Peer& client = connect(rig, v6);
  EXPECT_TRUE(rig.run_until([&] { return client.ended(); }));
  const bool refused = client.error() == ECONNREFUSED;
  rig.drop(client);
  return refused;
}

/// The first client is accepted and reset; then the guest is probed, and the next clients are refused.
void have_one_refused(Rig& rig, bool v6) {
  const auto before = rig.counters().refusal_gates.get();
  Peer& client = connect(rig, v6);
  ASSERT_TRUE(
      rig.run_until([&] { return client.was_reset() && rig.counters().refusal_gates.get() == before + 1; }));
  rig.drop(client);
}

bool count_is(Rig& rig, SourcePlan plan, std::uint64_t count) {
  return rig.run_until([&] { return rig.counters().sources[static_cast<std::size_t>(plan)].get() == count; },
                       1s);
}

TEST_P(RelayDualStack, AClientIsLedToTheGuestsAddressOfItsFamily) {
  Rig rig(GetParam(), {.dual_stack = true});
  for (const bool v6 : kFamilies) {
    auto [client, guest] = open(rig, v6);
    EXPECT_EQ(try_accept(rig, !v6), nullptr);
    client.send("hello");
    ASSERT_TRUE(rig.run_until([&guest = guest] { return guest.received() == "hello"; }));
    guest.shutdown_write();
    client.shutdown_write();
    ASSERT_TRUE(rig.run_until([&] { return rig.records().size() == (v6 ? 2U : 1U); }));
    EXPECT_EQ(rig.records().back().guest.address().is_v6(), v6);
  }
}

TEST_P(RelayDualStack, APortThatIsClosedAtOneAddressShutsOutTheClientsOfThatFamilyOnly) {
  for (const bool closed : kFamilies) {
    Rig rig(GetParam(), {.dual_stack = true});
    set_serving(rig, closed, false);
    have_one_refused(rig, closed);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(is_refused(rig, closed));
      EXPECT_TRUE(is_served(rig, !closed));
    }
    EXPECT_EQ(rig.stats().connections_accepted, 4u) << "the node's kernel refused the others";
    set_serving(rig, closed, true);
    ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
    EXPECT_TRUE(is_served(rig, closed));
    EXPECT_TRUE(is_served(rig, !closed));
  }
}

TEST_P(RelayDualStack, EachAddressIsAskedForItself) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses, .dual_stack = true});
  for (const bool v6 : kFamilies) have_one_refused(rig, v6);
  for (const bool v6 : kFamilies) EXPECT_TRUE(is_refused(rig, v6));
  rig.set_serving(true);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 1; }));
  EXPECT_TRUE(is_served(rig, false));
  EXPECT_TRUE(is_refused(rig, true));
  rig.set_serving_v6(true);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
  EXPECT_TRUE(is_served(rig, true));
  EXPECT_EQ(rig.counters().refusal_gates_total.get(), 2u);
}

TEST_P(RelayDualStack, AForwardThatIsDeletedWhileBothRefuseLeavesNothing) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses, .dual_stack = true});
  for (const bool v6 : kFamilies) have_one_refused(rig, v6);
  rig.close_forward(ClosePolicy::kKeep);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
  for (const bool v6 : kFamilies) EXPECT_TRUE(is_refused(rig, v6));
}

TEST_P(RelayDualStackSimulated, ClientsOfBothFamiliesKeepTheirAddressesAndPorts) {
  Rig rig(GetParam(), {.dual_stack = true, .source = SourcePlan::kTransparent});
  for (const bool v6 : kFamilies) {
    auto [client, guest] = open(rig, v6);
    EXPECT_EQ(guest.socket().remote(), rig.connections().at(0).client);
    EXPECT_EQ(guest.socket().remote().address().is_v6(), v6);
    EXPECT_TRUE(count_is(rig, SourcePlan::kTransparent, v6 ? 2 : 1));
    client.reset();
    ASSERT_TRUE(rig.run_until([&] { return rig.counters().connections_active.get() == 0; }));
  }
}

TEST_P(RelayDualStackSimulated, WithOneAddressTheOtherFamilyIsServedFromTheNodesAsBefore) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  Peer& client = rig.connect(boost::asio::ip::make_address("2001:db8::7"));
  rig.accept();
  EXPECT_FALSE(client.was_reset());
  EXPECT_TRUE(count_is(rig, SourcePlan::kFamily, 1));
}

TEST_P(RelayDualStackSimulated, WhereNothingLeadsOneAddressesAnswersBackTheOtherIsAsItWas) {
  Rig rig(GetParam(),
          {.dual_stack = true, .source = {SourcePlan::kTransparent, SourcePlan::kNoReturnPath, false}});
  EXPECT_TRUE(is_served(rig, false));
  EXPECT_TRUE(count_is(rig, SourcePlan::kTransparent, 1));
  EXPECT_TRUE(is_served(rig, true));
  EXPECT_TRUE(count_is(rig, SourcePlan::kNoReturnPath, 1));
  // All IPv6 clients look alike to the guest, and no IPv4 client looks like them.
  rig.set_serving_v6(false);
  have_one_refused(rig, true);
  EXPECT_EQ(rig.refusals().size(), 0u);
  EXPECT_TRUE(is_refused(rig, true));
  EXPECT_TRUE(is_served(rig, false));
}

TEST_P(RelayDualStackSimulated, AndWhereItWasAskedForByNameOnlyItsClientsAreTurnedAway) {
  Rig rig(GetParam(),
          {.dual_stack = true, .source = {SourcePlan::kTransparent, SourcePlan::kNoReturnPath, true}});
  EXPECT_TRUE(is_served(rig, false));
  EXPECT_FALSE(is_served(rig, true));
  EXPECT_EQ(rig.stats().rejected[static_cast<std::size_t>(RejectReason::kSourceAddress)], 1u);
}

}  // namespace
}  // namespace portway::test
