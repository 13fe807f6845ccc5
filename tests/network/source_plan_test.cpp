#include "network/source_plan.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <utility>

namespace portway {
namespace {

std::optional<SourcePlan> plan(std::string_view client, std::string_view guest = "198.18.2.2") {
  return plan_source({boost::asio::ip::make_address(client), 40000}, {parse_address(guest).value(), 3000});
}

TEST(SourcePlan, AClientFromElsewhereKeepsItsAddressAndPort) {
  EXPECT_EQ(plan("198.18.1.2"), SourcePlan::kTransparent);
  EXPECT_EQ(plan("198.18.3.2"), SourcePlan::kTransparent) << "another guest";
  EXPECT_EQ(plan("::ffff:198.18.1.2"), SourcePlan::kTransparent) << "IPv4 through an IPv6 socket";
  EXPECT_EQ(plan("fd00:1::2", "fd00:2::2"), SourcePlan::kTransparent);
}

TEST(SourcePlan, AGuestThatIsItsOwnClientDoesNot) {
  EXPECT_EQ(plan("198.18.2.2"), SourcePlan::kHairpin);
  EXPECT_EQ(plan("::ffff:198.18.2.2"), SourcePlan::kHairpin);
  EXPECT_EQ(plan("fd00:2::2", "fd00:2::2"), SourcePlan::kHairpin);
}

TEST(SourcePlan, AClientOnTheLoopbackDeviceDoesNot) {
  EXPECT_EQ(plan("127.0.0.1"), SourcePlan::kLoopback);
  EXPECT_EQ(plan("127.1.2.3"), SourcePlan::kLoopback);
  EXPECT_EQ(plan("::1", "fd00:2::2"), SourcePlan::kLoopback);
}

TEST(SourcePlan, AnIpv6LinkLocalClientIsNotCarried) {
  EXPECT_EQ(plan("fe80::2%1", "fd00:2::2"), std::nullopt);
  EXPECT_EQ(plan("fe80::2%1"), std::nullopt) << "and is not seen as the node by an IPv4 guest either";
}

TEST(SourcePlan, AnIpv4LinkLocalClientKeepsItsAddressAsUnderDnat) {
  EXPECT_EQ(plan("169.254.0.1"), SourcePlan::kTransparent);
}

TEST(SourcePlan, AClientOfTheOtherFamilyDoesNot) {
  EXPECT_EQ(plan("198.18.1.2", "fd00:2::2"), SourcePlan::kFamily);
  EXPECT_EQ(plan("fd00:1::2", "198.18.2.2"), SourcePlan::kFamily);
}

TEST(SourcePlan, APortThatIsTakenOrPrivilegedIsReplacedOnce) {
  EXPECT_EQ(plan_after_failure(SourcePlan::kTransparent, EADDRINUSE), SourcePlan::kPortInUse);
  EXPECT_EQ(plan_after_failure(SourcePlan::kTransparent, EADDRNOTAVAIL), SourcePlan::kPortInUse);
  EXPECT_EQ(plan_after_failure(SourcePlan::kTransparent, EACCES), SourcePlan::kPortPrivileged);
}

TEST(SourcePlan, NothingTurnsTheClientsAddressIntoTheNodes) {
  for (const int error : {ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH, EPERM, EINVAL, ENOPROTOOPT, EADDRNOTAVAIL,
                          EADDRINUSE, EACCES, ENOBUFS}) {
    for (const SourcePlan tried :
         {SourcePlan::kTransparent, SourcePlan::kPortInUse, SourcePlan::kPortPrivileged}) {
      const auto next = plan_after_failure(tried, error);
      EXPECT_TRUE(!next || is_transparent(*next)) << error;
      if (tried != SourcePlan::kTransparent) {
        EXPECT_EQ(next, std::nullopt) << "a client can use up its ports";
      }
    }
  }
}

TEST(SourcePlan, WhatTheGuestSaysAndWhatTheNodesAddressCannotDoIsFinal) {
  EXPECT_EQ(plan_after_failure(SourcePlan::kTransparent, ECONNREFUSED), std::nullopt);
  for (const SourcePlan plain : {SourcePlan::kPlain, SourcePlan::kProxyV2, SourcePlan::kHairpin}) {
    EXPECT_EQ(plan_after_failure(plain, ETIMEDOUT), std::nullopt);
    EXPECT_EQ(plan_after_failure(plain, EADDRNOTAVAIL), std::nullopt);
  }
}

TEST(SourcePlan, ThePortIsLeftOutIfItIsInUse) {
  const Endpoint client(boost::asio::ip::make_address("::ffff:198.18.1.2"), 40000);
  EXPECT_EQ(to_string(source_endpoint(client, SourcePlan::kTransparent)), "198.18.1.2:40000");
  EXPECT_EQ(to_string(source_endpoint(client, SourcePlan::kPortInUse)), "198.18.1.2:0");
}

TEST(SourcePlan, EveryOneIsIdentifiedByItsModeAndFallback) {
  std::set<std::pair<std::string_view, std::string_view>> names;
  for (std::size_t i = 0; i < kSourcePlans; ++i) {
    const auto each = static_cast<SourcePlan>(i);
    names.emplace(source_mode(each), source_fallback(each));
    EXPECT_EQ(is_transparent(each), source_mode(each) == "transparent");
  }
  EXPECT_EQ(names.size(), kSourcePlans);
}

}  // namespace
}  // namespace portway
