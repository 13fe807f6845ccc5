// Which clients are admitted, and how fast bytes flow, on the test's own clock.
#include "proxy/admission.h"

#include <gtest/gtest.h>

namespace portway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

IpAddress address(const char* text) {
  return *parse_address(text);
}

TEST(Admission, WithoutLimitsNothingIsAsked) {
  Admission admission;
  EXPECT_FALSE(admission.limited());
  admission.set_limits({.allowed_cidrs = {}, .max_bytes_per_second = 1000});
  EXPECT_FALSE(admission.limited());  // bytes are ByteRate's
  admission.set_limits({.allowed_cidrs = {}, .max_connections = 1});
  EXPECT_TRUE(admission.limited());
}

TEST(Admission, OnlyTheAllowedNetworksMayConnect) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {*Cidr::parse("198.18.0.0/24"), *Cidr::parse("2001:db8::/32")}});
  EXPECT_EQ(admission.ask(address("198.18.0.7"), seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(address("2001:db8::1"), seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(address("198.18.1.7"), seconds(1)), RejectReason::kSourceNotAllowed);
}

TEST(Admission, CountsConnectionsUntilTheyLeave) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {}, .max_connections = 2});
  const IpAddress client = address("198.18.0.7");
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(client, seconds(1)), RejectReason::kForwardConnectionsMax);
  admission.leave(client);
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
}

TEST(Admission, OneSourceCannotTakeEverything) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {}, .max_connections_per_source = 1});
  EXPECT_EQ(admission.ask(address("198.18.0.7"), seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(address("198.18.0.7"), seconds(1)), RejectReason::kSourceConnectionsMax);
  EXPECT_EQ(admission.ask(address("198.18.0.8"), seconds(1)), std::nullopt);
  // An IPv6 client has 2^64 addresses: they count as one.
  EXPECT_EQ(admission.ask(address("2001:db8::1"), seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(address("2001:db8::2"), seconds(1)), RejectReason::kSourceConnectionsMax);
  EXPECT_EQ(admission.ask(address("2001:db8:0:1::1"), seconds(1)), std::nullopt);
}

TEST(Admission, NewConnectionsComeAtTheirRateWithBurstsOfASecond) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {}, .max_new_connections_per_second = 10});
  const IpAddress client = address("198.18.0.7");
  for (int i = 0; i < 10; ++i) EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(client, seconds(1)), RejectReason::kNewConnectionRate);
  EXPECT_EQ(admission.ask(client, seconds(1) + milliseconds(101)), std::nullopt);
  EXPECT_EQ(admission.ask(client, seconds(1) + milliseconds(101)), RejectReason::kNewConnectionRate);
}

TEST(Admission, LimitsThatChangeHoldForThoseWhoComeAfterwards) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {}, .max_connections = 1});
  const IpAddress client = address("198.18.0.7");
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  admission.set_limits({.allowed_cidrs = {}, .max_connections = 2});
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(client, seconds(1)), RejectReason::kForwardConnectionsMax);
}

TEST(Admission, AChangeIsNoRefill) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {}, .max_new_connections_per_second = 2});
  const IpAddress client = address("198.18.0.7");
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  for (std::uint32_t other = 10; other < 20; ++other) {
    admission.set_limits(
        {.allowed_cidrs = {}, .max_connections = other, .max_new_connections_per_second = 2});
    EXPECT_EQ(admission.ask(client, seconds(1)), RejectReason::kNewConnectionRate);
  }
  EXPECT_EQ(admission.ask(client, seconds(2)), std::nullopt);
  admission.set_limits({.allowed_cidrs = {}, .max_new_connections_per_second = 100});
  EXPECT_EQ(admission.ask(client, seconds(2)), std::nullopt) << "one was left";
  EXPECT_EQ(admission.ask(client, seconds(2)), RejectReason::kNewConnectionRate);
}

TEST(Admission, ToBeAskedBeforehandCountsNothing) {
  Admission admission;
  admission.set_limits({.allowed_cidrs = {}, .max_connections = 2, .max_new_connections_per_second = 1});
  const IpAddress client = address("198.18.0.7");
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(admission.refuses(client, seconds(1)));
  EXPECT_EQ(admission.ask(client, seconds(1)), std::nullopt);
  EXPECT_TRUE(admission.refuses(client, seconds(1)));
  EXPECT_EQ(admission.ask(client, seconds(2)), std::nullopt);
  EXPECT_TRUE(admission.refuses(client, seconds(10)));
}

TEST(ByteRate, LetsBytesThroughAtItsRate) {
  ByteRate rate;
  EXPECT_EQ(rate.limit(), 0U);
  rate.set_limit(1'000'000);
  std::uint64_t moved = 0;
  ByteRate::Time now = seconds(1);
  for (const ByteRate::Time end = now + seconds(10); now < end;) {
    const std::uint64_t allowed = rate.allowance(rate.limit(), now);
    if (allowed == 0) {
      now += rate.wait(now);
      continue;
    }
    rate.spend(rate.limit(), allowed, now);
    moved += allowed;
  }
  EXPECT_GE(moved, 9'900'000U);
  EXPECT_LE(moved, 10'100'000U);
}

// What had been earned since the turn before was granted at once: 200 kB/s moved in pieces of 70 bytes.
TEST(ByteRate, AStreamMovesInPiecesThatAreWorthATurn) {
  ByteRate rate;
  rate.set_limit(200'000);
  ByteRate::Time now = seconds(1);
  std::size_t moves = 0;
  for (const ByteRate::Time end = now + seconds(1); now < end; now += std::chrono::microseconds(50)) {
    const std::uint64_t allowed = rate.allowance(rate.limit(), now);
    if (allowed == 0) continue;
    rate.spend(rate.limit(), allowed, now);
    ++moves;
  }
  EXPECT_LE(moves, seconds(1) / ByteRate::kLeast + 1);
}

TEST(ByteRate, TheSlowestRateStillMoves) {
  ByteRate rate;
  rate.set_limit(1);
  EXPECT_EQ(rate.allowance(rate.limit(), seconds(1)), 1U);
  rate.spend(1, 1, seconds(1));
  EXPECT_EQ(rate.allowance(rate.limit(), seconds(1)), 0U);
  EXPECT_LE(rate.wait(seconds(1)), seconds(1));
  EXPECT_EQ(rate.allowance(rate.limit(), seconds(2)), 1U);
}

TEST(ByteRate, ALowerLimitMakesNobodyWaitForWhatWasMovedBefore) {
  ByteRate rate;
  rate.set_limit(1'000'000'000);
  const std::uint64_t before = rate.limit();
  const std::uint64_t allowed = rate.allowance(before, seconds(1));
  rate.set_limit(1'000);  // while they are on their way
  rate.spend(before, allowed, seconds(1));
  EXPECT_LE(rate.wait(seconds(1)), ByteRate::kBurst);
  EXPECT_GE(rate.allowance(rate.limit(), seconds(1) + ByteRate::kBurst), 1U);
}

TEST(ByteRate, WhatWasNotUsedIsNotSavedUp) {
  ByteRate rate;
  rate.set_limit(1'000'000);
  rate.spend(rate.limit(), 1000, seconds(1));
  EXPECT_LE(rate.allowance(rate.limit(), seconds(100)), 50'001U);
}

}  // namespace
}  // namespace portway
