// A guest's closed port: clients are refused, as under DNAT, until it is open.

#include <linux/capability.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "proxy/refusal_gates.h"
#include "tests/proxy/relay_suite.h"
#include "tests/support/capabilities.h"

namespace portway::test {
namespace {

class RelayRefusal : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayRefusal, testing::ValuesIn(kBackends), backend_name);

class RelayRefusalInTheKernel : public RelayRefusal {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayRefusalInTheKernel, testing::Values(Backend::kUring, Backend::kEpoll),
                         backend_name);

class RelayRefusalSimulated : public RelayRefusal {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayRefusalSimulated, testing::Values(Backend::kSim), backend_name);

/// What happens to a client if nobody listens.
bool is_refused(Rig& rig) {
  Peer& client = rig.connect();
  EXPECT_TRUE(rig.run_until([&] { return client.ended(); }));
  const bool refused = client.error() == ECONNREFUSED;
  rig.drop(client);
  return refused;
}

/// The first client is accepted and reset; the worker knows why and has probed.
void have_one_refused(Rig& rig, const std::optional<IpAddress>& from = std::nullopt) {
  Peer& client = rig.connect(from);
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && rig.counters().refusal_gates.get() == 1; }))
      << "reset: " << client.was_reset() << ", error: " << client.error()
      << ", probes: " << rig.counters().refusal_probes.get();
  rig.drop(client);
}

bool is_served(Rig& rig, const std::optional<IpAddress>& from = std::nullopt) {
  Peer& client = rig.connect(from);
  Peer* guest = nullptr;
  EXPECT_TRUE(rig.run_until([&] { return client.ended() || (guest = rig.try_accept()) != nullptr; }));
  const bool served = guest != nullptr;
  if (served) rig.drop(*guest);
  rig.drop(client);
  return served;
}

TEST_P(RelayRefusal, ClientsAfterTheFirstAreRefused) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(is_refused(rig));
  EXPECT_EQ(rig.stats().connections_accepted, 1u) << "the node's kernel refused them";
}

TEST_P(RelayRefusal, TheyGetThroughWithin100MillisecondsOfThePortBeingOpen) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  rig.pass_time(400ms);  // intervals between probes have grown
  rig.set_serving(true);
  const Nanos opened = rig.world().now();
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
  if (rig.sim() != nullptr) {
    EXPECT_LE(rig.world().now() - opened, 100ms) << "on the simulator's own clock";
  }
  // A service that accepts once gets the client, not the probe.
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  client.send("hello");
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "hello"; }));
}

TEST_P(RelayRefusal, ItCanCloseAndOpenAgainAndAgain) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  for (int i = 1; i <= 3; ++i) {
    have_one_refused(rig);
    EXPECT_TRUE(is_refused(rig));
    rig.set_serving(true);
    ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
    rig.drop(rig.open().client);
    rig.set_serving(false);
    rig.settle();
  }
  EXPECT_EQ(rig.counters().refusal_gates_total.get(), 3u);
}

TEST_P(RelayRefusal, EstablishedConnectionsGoOn) {
  Rig rig(GetParam());
  Peer& client = rig.connect();
  Peer& guest = rig.accept();
  rig.set_serving(false);
  have_one_refused(rig);
  EXPECT_TRUE(is_refused(rig));
  client.send("still");
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "still"; }));
}

TEST_P(RelayRefusal, SwitchedOffEveryClientIsAcceptedAndReset) {
  Rig rig(GetParam(), {.connections = {.config = {.refused_probe = 0ms}}, .guest = GuestAnswer::kRefuses});
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(is_refused(rig));
  EXPECT_EQ(rig.stats().connections_accepted, 3u);
  EXPECT_EQ(rig.counters().refusal_probes.get(), 0u);
}

TEST_P(RelayRefusal, AForwardThatIsDeletedMeanwhileIsForgotten) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  rig.close_forward(ClosePolicy::kKeep);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
  EXPECT_TRUE(is_refused(rig));
}

TEST_P(RelayRefusal, AForwardThatIsOverNeverListensAgain) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  // The control thread has closed it, but the worker does not know yet.
  rig.forward().advance(ForwardPhase::kKept, CloseHow::kForwardDeleted);
  rig.set_serving(true);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
  EXPECT_TRUE(is_refused(rig));
}

TEST_P(RelayRefusal, TheWorkerStopsMeanwhile) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  rig.stop();
}

TEST_P(RelayRefusalInTheKernel, WithoutRawSocketsThePortIsProbedAllTheSame) {
  // On a thread of its own, whose capabilities go with it.
  std::thread([&] {
    drop_capabilities({CAP_NET_RAW});
    Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
    have_one_refused(rig);
    rig.pass_time(100ms);  // a few probes, which are refused
    EXPECT_TRUE(is_refused(rig));
    rig.set_serving(true);
    ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
    EXPECT_TRUE(is_served(rig));
  }).join();
}

TEST_P(RelayRefusalInTheKernel, AnotherProgramCannotTakeThePort) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  Endpoint entry;
  auto size = static_cast<socklen_t>(entry.capacity());
  ASSERT_EQ(::getsockname(rig.listener(), entry.data(), &size), 0);
  have_one_refused(rig);
  Fd other(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(other.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const bool listens = ::bind(other.get(), entry.data(), static_cast<socklen_t>(entry.size())) == 0 &&
                       ::listen(other.get(), 1) == 0;
  EXPECT_FALSE(listens);
}

TEST_P(RelayRefusalSimulated, APortThatCannotBeListenedOnAtOnceIsTriedAgain) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  rig.sim()->fail(SimIo::Call::kListenAgain, 1, EADDRINUSE, 2);
  rig.set_serving(true);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
  rig.drop(rig.open().client);
}

TEST_P(RelayRefusalSimulated, ARefusalThatPassesShutsNothing) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  Peer& client = rig.connect();
  // The guest's answer is on its way when the service comes up.
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().connections_active.get() == 1; }));
  rig.pass_time(60us);
  rig.set_serving(true);
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && rig.counters().refusal_probes.get() == 1; }));
  EXPECT_TRUE(is_served(rig));
  EXPECT_EQ(rig.counters().refusal_gates_total.get(), 0u);
}

TEST_P(RelayRefusalSimulated, NobodyKnowsWhetherAnybodyAsksSoRefusingEndsAfterAMinute) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  rig.pass_time(61s);
  EXPECT_EQ(rig.counters().refusal_gates.get(), 0u);
  EXPECT_LE(rig.counters().refusal_probes.get(), 120u) << "and probing has backed off";
  const std::uint64_t probes = rig.counters().refusal_probes.get();
  rig.pass_time(60s);
  EXPECT_EQ(rig.counters().refusal_probes.get(), probes) << "nobody asks, so nobody is asked";
}

// --- Guests that see their clients' addresses.

const IpAddress kStranger = boost::asio::ip::make_address("198.18.10.66");
const IpAddress kOffice = boost::asio::ip::make_address("198.18.10.7");

bool is_refused(Rig& rig, const IpAddress& from) {
  Peer& client = rig.connect(from);
  EXPECT_TRUE(rig.run_until([&] { return client.ended(); }));
  const bool refused = client.error() == ECONNREFUSED;
  rig.drop(client);
  return refused;
}

TEST_P(RelayRefusalSimulated, WhomTheGuestRefusesIsRefusedAndNobodyElse) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.set_serving(kStranger, false);
  have_one_refused(rig, kStranger);
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(is_refused(rig, kStranger)) << i;
    EXPECT_TRUE(is_served(rig, kOffice)) << i;
  }
  EXPECT_EQ(rig.stats().connections_accepted, 51u) << "the stranger's SYNs are answered by the node's kernel";
}

TEST_P(RelayRefusalSimulated, TheNodesOwnStandingWithTheGuestDoesNotMatter) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses, .source = SourcePlan::kTransparent});
  rig.set_serving(kOffice, true);  // and nobody else
  have_one_refused(rig, kStranger);
  EXPECT_TRUE(is_served(rig, kOffice));
  EXPECT_TRUE(is_refused(rig, kStranger));
  rig.set_serving(kStranger, true);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }, 200ms));
  EXPECT_TRUE(is_served(rig, kStranger));
  rig.set_serving(kStranger, false);
}

TEST_P(RelayRefusalSimulated, AClosedPortRefusesEachClientThatAsksAgain) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses, .source = SourcePlan::kTransparent});
  for (const IpAddress& client : {kOffice, kStranger}) {
    EXPECT_FALSE(is_refused(rig, client)) << "the first time it is accepted and reset";
    EXPECT_TRUE(is_refused(rig, client));
  }
  rig.pass_time(400ms);
  rig.set_serving(true);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }, 500ms));
  EXPECT_EQ(rig.try_accept(), nullptr) << "no probe has become a connection";
  EXPECT_TRUE(is_served(rig, kOffice));
  EXPECT_TRUE(is_served(rig, kStranger));
}

TEST_P(RelayRefusalSimulated, AClientThatDoesNotComeBackIsForgottenAfterAFewProbes) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.set_serving(kStranger, false);
  have_one_refused(rig, kStranger);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }, 5s));
  EXPECT_EQ(rig.refusals().size(), 0u);
  EXPECT_LE(rig.counters().refusal_probes.get(), 20u);
}

TEST_P(RelayRefusalSimulated, AClientThatComesAgainAndAgainIsProbedForLessAndLess) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.set_serving(kStranger, false);
  have_one_refused(rig, kStranger);
  const Nanos end = rig.world().now() + 60s;
  int refused = 0;
  for (; rig.world().now() < end; ++refused) {
    ASSERT_TRUE(is_refused(rig, kStranger));
    rig.pass_time(20ms);
  }
  EXPECT_GE(refused, 1000);
  EXPECT_LE(rig.counters().refusal_probes.get(), 110u) << "one a second in the end";
}

TEST_P(RelayRefusalSimulated, AClientWhoseOneConnectionIsRefusedIsNotRefusedItself) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.set_serving(kStranger, false);
  Peer& one = rig.connect(kStranger);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_probes.get() == 1 || one.ended(); }));
  rig.set_serving(kStranger, true);
  ASSERT_TRUE(rig.run_until([&] { return one.ended(); }));
  EXPECT_TRUE(is_served(rig, kStranger));
  EXPECT_EQ(rig.counters().refusal_gates_total.get(), 0u);
}

TEST_P(RelayRefusalSimulated, WhatIsInDoubtIsLetThrough) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.set_serving(kStranger, false);
  rig.refusals().room = 0;
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(is_refused(rig, kStranger)) << "accepted and reset";
  EXPECT_TRUE(is_served(rig, kOffice));
}

TEST_P(RelayRefusalSimulated, AForwardsClientsHaveTheirShareOfTheGatesAndNoMore) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses, .source = SourcePlan::kTransparent});
  for (std::uint32_t i = 0; i < 30; ++i) {
    EXPECT_FALSE(is_refused(rig, boost::asio::ip::address_v4(0xc6120b00 + i)));
  }
  EXPECT_TRUE(rig.run_until(
      [&] { return rig.counters().refusal_gates.get() == std::int64_t{RefusalGates::kGatesPerForward}; }));
  EXPECT_EQ(rig.refusals().size(), RefusalGates::kGatesPerForward) << "whose gate has gone is let through";
}

TEST_P(RelayRefusalSimulated, WithoutADescriptorForTheProbeNothingIsShut) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  rig.sim()->set_descriptors_max(3);  // the listener's and the first connection's
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().connections_active.get() == 1; }));
  rig.sim()->set_descriptors_max(1);
  ASSERT_TRUE(rig.run_until([&] { return client.ended() && rig.counters().refusal_probes.get() == 1; }));
  rig.drop(client);
  rig.settle();
  rig.sim()->set_descriptors_max(SIZE_MAX);
  rig.set_serving(true);
  EXPECT_TRUE(is_served(rig));
  EXPECT_EQ(rig.counters().refusal_gates_total.get(), 0u);
}

TEST_P(RelayRefusalSimulated, WithoutADescriptorForTheProbeWhatIsShutStaysShut) {
  Rig rig(GetParam(), {.guest = GuestAnswer::kRefuses});
  have_one_refused(rig);
  rig.sim()->set_descriptors_max(1);
  rig.pass_time(200ms);
  EXPECT_TRUE(is_refused(rig));
  rig.sim()->set_descriptors_max(SIZE_MAX);
  rig.set_serving(true);
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
}

/// As with a guest that limits the rate of connections: the probe gets through, and the client does not.
TEST_P(RelayRefusalSimulated, ClientsWhoWereLetInInVainAreLetInForLongerEachTime) {
  Rig rig(GetParam(), {.source = SourcePlan::kTransparent});
  rig.set_serving(kStranger, false);
  have_one_refused(rig, kStranger);
  const auto let_in = [&] {
    rig.set_serving(kStranger, true);
    ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
    rig.set_serving(kStranger, false);
  };
  const auto stays_open = [&] {
    const std::uint64_t probes = rig.counters().refusal_probes.get();
    const Nanos began = rig.world().now();
    while (rig.counters().refusal_gates.get() == 0) {
      if (rig.world().now() - began < 90ms) {
        EXPECT_EQ(rig.counters().refusal_probes.get(), probes);
      }
      if (!is_refused(rig, kStranger)) rig.pass_time(5ms);
    }
    return rig.world().now() - began;
  };
  for (const Nanos expected : {100ms, 200ms, 400ms, 800ms}) {
    let_in();
    EXPECT_GE(stays_open(), expected);
  }
  // A client served in between halves the count, and after some time everything is forgotten.
  let_in();
  rig.set_serving(kStranger, true);
  EXPECT_TRUE(is_served(rig, kStranger));
  rig.set_serving(kStranger, false);
  EXPECT_LT(stays_open(), 300ms);
  let_in();
  rig.pass_time(4s);
  rig.settle();
  have_one_refused(rig, kStranger);
}

/// Ten thousand forwards of guests that refuse, on the simulator's clock.
TEST(RefusalGates, TenThousandForwardsAreNoStormOfProbes) {
  SimNetwork network;
  SimIo io(network);
  WorkerCounters counters;
  const Endpoint service(boost::asio::ip::make_address("198.19.0.2"), 3000);  // where nobody listens
  std::size_t opened = 0;
  std::vector<NotedRefusal> notes(RefusalGates::kGatesMax);
  RefusalGates gates(io, 1000ms, nullptr, counters, 0,
                     {.shut = [](const ServedForwardPtr&, bool) {},
                      .open = [&](const ServedForwardPtr&, bool) { return ++opened > 0; },
                      .source_ports = [] { return PortRange{}; }},
                     notes);
  std::vector<ServedForwardPtr> forwards;
  for (int i = 0; i < 10'000; ++i) {
    forwards.push_back(
        std::make_shared<ServedForward>(ForwardRoute{.id = make_uuid(), .guest = {.endpoint = service}}, 1));
  }
  for (const ServedForwardPtr& forward : forwards)
    gates.add({.forward = forward, .client = {}, .guest = service, .local = {}, .concerns_all = true});
  EXPECT_EQ(counters.refusal_gates_skipped.get(), forwards.size() - RefusalGates::kGatesMax)
      << "the others accept, and reset";
  const auto probes_until = [&](Nanos end) {
    const std::uint64_t before = counters.refusal_probes.get();
    while (io.now() < end) {
      for (const Completion& completion : io.wait(gates.until_next()))
        gates.on_poll(completion.token, completion);
      gates.run();
      EXPECT_LE(io.open_sockets(), RefusalGates::kGatesMax);
    }
    return counters.refusal_probes.get() - before;
  };
  const Nanos began = io.now();
  EXPECT_LE(probes_until(began + 10s), 64 * 50u);
  EXPECT_EQ(counters.refusal_gates.get(), RefusalGates::kGatesMax);
  EXPECT_LE(probes_until(began + 50s), 64 * 45u) << "one a second each";
  gates.forget_all();
  while (!gates.empty()) {
    for (const Completion& completion : io.wait(1ms)) gates.on_poll(completion.token, completion);
  }
}

}  // namespace
}  // namespace portway::test
