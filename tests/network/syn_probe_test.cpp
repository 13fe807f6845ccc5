// Probes a guest's ports from the node's address and from a client's, with and without CAP_NET_RAW.
#include "network/syn_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <poll.h>

#include <chrono>
#include <optional>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "tests/network/world.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using namespace test;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::AnyOf;

enum class Rights : std::uint8_t { kAll, kNoNetRaw, kNoNetAdmin };

struct Setting {
  bool v6;
  bool as_client;
  Rights rights;

  std::string name() const {
    return std::string(v6 ? "V6" : "V4") + (as_client ? "AsClient" : "AsNode") +
           (rights == Rights::kAll        ? ""
            : rights == Rights::kNoNetRaw ? "WithoutNetRaw"
                                          : "WithoutNetAdmin");
  }
  friend void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name(); }
};

std::vector<Setting> all_settings() {
  std::vector<Setting> all;
  for (const bool v6 : {false, true}) {
    for (const bool as_client : {false, true}) {
      for (const Rights rights : {Rights::kAll, Rights::kNoNetRaw, Rights::kNoNetAdmin}) {
        // If a filter needs CAP_NET_ADMIN, no client's address can be used.
        if (!as_client || rights != Rights::kNoNetAdmin) all.push_back({v6, as_client, rights});
      }
    }
  }
  return all;
}

class SynProbeTest : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    world_.emplace();
    path_ = world_->start();
    path_->add(world_->link("tap0"), guest(0).address());
  }

  static bool has_raw() { return GetParam().rights != Rights::kNoNetRaw; }
  const Network& network() const { return GetParam().v6 ? kV6 : kV4; }
  Endpoint guest(std::uint16_t port) const { return {address(network().guest), port}; }

  SynProbeTarget target(const Endpoint& guest) const {
    SynProbeTarget target{.guest = guest, .device = world_->link("tap0")};
    if (GetParam().as_client) target.source = address(network().client);
    return target;
  }

  int open(const SynProbeTarget& target, SynProbe& probe) const {
    int error = 0;
    world_->node.run([&] {
      if (GetParam().rights == Rights::kNoNetRaw) drop_capabilities({CAP_NET_RAW});
      if (GetParam().rights == Rights::kNoNetAdmin) drop_capabilities({CAP_NET_ADMIN});
      error = SynProbe::open(target, probe);
    });
    EXPECT_TRUE(error != 0 || probe.needs_asking() != has_raw());
    return error;
  }

  static int answer_within(SynProbe& probe, milliseconds time) {
    const auto deadline = steady_clock::now() + time;
    for (;;) {
      if (const int answer = probe.answer(); answer != -EAGAIN) return answer;
      const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now());
      if (left <= milliseconds::zero()) return probe.answer();
      pollfd waiting{.fd = probe.fd(), .events = POLLIN, .revents = 0};
      ::poll(&waiting, 1, static_cast<int>(probe.needs_asking() ? 2 : left.count()));
    }
  }

  int ask(const Endpoint& guest) const {
    SynProbe probe;
    const int error = open(target(guest), probe);
    return error != 0 ? error : answer_within(probe, std::chrono::seconds(10));
  }

  /// Within less than the second after which the kernel repeats a SYN.
  int ask_before_the_kernel_does(const Endpoint& guest) const {
    SynProbe probe;
    const int error = open(target(guest), probe);
    return error != 0 ? error : answer_within(probe, milliseconds(900));
  }

  std::string half_open() const { return run_command(&world_->guest, {"ss", "-Htn", "state", "syn-recv"}); }

  std::optional<World> world_;
  std::unique_ptr<ReturnPath> path_;
};
INSTANTIATE_TEST_SUITE_P(Settings, SynProbeTest, testing::ValuesIn(all_settings()),
                         [](const auto& test) { return test.param.name(); });

TEST_P(SynProbeTest, AServiceAnswersAndNeverGetsAConnection) {
  const Fd listener = listen(world_->guest, guest(0));
  EXPECT_EQ(ask(local_of(listener)), 0);
  if (has_raw()) {
    // The guest's next SYN-ACK, which the kernel would answer with RST, comes after a second.
    const auto deadline = steady_clock::now() + milliseconds(500);
    while (!half_open().empty() && steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_EQ(half_open(), "");
  }
  EXPECT_TRUE(nobody_waits(listener));
}

TEST_P(SynProbeTest, AServiceThatAcceptsOnceIsNotUsedUp) {
  const Fd listener = listen(world_->guest, guest(0), 0);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(ask(local_of(listener)), 0);
  const auto client = connect_plainly(world_->client, {address(network().client), 0}, local_of(listener));
  EXPECT_EQ(client.error, 0);
  EXPECT_EQ(peer_of(accept(listener)).address(), address(network().client));
}

TEST_P(SynProbeTest, AClosedPortRefuses) {
  const Fd listener = bound_in(world_->guest, guest(0));  // nobody else can listen there
  EXPECT_EQ(ask(local_of(listener)), -ECONNREFUSED);
}

TEST_P(SynProbeTest, AGuestIsAskedAtAnAddressOfItsLink) {
  if (!GetParam().v6) return;
  world_->guest.ip("address add fe80::21/64 nodad dev eth0");
  int eth0 = 0;
  world_->guest.run([&] { eth0 = static_cast<int>(::if_nametoindex("eth0")); });
  path_->add(world_->link("tap0"), address("fe80::21"));
  const Fd listener = listen(world_->guest, on_link({address("fe80::21"), 0}, eth0));
  const Fd closed = bound_in(world_->guest, on_link({address("fe80::21"), 0}, eth0));
  EXPECT_EQ(ask({address("fe80::21"), local_of(listener).port()}), 0);
  EXPECT_EQ(ask({address("fe80::21"), local_of(closed).port()}), -ECONNREFUSED);
  EXPECT_TRUE(nobody_waits(listener));
}

TEST_P(SynProbeTest, AGuestThatDropsTheSynSaysNothing) {
  const Fd listener = listen(world_->guest, guest(0));
  make_deaf(listener);
  SynProbe probe;
  ASSERT_EQ(open(target(local_of(listener)), probe), 0);
  EXPECT_EQ(answer_within(probe, milliseconds(200)), -EAGAIN);
}

TEST_P(SynProbeTest, TheGuestIsAskedFromTheAddressThatIsWanted) {
  const Fd listener = listen(world_->guest, guest(0));
  Sniffer sniffer(world_->guest, GetParam().v6);
  EXPECT_EQ(ask(local_of(listener)), 0);
  const auto syn = sniffer.next();
  ASSERT_TRUE(syn);
  const char* node = GetParam().v6 ? "fd00:2::1" : "198.18.2.1";
  EXPECT_EQ(syn->source.to_string(), GetParam().as_client ? network().client : node);
}

TEST_P(SynProbeTest, SeveralAtOnceHaveTheirOwnAnswers) {
  const Fd open_port = listen(world_->guest, guest(0));
  const Fd closed_port = bound_in(world_->guest, guest(0));
  std::vector<std::pair<SynProbe, int>> probes(6);
  for (std::size_t i = 0; i < probes.size(); ++i) {
    const bool closed = i % 2 != 0;
    probes[i].second = closed ? -ECONNREFUSED : 0;
    const int error = open(target(local_of(closed ? closed_port : open_port)), probes[i].first);
    if (error != 0) {
      EXPECT_EQ(error, probes[i].second);
      probes[i].second = -EAGAIN;  // already answered
    }
  }
  for (auto& [probe, expected] : probes) {
    if (expected != -EAGAIN) {
      EXPECT_EQ(answer_within(probe, std::chrono::seconds(10)), expected);
    }
  }
  EXPECT_TRUE(nobody_waits(open_port));
}

TEST_P(SynProbeTest, IfNobodyHasTheAddressItSaysSoIfTheKernelDoes) {
  if (GetParam().v6 || GetParam().as_client || GetParam().rights == Rights::kNoNetAdmin) return;
  world_->node.set("net/ipv4/neigh/tap0/retrans_time_ms", "10");
  EXPECT_EQ(ask({address("198.18.2.99"), 80}), -EHOSTUNREACH);
}

TEST_P(SynProbeTest, ADeviceThatIsGoneIsAnError) {
  SynProbe probe;
  SynProbeTarget wrong = target(guest(80));
  wrong.device = 99'999;
  EXPECT_THAT(open(wrong, probe), AnyOf(-ENODEV, -ENETUNREACH));
}

TEST_P(SynProbeTest, WithoutCapabilitiesItSaysSoOrDoesWithout) {
  SynProbe probe;
  int error = 0;
  const Fd listener = listen(world_->guest, guest(0));
  world_->node.run([&] {
    drop_capabilities({CAP_NET_RAW, CAP_NET_ADMIN});
    error = SynProbe::open(target(local_of(listener)), probe);
  });
  // Older kernels allow the filter.
  if (error == 0) {
    EXPECT_FALSE(GetParam().as_client);
    EXPECT_EQ(answer_within(probe, std::chrono::seconds(10)), 0);
  } else {
    EXPECT_EQ(error, -EPERM);
  }
  EXPECT_TRUE(nobody_waits(listener));
}

TEST_P(SynProbeTest, GarbageIsNoAnswerAndDoesNoHarm) {
  const Fd listener = listen(world_->guest, guest(0));
  make_deaf(listener);
  Sniffer sniffer(world_->guest, GetParam().v6);
  SynProbe probe;
  ASSERT_EQ(open(target(local_of(listener)), probe), 0);
  const auto syn = sniffer.next();
  ASSERT_TRUE(syn);
  const Endpoint asker(syn->source, ntohs(syn->tcp.source));
  const auto send = [&](std::uint16_t from, int flags) {
    forge(world_->guest, guest(from), asker, kForged, static_cast<std::uint8_t>(flags));
  };
  const std::uint16_t port = local_of(listener).port();
  send(static_cast<std::uint16_t>(port ^ 1), TH_RST | TH_ACK);  // another port's answer
  EXPECT_EQ(answer_within(probe, milliseconds(50)), -EAGAIN);
  if (!has_raw()) return;  // it sees only a count of segments
  for (const int flags : {0, TH_SYN, TH_FIN, TH_FIN | TH_PUSH | TH_URG, TH_ACK, TH_ACK, TH_PUSH | TH_ACK}) {
    for (int i = 0; i < 20; ++i) send(port, flags);
    EXPECT_EQ(answer_within(probe, milliseconds(50)), -EAGAIN) << flags;
  }
  send(port, TH_RST | TH_ACK);
  EXPECT_EQ(answer_within(probe, std::chrono::seconds(10)), -ECONNREFUSED);
}

// The kernel chooses the port, and the guest may remember an earlier connection from it that nobody ended:
// it answers the SYN with an acknowledgement, and accepts a SYN only after a RST.
TEST_P(SynProbeTest, AConnectionThatOnlyTheGuestRemembersIsNotTakenForTheService) {
  if (GetParam().rights != Rights::kAll) return;  // it sees only a count of segments, or probes only once
  world_->node.set("net/ipv4/ip_local_port_range", "40000 40000");
  const Fd listener = listen(world_->guest, guest(0));
  const char* node = GetParam().v6 ? "fd00:2::1" : "198.18.2.1";
  auto old = world_->connect_as({address(GetParam().as_client ? network().client : node), 40000},
                                local_of(listener));
  ASSERT_EQ(old.error, 0);
  const Fd remembered = accept(listener);
  make_deaf(remembered);
  const linger reset{.l_onoff = 1, .l_linger = 0};
  set_option(old.fd, SOL_SOCKET, SO_LINGER, reset);
  old.fd.reset();
  set_option(remembered, SOL_SOCKET, SO_DETACH_FILTER, kOn);
  EXPECT_EQ(ask_before_the_kernel_does(local_of(listener)), 0);
  EXPECT_TRUE(nobody_waits(listener));
}

// A busy service that closed its connections first is gone: the guest answers a SYN from one of their
// ports with an acknowledgement, although nobody listens.
TEST_P(SynProbeTest, APortThatTheGuestHasInTimeWaitIsNoDoubt) {
  if (GetParam().rights != Rights::kAll) return;
  world_->node.set("net/ipv4/ip_local_port_range", "40000 40000");
  Fd listener = listen(world_->guest, guest(0));
  const Endpoint service = local_of(listener);
  const char* node = GetParam().v6 ? "fd00:2::1" : "198.18.2.1";
  auto client = world_->connect_as({address(GetParam().as_client ? network().client : node), 40000}, service);
  ASSERT_EQ(client.error, 0);
  accept(listener).reset();  // the guest ends first
  char byte = 0;
  ASSERT_EQ(::recv(client.fd.get(), &byte, 1, 0), 0);
  client.fd.reset();
  const auto in_time_wait = [&] {
    return !run_command(&world_->guest, {"ss", "-Htn", "state", "time-wait"}).empty();
  };
  const auto deadline = steady_clock::now() + std::chrono::seconds(10);
  while (!in_time_wait() && steady_clock::now() < deadline) std::this_thread::yield();
  ASSERT_TRUE(in_time_wait());
  listener.reset();
  EXPECT_EQ(ask_before_the_kernel_does(service), -ECONNREFUSED);
}

}  // namespace
}  // namespace portway
