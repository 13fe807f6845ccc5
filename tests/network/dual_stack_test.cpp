// A guest with an address of each family on one tap: both are led back and guarded, and a fault of one
// does not affect the other.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "network/return_path.h"
#include "tests/network/world.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using namespace test;
using testing::AllOf;
using testing::ElementsAre;
using testing::FieldsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr std::uint16_t kPort = 3000;

std::vector<IpAddress> both_of_guest() {
  return {address(kV4.guest), address(kV6.guest)};
}

class DualStackGuard : public WorldTest {};

class DualStackGuest : public DualStackGuard, public testing::WithParamInterface<ReturnPath::Kind> {
 protected:
  Way add(ReturnPath& path, const char* tap, const std::vector<IpAddress>& addresses) const {
    Way way;
    world_->node.run([&] {
      way = path.add(world_->link(tap), addresses);
      EXPECT_TRUE(path.add_port(way, kPort));
    });
    return way;
  }

  /// A client of the guest's service, with its own address and port.
  void expect_a_conversation(const Network& network) const {
    const Fd listener = listen(world_->guest, {address(network.guest), kPort});
    const Endpoint client(address(network.client), 40000);
    const auto [upstream, error] = world_->connect_as(client, {address(network.guest), kPort});
    ASSERT_EQ(error, 0) << std::strerror(error);
    expect_conversation(upstream, listener, client);
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds, DualStackGuest,
                         testing::Values(ReturnPath::Kind::kProgram, ReturnPath::Kind::kRules),
                         [](const auto& test) {
                           return test.param == ReturnPath::Kind::kProgram ? "Program" : "Rules";
                         });

TEST_P(DualStackGuest, ItsAnswersToClientsOfBothFamiliesComeBackAndNothingStays) {
  const std::string before = world_->listing();
  const auto path = world_->start(GetParam());
  const Way way = add(*path, "tap0", both_of_guest());
  EXPECT_EQ(path->fault(way), "");
  expect_a_conversation(kV4);
  expect_a_conversation(kV6);
  world_->node.run([&] { path->remove(way); });
  EXPECT_EQ(world_->listing(), before);
}

TEST_P(DualStackGuest, ItsNextSessionMayHaveOneAddressMoreOrLess) {
  const auto path = world_->start(GetParam());
  for (const auto& addresses :
       {std::vector{address(kV4.guest)}, both_of_guest(), std::vector{address(kV6.guest)}, both_of_guest()}) {
    const Way way = add(*path, "tap0", addresses);
    EXPECT_EQ(path->fault(way), "");
    for (const IpAddress& each : addresses) expect_a_conversation(each.is_v4() ? kV4 : kV6);
    EXPECT_EQ(run_command(&world_->node, {"ip", "-4", "rule"}).find("5210") != std::string::npos,
              addresses.front().is_v4());
    EXPECT_EQ(run_command(&world_->node, {"ip", "-6", "rule"}).find("5210") != std::string::npos,
              addresses.back().is_v6());
  }
}

// The address that it keeps loses no packet meanwhile: a client far away would end the connection for it.
TEST_P(DualStackGuest, WhatItHasAtAnAddressThatItKeepsLivesWhileTheOtherOneComesAndGoes) {
  const std::string before = world_->listing();
  const auto path = world_->start(GetParam());
  const Way way = add(*path, "tap0", {address(kV4.guest)});
  const std::string with_one = world_->listing();
  const Fd listener = listen(world_->guest, {address(kV4.guest), kPort + 1});
  world_->node.run([&] { EXPECT_TRUE(path->add_port(way, kPort + 1)); });
  const auto [upstream, error] =
      world_->connect_as({address(kV4.client), 40001}, {address(kV4.guest), kPort + 1});
  ASSERT_EQ(error, 0) << std::strerror(error);
  const Fd accepted = accept(listener);
  // Clang 14 does not capture a structured binding by itself.
  const auto change = [&, &upstream = upstream](const std::vector<IpAddress>& addresses) {
    world_->node.run([&] { EXPECT_EQ(path->change_addresses(way, addresses), way); });
    EXPECT_EQ(path->fault(way), "");
    EXPECT_EQ(exchange(accepted, upstream, "still here"), "still here");
  };
  change(both_of_guest());
  expect_a_conversation(kV4);
  expect_a_conversation(kV6);
  change({address(kV4.guest)});
  world_->node.run([&] { path->remove_port(way, kPort + 1); });
  EXPECT_EQ(world_->listing(), with_one);
  world_->node.run([&] { path->remove(way); });
  EXPECT_EQ(world_->listing(), before);
  EXPECT_EQ(path->change_addresses(way, both_of_guest()), way) << "it is gone: nothing happens";
  EXPECT_EQ(world_->listing(), before);
}

TEST_P(DualStackGuest, ANewAddressIsLedBackAndTheOldOneIsAnybodys) {
  const auto path = world_->start(GetParam());
  const Way way = add(*path, "tap0", both_of_guest());
  const Network moved{kV4.client, "198.18.2.9", kV4.neighbour};
  const Network moved_v6{kV6.client, "fd00:2::9", kV6.neighbour};
  world_->guest.ip("address add 198.18.2.9/24 dev eth0");
  world_->guest.ip("address add fd00:2::9/64 nodad dev eth0");
  world_->node.run([&] {
    EXPECT_EQ(path->change_addresses(way, {address(moved.guest), address(moved_v6.guest)}), way);
  });
  EXPECT_EQ(path->fault(way), "");
  expect_a_conversation(moved);
  expect_a_conversation(moved_v6);
  if (!path->has_guard()) {
    EXPECT_THAT(world_->listing(),
                AllOf(Not(HasSubstr("from 198.18.2.2")), Not(HasSubstr("from fd00:2::2"))));
    return;
  }
  add(*path, "tap1", {address(kV4.neighbour)});
  Sniffer sniffer(world_->client, false);
  const auto passes = [&](std::string_view source) {
    forge(world_->neighbour, {address(source), 9}, {address(kV4.client), 9}, kForged);
    forge(world_->neighbour, {address(kV4.neighbour), 9}, {address(kV4.client), 9}, kMarker);
    const bool forged = sniffer.first_of(kForged, kMarker) == kForged;
    return forged && sniffer.first_of(kMarker, kMarker) == kMarker;
  };
  EXPECT_FALSE(passes(moved.guest));
  EXPECT_TRUE(passes(kV4.guest)) << "no guest has it any more";
}

// Such an address is one of its link: the socket says of which.
TEST_P(DualStackGuest, AnAddressOfItsLinkIsLedBackToo) {
  world_->guest.ip("address add fe80::21/64 nodad dev eth0");
  int eth0 = 0;
  world_->guest.run([&] { eth0 = static_cast<int>(::if_nametoindex("eth0")); });
  const auto path = world_->start(GetParam());
  const Way way = add(*path, "tap0", {address("fe80::21")});
  EXPECT_EQ(path->fault(way), "");
  const Endpoint guest(address("fe80::21"), kPort);
  const Fd listener = listen(world_->guest, on_link(guest, eth0));
  const Endpoint client(address(kV6.client), 40000);
  const auto [upstream, error] = world_->connect_as(client, on_link(guest, world_->link("tap0")));
  ASSERT_EQ(error, 0) << std::strerror(error);
  const Fd accepted = accept(listener);
  EXPECT_EQ(peer_of(accepted), client);
  EXPECT_EQ(exchange(upstream, accepted, "question"), "question");
  EXPECT_EQ(exchange(accepted, upstream, "answer"), "answer");
}

// With rules, each forwarded port takes one for each address.
TEST_F(DualStackGuard, ASecondAddressForWhichThereAreTooManyRulesIsOneWithoutPorts) {
  const auto path = world_->start(ReturnPath::Kind::kRules);
  world_->node.run([&] {
    const Way way = path->add(world_->link("tap0"), address(kV4.guest));
    for (std::size_t i = 0; i <= ReturnPath::kPortsMax / 2; ++i)
      ASSERT_TRUE(path->add_port(way, static_cast<std::uint16_t>(1000 + i)));
    const Way next = path->change_addresses(way, both_of_guest());
    EXPECT_NE(next, way);
    EXPECT_THAT(world_->listing(), Not(HasSubstr("sport")));
    for (std::size_t i = 0; i < ReturnPath::kPortsMax / 2; ++i)
      ASSERT_TRUE(path->add_port(next, static_cast<std::uint16_t>(1000 + i)));
    EXPECT_FALSE(path->add_port(next, 999));
  });
}

TEST_P(DualStackGuest, AnObstacleForOneFamilyIsNoFaultOfTheOther) {
  const auto path = world_->start(GetParam());
  const Way way = add(*path, "tap0", both_of_guest());
  for (const Network& network : {kV6, kV4}) {
    const IpAddress blocked = address(network.guest);
    const IpAddress other = address(blocked.is_v4() ? kV6.guest : kV4.guest);
    const std::string family = blocked.is_v4() ? "-4 " : "-6 ";
    world_->node.ip(family + "rule add pref 77 iif tap0 blackhole");
    world_->node.run([&] {
      EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, AllOf(HasSubstr(blocked.to_string()),
                                                                     Not(HasSubstr(other.to_string()))))));
      EXPECT_THAT(path->repair(16), IsEmpty()) << "it is reported once";
    });
    EXPECT_NE(path->fault(way, blocked), "");
    EXPECT_EQ(path->fault(way, other), "");
    EXPECT_EQ(path->fault(way), path->fault(way, blocked));
    expect_a_conversation(blocked.is_v4() ? kV6 : kV4);
    // Another forward meanwhile: the address that works gets its return path.
    world_->node.run([&] { EXPECT_TRUE(path->add_port(way, kPort + 1)); });
    world_->node.ip(family + "rule del pref 77");
    world_->node.run([&] { EXPECT_THAT(path->repair(16), ElementsAre(FieldsAre(way, ""))); });
    expect_a_conversation(network);
  }
}

TEST_P(DualStackGuest, WhatSomebodyRemovesIsRepairedForBoth) {
  const auto path = world_->start(GetParam());
  add(*path, "tap0", both_of_guest());
  const std::string before = world_->listing();
  for (const std::string family : {"-4", "-6"}) {
    world_->node.ip(family + " rule del pref 5109");
    world_->node.run([&] { EXPECT_THAT(path->repair(16), IsEmpty()) << "it never was a fault"; });
    EXPECT_EQ(world_->listing(), before);
  }
}

TEST_F(DualStackGuard, NobodyElseSendsWithEitherOfItsAddresses) {
  const auto path = world_->start(ReturnPath::Kind::kGuardOnly);
  Way way;
  world_->node.run([&] {
    way = path->add(world_->link("tap0"), both_of_guest());
    path->add(world_->link("tap1"), {address(kV4.neighbour), address(kV6.neighbour)});
  });
  const auto passes = [&](const Network& network, std::string_view source) {
    Sniffer sniffer(world_->client, address(network.client).is_v6());
    forge(world_->neighbour, {address(source), 9}, {address(network.client), 9}, kForged);
    forge(world_->neighbour, {address(network.neighbour), 9}, {address(network.client), 9}, kMarker);
    const std::uint32_t first = sniffer.first_of(kForged, kMarker);
    EXPECT_NE(first, 0U) << "neither arrived";
    return first == kForged;
  };
  for (const Network& network : {kV4, kV6}) {
    EXPECT_FALSE(passes(network, network.guest)) << network.guest;
    EXPECT_TRUE(passes(network, network.neighbour)) << network.neighbour;
  }
  EXPECT_EQ(path->forged_packets(), 2U);
  // Its next session has one of them only.
  world_->node.run([&] { path->add(world_->link("tap0"), address(kV4.guest)); });
  EXPECT_FALSE(passes(kV4, kV4.guest));
  EXPECT_TRUE(passes(kV6, kV6.guest));
}

}  // namespace
}  // namespace portway
