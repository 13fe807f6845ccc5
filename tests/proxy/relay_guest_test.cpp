// A guest whose address changes: its new connections go to the new one, and no connection stays at the old
// one.

#include <cerrno>

#include "proxy/device_requests.h"
#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class RelayGuest : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayGuest, testing::ValuesIn(kBackends), backend_name);

class RelayGuestSimulated : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayGuestSimulated, testing::Values(Backend::kSim), backend_name);

constexpr CloseCause kMoved{CloseSide::kNode, CloseHow::kAddressChanged};

TEST_P(RelayGuest, ConnectionsToTheOldAddressAreResetAndNewOnesGoToTheNewOne) {
  Rig rig(GetParam());
  const Endpoint old = rig.forward().guest().endpoint;
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send("hello");
  ASSERT_TRUE(rig.run_until([&guest = guest] { return guest.received() == "hello"; }));
  Peer& second = rig.open().client;
  rig.move_guest();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && guest.was_reset() && second.was_reset(); }));
  ASSERT_TRUE(rig.run_until([&] { return rig.records().size() == 2; }));
  for (const CloseRecord& record : rig.records()) {
    EXPECT_EQ(record.cause, kMoved);
    EXPECT_EQ(record.guest, old);
  }
  EXPECT_EQ(rig.closed(CloseSide::kNode, CloseHow::kAddressChanged), 2U);
  Peer& later = rig.connect();
  Peer& moved = rig.accept();
  later.send("hello");
  ASSERT_TRUE(rig.run_until([&moved = moved] { return moved.received() == "hello"; }));
  rig.settle();
  EXPECT_FALSE(later.ended());
}

// Its connect timeout would be the only thing to end it.
TEST_P(RelayGuest, AConnectionThatIsStillUnderWayToTheOldAddressIsResetToo) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kSilent});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return rig.stats().connections_active == 1; }));
  rig.move_guest();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset(); }, 2s));
  ASSERT_TRUE(rig.run_until([&] { return rig.records().size() == 1; }));
  EXPECT_EQ(rig.records().front().cause, kMoved);
  EXPECT_EQ(rig.records().front().connected_at, Nanos::zero());
}

TEST_P(RelayGuest, ConnectionsToAFormerPortGoOn) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  const Endpoint old = rig.forward().guest().endpoint;
  rig.worker().post(
      Worker::GuestChanged{rig.forward().shared_from_this(),
                           rig.forward().replace_guest(
                               {.endpoint = {old.address(), static_cast<std::uint16_t>(old.port() + 1)}})});
  client.send("still here");
  ASSERT_TRUE(rig.run_until([&guest = guest] { return guest.received() == "still here"; }));
  rig.settle();
  EXPECT_FALSE(client.ended());
}

TEST_P(RelayGuest, AnAddressThatComesBackKeepsItsConnections) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  const GuestEndpoints old = rig.forward().guest();
  rig.move_guest();
  // The worker has heard of neither change yet.
  rig.worker().post(Worker::GuestChanged{rig.forward().shared_from_this(), rig.forward().replace_guest(old)});
  client.send("still here");
  ASSERT_TRUE(rig.run_until([&guest = guest] { return guest.received() == "still here"; }));
  rig.settle();
  EXPECT_FALSE(client.ended());
}

// A client that waits for its session's device has been connected to nothing yet.
TEST_P(RelayGuest, AClientThatWaitsForTheTapGoesToTheNewAddress) {
  DeviceRequests requests;
  Rig rig(GetParam(), {.connections = {.device_requests = &requests}, .device = kNoDevice});
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return !requests.take().empty(); }));
  rig.move_guest();
  rig.turn();
  rig.forward().session->device.store(kAnyDevice);
  client.send("hello");
  Peer& guest = rig.accept();
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "hello"; }));
}

TEST_P(RelayGuest, OnlyTheFamilyWhoseAddressChangesIsReset) {
  Rig rig(GetParam(), {.dual_stack = true});
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  Peer& client_v6 = rig.connect_v6();
  ASSERT_TRUE(rig.run_until([&] { return rig.try_accept_v6() != nullptr; }));
  rig.drop_guest_v6();
  ASSERT_TRUE(rig.run_until([&] { return client_v6.was_reset(); }));
  Peer& third_v6 = rig.connect_v6();
  rig.accept();  // at the address that is left
  client.send("still here");
  ASSERT_TRUE(rig.run_until([&guest = guest] { return guest.received() == "still here"; }));
  rig.move_guest();
  ASSERT_TRUE(
      rig.run_until([&client = client, &third_v6] { return client.was_reset() && third_v6.was_reset(); }));
}

TEST_P(RelayGuest, AClosedForwardsConnectionsAreResetAsWell) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  rig.accept();
  rig.close_forward(ClosePolicy::kKeep);
  rig.settle();
  ASSERT_FALSE(client.ended());
  rig.move_guest();
  ASSERT_TRUE(rig.run_until([&client = client] { return client.was_reset(); }));
  ASSERT_TRUE(rig.run_until([&] { return rig.records().size() == 1; }));
  EXPECT_EQ(rig.records().front().cause, kMoved);
}

TEST_P(RelayGuest, ItsClientsAreLetInAgainIfTheOldAddressRefusedThem) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses, .dual_stack = true});
  for (const bool v6 : {false, true}) {
    Peer& client = v6 ? rig.connect_v6() : rig.connect();
    ASSERT_TRUE(rig.run_until(
        [&] { return client.was_reset() && rig.counters().refusal_gates.get() == (v6 ? 2U : 1U); }));
    rig.drop(client);
  }
  const std::uint64_t probes = rig.counters().refusal_probes.get();
  rig.move_guest();
  rig.drop_guest_v6();  // the listeners that led there lead to the other address now
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }, 50ms));
  EXPECT_LE(rig.counters().refusal_probes.get(), probes + 2) << "a probe may have been under way";
  EXPECT_FALSE(rig.forward().refusing[0].load());
  EXPECT_FALSE(rig.forward().refusing[1].load());
  rig.open();
  Peer& client_v6 = rig.connect_v6();
  client_v6.send("hello");
  Peer& guest = rig.accept();
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "hello"; }));
}

// With clients' own addresses one client is refused, and the others are not.
TEST_P(RelayGuestSimulated, AClientThatTheOldAddressRefusedIsLetInAgain) {
  Rig rig(GetParam(), {.device = 7, .source = SourcePlan::kTransparent});
  const auto client_address = boost::asio::ip::make_address("198.18.0.7");
  rig.set_serving(client_address, false);
  Peer& client = rig.connect(client_address);
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && rig.counters().refusal_gates.get() == 1; }));
  rig.move_guest();
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }, 50ms));
  EXPECT_TRUE(rig.forward().refused_clients.empty());
  Peer& again = rig.connect(client_address);
  again.send("hello");
  Peer& guest = rig.accept();
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "hello"; }));
}

}  // namespace
}  // namespace portway::test
