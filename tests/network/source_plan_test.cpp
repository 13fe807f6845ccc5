#include "network/source_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <vector>

namespace portway {
namespace {

/// What is decided for a client, with a guest of either family; the node is 198.18.1.1, 203.0.113.7 and
/// fd00:1::1.
SourcePlan plan(std::string_view client, std::string_view guest = "198.18.2.2") {
  std::vector<IpAddress> node;
  for (const char* address : {"fd00:1::1", "203.0.113.7", "127.0.0.1", "198.18.1.1", "::1"}) {
    node.push_back(parse_address(address).value());
  }
  std::ranges::sort(node);
  return plan_source({boost::asio::ip::make_address(client), 40000}, {parse_address(guest).value(), 3000},
                     node);
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

TEST(SourcePlan, AClientOnTheNodeDoesNot) {
  EXPECT_EQ(plan("127.0.0.1"), SourcePlan::kLoopback);
  EXPECT_EQ(plan("127.1.2.3"), SourcePlan::kLoopback);
  EXPECT_EQ(plan("::1", "fd00:2::2"), SourcePlan::kLoopback);
  EXPECT_EQ(plan("203.0.113.7"), SourcePlan::kLocalClient);
  EXPECT_EQ(plan("::ffff:198.18.1.1"), SourcePlan::kLocalClient);
  EXPECT_EQ(plan("fd00:1::1", "fd00:2::2"), SourcePlan::kLocalClient);
}

TEST(SourcePlan, ALinkLocalClientDoesNotForItWouldBeSoughtOnTheGuestsLink) {
  EXPECT_EQ(plan("fe80::2%1", "fd00:2::2"), SourcePlan::kLinkLocal);
  EXPECT_EQ(plan("169.254.0.1"), SourcePlan::kLinkLocal);
  EXPECT_EQ(plan("169.253.255.255"), SourcePlan::kTransparent);
}

TEST(SourcePlan, AClientOfTheOtherFamilyDoesNot) {
  EXPECT_EQ(plan("198.18.1.2", "fd00:2::2"), SourcePlan::kFamily);
  EXPECT_EQ(plan("fd00:1::2", "198.18.2.2"), SourcePlan::kFamily);
}

TEST(SourcePlan, APortThatIsTakenIsTriedOnceMoreWithoutIt) {
  EXPECT_EQ(plan_after_failure(SourcePlan::kTransparent, EADDRINUSE), SourcePlan::kPortInUse);
  EXPECT_EQ(plan_after_failure(SourcePlan::kTransparent, EADDRNOTAVAIL), SourcePlan::kPortInUse);
  EXPECT_EQ(plan_after_failure(SourcePlan::kPortInUse, EADDRNOTAVAIL), std::nullopt);
  EXPECT_EQ(plan_after_failure(SourcePlan::kTransparent, ECONNREFUSED), std::nullopt);
  EXPECT_EQ(plan_after_failure(SourcePlan::kHairpin, EADDRNOTAVAIL), std::nullopt);
}

TEST(SourcePlan, EveryOneHasANameOfItsOwnAndTwoAreTransparent) {
  std::set<std::string_view> names;
  std::size_t transparent = 0;
  for (std::size_t i = 0; i < kSourcePlans; ++i) {
    names.insert(to_string(static_cast<SourcePlan>(i)));
    transparent += is_transparent(static_cast<SourcePlan>(i)) ? 1 : 0;
  }
  EXPECT_EQ(names.size(), kSourcePlans);
  EXPECT_EQ(transparent, 2);
  EXPECT_EQ(to_string(SourcePlan::kFamily), "family");
}

}  // namespace
}  // namespace portway
