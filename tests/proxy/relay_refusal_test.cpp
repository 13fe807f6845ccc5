// A guest's closed port: clients are refused, as under DNAT, until it is open.

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <vector>

#include "config/fd.h"
#include "proxy/refusal_gates.h"
#include "tests/proxy/relay_suite.h"

namespace portway::test {
namespace {

class RelayRefusal : public RelaySuite {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayRefusal, testing::ValuesIn(kBackends), backend_name);

class RelayRefusalInTheKernel : public RelayRefusal {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayRefusalInTheKernel, testing::Values(Backend::kUring, Backend::kEpoll),
                         backend_name);

class RelayRefusalSimulated : public RelayRefusal {};
INSTANTIATE_TEST_SUITE_P(Backends, RelayRefusalSimulated, testing::Values(Backend::kSim), backend_name);

/// A client's fate where nobody listens for it.
bool is_refused(Rig& rig) {
  Peer& client = rig.connect();
  EXPECT_TRUE(rig.run_until([&] { return client.ended(); }));
  const bool refused = client.error() == ECONNREFUSED;
  rig.drop(client);
  return refused;
}

/// The first client is accepted and reset; the worker has heard why.
void have_one_refused(Rig& rig) {
  Peer& client = rig.connect();
  ASSERT_TRUE(rig.run_until([&] { return client.was_reset() && rig.counters().refusal_gates.get() == 1; }));
  rig.drop(client);
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
  // Long enough for the intervals between probes to grow to their longest.
  const Nanos grown = rig.world().now() + 400ms;
  rig.run_until([&] { return rig.world().now() >= grown; });
  rig.set_serving(true);
  const Nanos opened = rig.world().now();
  ASSERT_TRUE(rig.run_until([&] { return rig.counters().refusal_gates.get() == 0; }));
  if (rig.sim() != nullptr) {
    EXPECT_LE(rig.world().now() - opened, 100ms) << "on the simulator's own clock";
  }
  Peer& probe = rig.accept();  // the connection that found it open
  EXPECT_TRUE(rig.run_until([&] { return probe.eof(); }));
  rig.drop(probe);
  auto [client, guest] = rig.open();
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
    rig.drop(rig.accept());
    rig.drop(rig.open().client);
    rig.set_serving(false);
    rig.settle();
  }
  EXPECT_EQ(rig.counters().refusal_gates_total.get(), 3u);
}

TEST_P(RelayRefusal, EstablishedConnectionsGoOn) {
  Rig rig(GetParam());
  auto [client, guest] = rig.open();
  rig.set_serving(false);
  have_one_refused(rig);
  EXPECT_TRUE(is_refused(rig));
  client.send("still");
  EXPECT_TRUE(rig.run_until([&] { return guest.received() == "still"; }));
}

TEST_P(RelayRefusal, SwitchedOffEveryClientIsAcceptedAndReset) {
  Rig rig(GetParam(), {.connections = {.refused_probe = 0ms}, .guest = GuestAnswer::kRefuses});
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
  // The control thread has closed it, and the worker has not heard of it yet.
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
  for (int i = 0; i < 3; ++i) rig.drop(rig.accept());  // a probe each
  rig.drop(rig.open().client);
}

/// Ten thousand forwards of guests that refuse, on the simulator's clock.
TEST(RefusalGates, TenThousandForwardsAreNoStormOfProbes) {
  SimNetwork network;
  SimIo io(network);
  WorkerCounters counters;
  const Endpoint service(boost::asio::ip::make_address("198.19.0.2"), 3000);  // where nobody listens
  std::size_t opened = 0;
  RefusalGates gates(io, 80ms, counters, 0, [&](const ServedForwardPtr&) { return ++opened > 0; });
  std::vector<ServedForwardPtr> forwards;
  for (int i = 0; i < 10'000; ++i) {
    forwards.push_back(
        std::make_shared<ServedForward>(ForwardRoute{.id = make_uuid(), .upstream = service}, 1));
  }
  for (const ServedForwardPtr& forward : forwards) gates.add(forward);
  EXPECT_EQ(counters.refusal_gates.get(), RefusalGates::kGatesMax);
  EXPECT_EQ(opened, forwards.size() - RefusalGates::kGatesMax) << "the others accept, and reset";
  const Nanos end = io.now() + 10s;
  std::size_t sockets_most = 0;
  while (io.now() < end) {
    for (const Completion& completion : io.wait(gates.until_next()))
      gates.on_poll(completion.token, completion);
    gates.run();
    sockets_most = std::max(sockets_most, io.open_sockets());
  }
  EXPECT_LE(sockets_most, RefusalGates::kGatesMax);
  EXPECT_LE(counters.refusal_probes.get(), 8'300u) << "a few more at first";
  EXPECT_GE(counters.refusal_probes.get(), 10 * 700u) << "each one every 80 ms";
  gates.forget_all();
  while (!gates.empty()) {
    for (const Completion& completion : io.wait(1ms)) gates.on_poll(completion.token, completion);
  }
}

}  // namespace
}  // namespace portway::test
