// Clients that have a route of their own to a guest: what the packet program on the guest's tap knows
// about their connections. A real guest's segments, in network namespaces.

#include "network/routed_connections.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "network/steer.h"
#include "tests/network/world.h"

namespace portway {
namespace {

using namespace test;

constexpr std::chrono::seconds kShortTime{120};
constexpr std::uint16_t kMany = 5000;  // more than a guest's share of the table

class RoutedConnectionsTest : public WorldTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    WorldTest::SetUp();
    if (!world_) return;
    path_ = world_->start();
    path_->add(tap(), guest(0).address());
    path_->add(world_->link("tap1"), neighbour(0).address());
    at_guest_ = listen(world_->guest, guest(0));
    at_neighbour_ = listen(world_->neighbour, neighbour(0));
  }

  const Network& network() const { return GetParam() ? kV6 : kV4; }
  Endpoint client(std::uint16_t port) const { return {address(network().client), port}; }
  Endpoint guest(std::uint16_t port) const { return {address(network().guest), port}; }
  Endpoint neighbour(std::uint16_t port) const { return {address(network().neighbour), port}; }
  int tap() const { return world_->link("tap0"); }

  struct Routed {
    Fd client;
    Fd guest;
  };
  Routed open(std::uint16_t port, const Fd& listener) const {
    auto connected = connect_plainly(world_->client, client(port), local_of(listener));
    EXPECT_EQ(connected.error, 0) << std::strerror(connected.error);
    return {std::move(connected.fd), accept(listener)};
  }

  static std::chrono::nanoseconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }
  bool known(std::uint16_t port, std::chrono::seconds later = {}) const {
    return path_->routed()->contain(tap(), client(port), local_of(at_guest_).port(), now() + later);
  }
  bool neighbours_is_known(std::uint16_t port) const {
    return path_->routed()->contain(world_->link("tap1"), client(port), local_of(at_neighbour_).port(),
                                    now());
  }

  std::unique_ptr<ReturnPath> path_;
  Fd at_guest_;
  Fd at_neighbour_;
};
INSTANTIATE_TEST_SUITE_P(Families, RoutedConnectionsTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "V6" : "V4"; });

TEST_P(RoutedConnectionsTest, OneIsKnownWithItsGuestItsClientAndBothPorts) {
  const Routed routed = open(40000, at_guest_);
  EXPECT_TRUE(known(40000));
  EXPECT_EQ(exchange(routed.client, routed.guest, "question"), "question");
  EXPECT_TRUE(known(40000, std::chrono::hours(24))) << "however silent it is";
  EXPECT_FALSE(known(40001));
  EXPECT_FALSE(neighbours_is_known(40000));
  const RoutedConnections& all = *path_->routed();
  const std::uint16_t port = local_of(at_guest_).port();
  EXPECT_FALSE(all.contain(tap(), client(40000), static_cast<std::uint16_t>(port ^ 1), now()));
  EXPECT_FALSE(all.contain(tap(), {neighbour(0).address(), 40000}, port, now()));
}

TEST_P(RoutedConnectionsTest, WhatTheGuestHasRefusedOrResetIsForgotten) {
  const Endpoint closed(guest(0).address(), 1);
  EXPECT_EQ(connect_plainly(world_->client, client(40000), closed).error, ECONNREFUSED);
  EXPECT_FALSE(path_->routed()->contain(tap(), client(40000), 1, now()));

  Routed routed = open(40001, at_guest_);
  ASSERT_TRUE(known(40001));
  set_option(routed.guest, SOL_SOCKET, SO_LINGER, linger{.l_onoff = 1, .l_linger = 0});
  routed.guest.reset();
  char byte = 0;
  EXPECT_EQ(::recv(routed.client.get(), &byte, 1, 0), -1);
  EXPECT_FALSE(known(40001));
}

TEST_P(RoutedConnectionsTest, WhatTheGuestHasEndedIsForgottenAfterATimeThatItsSegmentsProlong) {
  const Routed routed = open(40000, at_guest_);
  ::shutdown(routed.guest.get(), SHUT_WR);
  char byte = 0;
  EXPECT_EQ(::recv(routed.client.get(), &byte, 1, 0), 0);
  EXPECT_TRUE(known(40000));
  EXPECT_FALSE(known(40000, kShortTime + std::chrono::seconds(1)));
  EXPECT_EQ(exchange(routed.client, routed.guest, "half closed"), "half closed");
  EXPECT_TRUE(known(40000));
  EXPECT_FALSE(known(40000, kShortTime + std::chrono::seconds(1)));
}

TEST_P(RoutedConnectionsTest, TheSamePortsAgainAreANewConnection) {
  {
    const Routed routed = open(40000, at_guest_);
    set_option(routed.client, SOL_SOCKET, SO_LINGER, linger{.l_onoff = 1, .l_linger = 0});
    ::shutdown(routed.guest.get(), SHUT_WR);
    char byte = 0;
    EXPECT_EQ(::recv(routed.client.get(), &byte, 1, 0), 0);
  }
  const Routed again = open(40000, at_guest_);
  EXPECT_EQ(exchange(again.client, again.guest, "question"), "question");
  EXPECT_TRUE(known(40000, std::chrono::hours(24)));
}

TEST_P(RoutedConnectionsTest, TheRelaysOwnIsNone) {
  const auto relayed = world_->connect_as(client(40000), local_of(at_guest_));
  ASSERT_EQ(relayed.error, 0);
  const Fd accepted = accept(at_guest_);
  EXPECT_EQ(exchange(accepted, relayed.fd, "answer"), "answer");
  EXPECT_FALSE(known(40000));
}

TEST_P(RoutedConnectionsTest, OneThatIsOlderThanTheProgramIsKnownWhenTheGuestSendsSomething) {
  path_.reset();
  const Routed routed = open(40000, at_guest_);
  path_ = world_->start();
  path_->add(tap(), guest(0).address());
  EXPECT_FALSE(known(40000));
  EXPECT_EQ(exchange(routed.guest, routed.client, "something"), "something");
  EXPECT_TRUE(known(40000));
  EXPECT_FALSE(known(40000, kShortTime + std::chrono::seconds(1)));
}

/// The guest was paused, and the relay has given up its connection meanwhile.
TEST_P(RoutedConnectionsTest, WhatComesTooLateForTheRelayIsForgottenSoon) {
  for (const int kind : {TH_SYN | TH_ACK, TH_ACK}) {
    const auto flags = static_cast<std::uint8_t>(kind);
    const auto port = static_cast<std::uint16_t>(40000 + flags);
    for (int i = 0; i < 3; ++i) forge(world_->guest, local_of(at_guest_), client(port), kForged, flags);
    EXPECT_TRUE(known(port));
    EXPECT_FALSE(known(port, kShortTime + std::chrono::seconds(1)));
  }
}

TEST_P(RoutedConnectionsTest, AGuestCrowdsOutNobodyElses) {
  const Routed of_neighbour = open(40000, at_neighbour_);
  for (std::uint16_t port = 1; port <= kMany; ++port)
    forge(world_->guest, local_of(at_guest_), client(port), kForged, TH_SYN | TH_ACK);
  EXPECT_TRUE(neighbours_is_known(40000));
  const Routed last = open(40000, at_guest_);
  EXPECT_TRUE(known(40000)) << "the latest one has its place";
}

TEST_P(RoutedConnectionsTest, WhatAGuestSendsToTheWorldCrowdsOutNoneOfItsClients) {
  const Routed routed = open(40000, at_guest_);
  for (std::uint16_t port = 1; port <= kMany; ++port)
    forge(world_->guest, guest(port), client(443), kForged, TH_ACK);
  EXPECT_TRUE(known(40000));
}

}  // namespace
}  // namespace portway
