#include "control/port_allocator.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace portway {
namespace {

/// A bind that always succeeds.
Result<std::uint16_t> bind_any(std::uint16_t port) {
  return port;
}

Result<std::uint16_t> taken(std::uint16_t) {
  return Error{ErrorCode::kHostPortTaken, "somebody has it", ""};
}

TEST(PortAllocator, HandsOutEveryPortOfTheRangeOnceAndThenSaysItIsExhausted) {
  PortAllocator ports({20000, 20999});
  std::set<std::uint16_t> seen;
  for (int i = 0; i < 1000; ++i) {
    const auto port = ports.take_random(bind_any);
    ASSERT_TRUE(port);
    EXPECT_TRUE(ports.range().contains(*port));
    EXPECT_TRUE(seen.insert(*port).second) << *port;
  }
  EXPECT_EQ(ports.free(), 0U);
  EXPECT_EQ(ports.used(), 1000U);
  const auto none = ports.take_random(bind_any);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kPortPoolExhausted);
  EXPECT_EQ(none.error().limit, 1000);
  EXPECT_EQ(none.error().current, 1000);
}

TEST(PortAllocator, ARowIsPortsThatFollowOneAnother) {
  PortAllocator ports({20000, 20019});  // the first 16 are the static band
  const auto row = ports.take_row(4, bind_any);
  ASSERT_TRUE(row);
  EXPECT_EQ(*row, (std::vector<std::uint16_t>{20016, 20017, 20018, 20019}));
  ASSERT_TRUE(ports.take(20007));
  ports.rest(20007, "alice", PortAllocator::Clock::now() + std::chrono::hours(1));
  std::set<std::uint16_t> seen(row->begin(), row->end());
  const auto next = ports.take_row(7, bind_any);
  ASSERT_TRUE(next);
  for (std::size_t j = 0; j < next->size(); ++j) {
    EXPECT_EQ((*next)[j], (*next)[0] + j);
    EXPECT_TRUE(seen.insert((*next)[j]).second);
    EXPECT_NE((*next)[j], 20007) << "it rests";
  }
  EXPECT_EQ(ports.used(), 11U);
  const auto none = ports.take_row(9, bind_any);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kPortPoolExhausted);
  EXPECT_EQ(none.error().field, "host_ports");
  EXPECT_EQ(ports.used(), 11U);
}

TEST(PortAllocator, ARowGoesRoundAPortThatAnotherProgramHas) {
  PortAllocator ports({20000, 20009});
  const auto bind = [](std::uint16_t port) { return port == 20004 ? taken(port) : bind_any(port); };
  const auto row = ports.take_row(5, bind);
  ASSERT_TRUE(row);
  EXPECT_EQ(row->front(), 20005);
  EXPECT_EQ(ports.used(), 5U);
  EXPECT_FALSE(ports.take_row(5, bind));
  EXPECT_EQ(ports.used(), 5U);
  EXPECT_TRUE(ports.take_row(4, bind));
}

TEST(PortAllocator, DrawsInNoOrderATenantCouldGuess) {
  std::vector<std::uint16_t> first;
  std::vector<std::uint16_t> second;
  for (auto* drawn : {&first, &second}) {
    PortAllocator ports({20000, 32767});
    for (int i = 0; i < 20; ++i) drawn->push_back(*ports.take_random(bind_any));
  }
  EXPECT_NE(first, second);
  EXPECT_FALSE(std::is_sorted(first.begin(), first.end()));
}

TEST(PortAllocator, EveryPortIsAboutEquallyLikely) {
  std::vector<int> draws(16);
  PortAllocator ports({30000, 30015});
  for (int i = 0; i < 16'000; ++i) {
    const std::uint16_t port = *ports.take_random(bind_any);
    ++draws[port - 30000U];
    ports.give_back(port);
  }
  // 1,000 expected each, with a standard deviation of 31: eight of them never happen.
  EXPECT_GT(*std::min_element(draws.begin(), draws.end()), 750);
  EXPECT_LT(*std::max_element(draws.begin(), draws.end()), 1250);
}

TEST(PortAllocator, APortGivenBackIsHandedOutAgain) {
  PortAllocator ports({20000, 20000});
  EXPECT_EQ(*ports.take_random(bind_any), 20000);
  EXPECT_TRUE(ports.is_used(20000));
  ports.give_back(20000);
  EXPECT_FALSE(ports.is_used(20000));
  EXPECT_EQ(*ports.take_random(bind_any), 20000);
}

TEST(PortAllocator, KeepsABandForPortsThatAreAskedForUntilNoOtherIsLeft) {
  PortAllocator ports({20000, 20999});
  ASSERT_EQ(ports.static_band(), 31U);
  for (int i = 0; i < 1000 - 31; ++i) ASSERT_GE(*ports.take_random(bind_any), 20031);
  EXPECT_TRUE(ports.take(20007));
  for (int i = 0; i < 30; ++i) ASSERT_LT(*ports.take_random(bind_any), 20031);
  EXPECT_EQ(ports.free(), 0U);
  ports.give_back(20007);
  ports.give_back(20500);
  EXPECT_EQ(*ports.take_random(bind_any), 20500);
}

TEST(PortAllocator, TheBandsSizeFollowsKubernetes) {
  EXPECT_EQ(PortAllocator({20000, 20015}).static_band(), 0U);
  EXPECT_EQ(PortAllocator({20000, 20099}).static_band(), 16U);
  EXPECT_EQ(PortAllocator({30000, 32767}).static_band(), 86U);
  EXPECT_EQ(PortAllocator({20000, 32767}).static_band(), 128U);
}

TEST(PortAllocator, NeverHandsOutAPortThatIsInUse) {
  PortAllocator ports({20000, 20099});
  ASSERT_TRUE(ports.take(20042));
  EXPECT_FALSE(ports.take(20042));
  EXPECT_FALSE(ports.take(19999));
  EXPECT_FALSE(ports.take(20100));
  for (int i = 0; i < 99; ++i) EXPECT_NE(*ports.take_random(bind_any), 20042);
  EXPECT_EQ(ports.free(), 0U);
}

TEST(PortAllocator, APortSomebodyElseHasIsTriedOnceAndStaysFree) {
  PortAllocator ports({20000, 20009});
  std::multiset<std::uint16_t> tried;
  const auto only_20007 = [&](std::uint16_t port) -> Result<std::uint16_t> {
    tried.insert(port);
    return port == 20007 ? Result<std::uint16_t>(port) : taken(port);
  };
  EXPECT_EQ(*ports.take_random(only_20007), 20007);
  for (const std::uint16_t port : tried) EXPECT_EQ(tried.count(port), 1U) << port;
  EXPECT_EQ(ports.used(), 1U);
  EXPECT_EQ(ports.free(), 9U);

  tried.clear();
  const auto none = ports.take_random(only_20007);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kPortPoolExhausted);
  EXPECT_EQ(tried.size(), 9U);
  EXPECT_EQ(ports.free(), 9U);
}

TEST(PortAllocator, GivesUpAfterABoundedNumberOfPorts) {
  PortAllocator ports({20000, 32767});
  std::uint32_t calls = 0;
  const auto none = ports.take_random([&](std::uint16_t port) {
    ++calls;
    return taken(port);
  });
  ASSERT_FALSE(none);
  EXPECT_EQ(calls, PortAllocator::kDrawsMax);
  EXPECT_EQ(ports.used(), 0U);
}

TEST(PortAllocator, AnotherErrorEndsTheSearchAndLeavesThePortFree) {
  PortAllocator ports({20000, 32767});
  std::uint32_t calls = 0;
  const auto failed = ports.take_random([&](std::uint16_t) -> Result<std::uint16_t> {
    ++calls;
    return Error{ErrorCode::kResourceExhausted, "no descriptors", ""};
  });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(calls, 1U);
  EXPECT_EQ(ports.used(), 0U);
}

TEST(PortAllocator, StaysConsistentThroughManyTakesAndReturns) {
  PortAllocator ports({40000, 40255});
  std::vector<std::uint16_t> held;
  for (int i = 0; i < 20'000; ++i) {
    // Mostly full, and every third draw hits a port that another program has.
    const bool give = !held.empty() && (held.size() == 256 || i % 3 == 0);
    if (give) {
      const std::size_t which = static_cast<std::size_t>(i) * 7919 % held.size();
      ports.give_back(held[which]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
    } else {
      int tries = 0;
      const auto port =
          ports.take_random([&](std::uint16_t p) { return ++tries % 3 == 0 ? taken(p) : bind_any(p); });
      if (port) held.push_back(*port);
    }
    ASSERT_EQ(ports.used(), held.size());
  }
  EXPECT_GT(held.size(), 200U);
  const std::set<std::uint16_t> distinct(held.begin(), held.end());
  EXPECT_EQ(distinct.size(), held.size());
  for (std::uint16_t port = 40000; port <= 40255; ++port)
    EXPECT_EQ(ports.is_used(port), distinct.contains(port)) << port;
}

TEST(PortAllocator, TheWholeRangeOfTcpWorks) {
  PortAllocator ports({1, 65535});
  EXPECT_TRUE(ports.take(1));
  EXPECT_TRUE(ports.take(65535));
  EXPECT_EQ(ports.free(), 65533U);
}

TEST(PortAllocator, APortFromAnEarlierRangeIsNotOursToCount) {
  PortAllocator ports({20000, 20009});
  ports.give_back(30000);
  EXPECT_FALSE(ports.is_used(30000));
  EXPECT_EQ(ports.free(), 10U);
}

// --- Ports that rest.

using Seconds = std::chrono::seconds;
constexpr PortAllocator::Clock::time_point kNow(Seconds(1000));

TEST(RestingPorts, AnotherOwnerGetsThemOnceTheirTimeHasCome) {
  PortAllocator ports({20000, 20019});
  ASSERT_TRUE(ports.take(20017));
  ports.rest(20017, "alice", kNow + Seconds(60));
  EXPECT_EQ(ports.used(), 0U);
  EXPECT_EQ(ports.free(), 19U);
  EXPECT_FALSE(ports.is_used(20017));
  EXPECT_FALSE(ports.take(20017, "bob"));
  ports.end_rests(kNow + Seconds(59));
  EXPECT_FALSE(ports.take(20017, "bob"));
  ports.end_rests(kNow + Seconds(60));
  EXPECT_EQ(ports.resting(), 0U);
  EXPECT_TRUE(ports.take(20017, "bob"));
}

TEST(RestingPorts, TheirOwnerGetsThemAtOnceAndTheOldRestIsForgotten) {
  PortAllocator ports({20000, 20019});
  ASSERT_TRUE(ports.take(20017, "alice"));
  ports.rest(20017, "alice", kNow);
  ASSERT_TRUE(ports.take(20017, "alice"));
  EXPECT_EQ(ports.used(), 1U);
  ports.end_rests(kNow + Seconds(1));
  EXPECT_TRUE(ports.is_used(20017));
  ports.rest(20017, "alice", kNow + Seconds(60));
  ports.end_rests(kNow + Seconds(1));
  EXPECT_EQ(ports.resting(), 1U);
}

TEST(RestingPorts, AreNotDrawnWhileThereAreOthers) {
  PortAllocator ports({20000, 20009});
  for (std::uint16_t port = 20000; port < 20005; ++port) {
    ASSERT_TRUE(ports.take(port));
    ports.rest(port, "alice", kNow + Seconds(60));
  }
  for (int i = 0; i < 5; ++i) EXPECT_GE(ports.take_random(bind_any, "bob").value(), 20005);
}

// A tenant that creates and deletes all the time must not take the pool from the others.
TEST(RestingPorts, TheOneThatHasRestedForLongestIsGivenIfNoOtherIsLeft) {
  PortAllocator ports({20000, 20003});
  for (const auto port : std::to_array<std::uint16_t>({20002, 20000, 20003, 20001})) {
    ASSERT_TRUE(ports.take(port));
    ports.rest(port, port == 20003 ? "bob" : "alice", kNow + Seconds(60));
  }
  EXPECT_EQ(ports.free(), 0U);
  EXPECT_EQ(ports.take_random(bind_any, "bob").value(), 20003) << "its own first";
  EXPECT_EQ(ports.take_random(bind_any, "bob").value(), 20002);
  EXPECT_EQ(ports.take_random(bind_any, "bob").value(), 20000);
  EXPECT_EQ(ports.take_random(bind_any, "bob").value(), 20001);
  EXPECT_FALSE(ports.take_random(bind_any, "bob"));
  EXPECT_EQ(ports.used(), 4U);
}

TEST(RestingPorts, OneThatAnotherProgramHasBoundMeanwhileRestsOn) {
  PortAllocator ports({20000, 20000});
  ASSERT_TRUE(ports.take(20000));
  ports.rest(20000, "alice", kNow + Seconds(60));
  EXPECT_EQ(ports.take_random(taken, "alice").error().code, ErrorCode::kPortPoolExhausted);
  EXPECT_EQ(ports.resting(), 1U);
  EXPECT_EQ(ports.take_random(bind_any, "alice").value(), 20000);
}

}  // namespace
}  // namespace portway
