#include "config/port_allocator.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
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
    // Mostly full, and every third draw meets a port that somebody else has.
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

class EphemeralOverlapTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "portway-ports-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    files_ = {directory_ / "range", directory_ / "reserved"};
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::optional<EphemeralOverlap> overlap(const PortRange& range, const PortRange& ephemeral,
                                          const std::string& reserved = "") {
    std::ofstream(files_.range) << ephemeral.first << '\t' << ephemeral.last << '\n';
    std::ofstream(files_.reserved) << reserved << '\n';
    return ephemeral_overlap(range, files_);
  }

  std::filesystem::path directory_;
  EphemeralPortFiles files_;
};

TEST_F(EphemeralOverlapTest, RangesApartAreFine) {
  EXPECT_FALSE(overlap({20000, 32767}, {32768, 60999}));
  EXPECT_FALSE(overlap({61000, 65535}, {32768, 60999}));
}

TEST_F(EphemeralOverlapTest, AnOverlapIsCountedAndTheSysctlNamed) {
  const auto found = overlap({30000, 40000}, {32768, 60999}, "8080,9148");
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->problem.starts_with("7233 ports of ports.range 30000-40000")) << found->problem;
  EXPECT_TRUE(found->remedy.find("leaves 20999 ports") != std::string::npos) << found->remedy;
  EXPECT_TRUE(found->remedy.ends_with("net.ipv4.ip_local_reserved_ports=8080,9148,32768-40000"))
      << found->remedy;
}

TEST_F(EphemeralOverlapTest, ReservedPortsDoNotCount) {
  EXPECT_FALSE(overlap({30000, 40000}, {32768, 60999}, "32768-40000"));
  EXPECT_FALSE(overlap({30000, 40000}, {32768, 60999}, "80,32768-35000,35001,35002-65535"));
  const auto found = overlap({30000, 40000}, {32768, 60999}, "32768-39999");
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->problem.starts_with("1 port")) << found->problem;
  EXPECT_TRUE(found->remedy.ends_with("=32768-40000")) << "not a longer list each time: " << found->remedy;
}

TEST_F(EphemeralOverlapTest, TheKernelHandsOutWhatIsNotReserved) {
  const auto ports = [&](const PortRange& range, const std::string& reserved) {
    (void)overlap({1, 1}, range, reserved);
    std::string text;
    for (const PortRange& run : ephemeral_ports(files_)) text += to_string(run) + " ";
    return text;
  };
  EXPECT_EQ(ports({32768, 60999}, ""), "32768-60999 ");
  EXPECT_EQ(ports({32768, 60999}, "80,32768-35000,35002,60999,61000-65535"), "35001-35001 35003-60998 ");
  EXPECT_EQ(ports({1024, 65535}, "1-1030,65535"), "1031-65534 ");
  EXPECT_EQ(ports({40000, 40001}, "30000-50000"), "");
  std::string many = "1025";
  for (int port = 1027; port < 65535; port += 2) many += "," + std::to_string(port);
  EXPECT_EQ(ports({1024, 1030}, many), "1024-1024 1026-1026 1028-1028 1030-1030 ");
  EXPECT_TRUE(ephemeral_ports({"/nonexistent/range", "/nonexistent/reserved"}).empty());
}

TEST_F(EphemeralOverlapTest, WithoutTheFilesNothingIsSaid) {
  EXPECT_FALSE(ephemeral_overlap({30000, 40000}, {"/nonexistent/range", "/nonexistent/reserved"}));
}

TEST_F(EphemeralOverlapTest, ReservingIsNotSuggestedWhereTheNodeCouldNotConnectAnyMore) {
  const auto found = overlap({32768, 60999}, {32768, 60999});
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->remedy.find("would leave 0 ports") != std::string::npos) << found->remedy;
  EXPECT_EQ(found->remedy.find("ip_local_reserved_ports"), std::string::npos) << found->remedy;
  EXPECT_TRUE(found->remedy.find("ip_local_port_range=\"10000 32767\" (22768 ports)") != std::string::npos)
      << found->remedy;
}

/// What a remedy asks for, as far as it asks: the last value of its kind in the text.
std::string after(const std::string& text, const std::string& name) {
  const std::size_t at = text.rfind(name);
  return at == std::string::npos ? "" : text.substr(at + name.size());
}

// Whatever the node looks like: who follows a remedy is warned no more, and can still connect.
TEST_F(EphemeralOverlapTest, ARemedyLeavesNoOverlapAndEnoughPorts) {
  const auto every_other = [](int first, int last) {
    std::string list = std::to_string(first);
    for (int port = first + 2; port <= last; port += 2) list += "," + std::to_string(port);
    return list;
  };
  const std::string long_list = every_other(2001, 19999);
  struct Shape {
    PortRange range;
    PortRange ephemeral;
    std::string reserved;
  };
  const std::vector<Shape> shapes = {{{30000, 40000}, {32768, 60999}, ""},
                                     {{32768, 60999}, {32768, 60999}, ""},
                                     {{30000, 60000}, {32768, 60999}, ""},
                                     {{1024, 65535}, {32768, 60999}, ""},
                                     {{1024, 65535}, {1024, 65535}, ""},
                                     {{20000, 32767}, {1024, 65535}, ""},
                                     {{10000, 65535}, {1024, 65535}, ""},
                                     {{1024, 60000}, {1024, 65535}, "8080,9000-9100"},
                                     {{20000, 32767}, {16384, 33000}, ""},
                                     {{1024, 65535}, {60000, 60999}, ""},
                                     {{1024, 65535}, {1024, 65535}, "1024-60000"},
                                     {{40000, 40000}, {32768, 60999}, ""},
                                     {{20000, 32767}, {1024, 65535}, long_list},
                                     {{20000, 32767}, {1024, 65535}, every_other(15001, 45001)},
                                     {{1024, 65535}, {1024, 65535}, long_list},
                                     {{32768, 60999}, {32768, 60999}, "33000,34000-35000"}};
  for (const Shape& shape : shapes) {
    const auto found = overlap(shape.range, shape.ephemeral, shape.reserved);
    ASSERT_TRUE(found) << to_string(shape.range);
    SCOPED_TRACE(to_string(shape.range) + " in " + to_string(shape.ephemeral) + ": " + found->remedy);
    EXPECT_LT(found->remedy.size(), 1000U) << "for a line of a log";
    PortRange range = shape.range;
    std::string reserved = shape.reserved;
    bool followed = false;
    if (const auto text = after(found->remedy, "Set ports.range to "); !text.empty()) {
      range = parse_port_range(text.substr(0, text.find_first_not_of("0123456789-"))).value();
      EXPECT_GE(range.first, 1024);
      followed = true;
    }
    if (auto text = after(found->remedy, "ip_local_reserved_ports="); !text.empty()) {
      const std::string also = "\"$(sysctl -n net.ipv4.ip_local_reserved_ports),";
      if (text.starts_with(also)) text = reserved + "," + text.substr(also.size());
      reserved = text.substr(0, text.find('"'));
      followed = true;
    }
    if (followed) {
      EXPECT_FALSE(overlap(range, shape.ephemeral, reserved));
    }
    if (const auto text = after(found->remedy, "ip_local_port_range=\""); !text.empty()) {
      PortRange ephemeral;
      std::istringstream(text) >> ephemeral.first >> ephemeral.last;
      EXPECT_GE(ephemeral.size(), kEphemeralPortsMin);
      EXPECT_NE(ephemeral.first % 2, ephemeral.last % 2);
      EXPECT_FALSE(overlap(shape.range, ephemeral, shape.reserved));
      followed = true;
    }
    EXPECT_TRUE(followed);
  }
}

}  // namespace
}  // namespace portway
