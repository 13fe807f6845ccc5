#include "base/forward.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>
#include <vector>

namespace portway {
namespace {

TEST(UuidV7, HasItsVersionVariantAndTime) {
  const auto before = now();
  const Uuid id = make_uuid();
  const auto after = now();
  EXPECT_EQ(id.data[6] >> 4, 7);
  EXPECT_EQ(id.data[8] >> 6, 2);
  std::int64_t time_ms = 0;
  for (std::size_t i = 0; i < 6; ++i) time_ms = time_ms << 8 | id.data[i];
  EXPECT_GE(time_ms, before.time_since_epoch().count());
  // Ids made faster than the counter allows run ahead of the clock, but by less than a second.
  EXPECT_LE(time_ms, after.time_since_epoch().count() + 1000);
}

TEST(UuidV7, AscendsAlsoWithinAMillisecondAndPastTheCounter) {
  Uuid previous = make_uuid();
  for (int i = 0; i < 50'000; ++i) {
    const Uuid next = make_uuid();
    ASSERT_LT(previous, next) << i;
    ASSERT_LT(to_string(previous), to_string(next)) << i;
    previous = next;
  }
}

TEST(UuidV7, IsUniqueAcrossThreads) {
  std::vector<std::vector<Uuid>> made(4);
  {
    std::vector<std::jthread> threads;
    for (auto& mine : made) {
      threads.emplace_back([&mine] {
        for (int i = 0; i < 2'000; ++i) mine.push_back(make_uuid());
      });
    }
  }
  std::set<Uuid> all;
  for (const auto& mine : made) all.insert(mine.begin(), mine.end());
  EXPECT_EQ(all.size(), 8'000U);
}

TEST(UuidText, GoesBothWays) {
  const std::string_view text = "0190163d-8694-739b-aea5-966c26f8ad91";
  const auto id = parse_uuid(text);
  ASSERT_TRUE(id);
  EXPECT_EQ(to_string(*id), text);
  EXPECT_EQ(parse_uuid("0190163D-8694-739B-AEA5-966C26F8AD91"), id);
  const Uuid made = make_uuid();
  EXPECT_EQ(parse_uuid(to_string(made)), made);
}

TEST(UuidText, AnythingElseIsRefused) {
  for (const char* text : {"", "0190163d-8694-739b-aea5-966c26f8ad9", "0190163d-8694-739b-aea5-966c26f8ad911",
                           "0190163d8694-739b-aea5-966c26f8ad91-", "{190163d-8694-739b-aea5-966c26f8ad9}",
                           "0190163d-8694-739b-aea5-966c26f8ad9g", "-190163d-8694-739b-aea5-966c26f8ad91",
                           "0190163d_8694_739b_aea5_966c26f8ad91"}) {
    EXPECT_FALSE(parse_uuid(text)) << text;
  }
}

TEST(Rfc3339, IsUtcWithMilliseconds) {
  EXPECT_EQ(to_rfc3339(Timestamp(std::chrono::milliseconds(0))), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(to_rfc3339(std::chrono::sys_days(std::chrono::January / 31 / 2026) + std::chrono::hours(12)),
            "2026-01-31T12:00:00.000Z");
  EXPECT_EQ(to_rfc3339(Timestamp(std::chrono::milliseconds(1'709'251'199'999))), "2024-02-29T23:59:59.999Z");
  EXPECT_EQ(to_rfc3339(Timestamp(std::chrono::milliseconds(-1))), "1969-12-31T23:59:59.999Z");
}

TEST(Rfc3339, IsReadFromAnyZone) {
  const Timestamp noon = std::chrono::sys_days(std::chrono::January / 31 / 2026) + std::chrono::hours(12);
  for (const char* text :
       {"2026-01-31T12:00:00Z", "2026-01-31t12:00:00z", "2026-01-31T12:00:00.000Z",
        "2026-01-31T12:00:00+00:00", "2026-01-31T13:00:00+01:00", "2026-01-31T06:30:00-05:30",
        "2026-02-01T11:59:00+23:59", "2026-01-31T12:00:00.000999999Z"}) {
    EXPECT_EQ(parse_rfc3339(text), noon) << text;
  }
  EXPECT_EQ(parse_rfc3339("2026-01-31T12:00:00.25Z"), noon + std::chrono::milliseconds(250));
  EXPECT_EQ(parse_rfc3339("1970-01-01T00:00:00Z"), Timestamp());
  EXPECT_EQ(to_rfc3339(parse_rfc3339("9999-12-31T23:59:59.999Z").value()), "9999-12-31T23:59:59.999Z");
}

TEST(Rfc3339, AnythingElseIsRefused) {
  for (const char* text : {"",
                           "2026-01-31",
                           "2026-01-31T12:00:00",
                           "2026-01-31 12:00:00Z",
                           "2026-01-31T12:00Z",
                           "2026-02-29T12:00:00Z",
                           "2026-13-01T12:00:00Z",
                           "2026-00-01T12:00:00Z",
                           "2026-01-31T24:00:00Z",
                           "2026-01-31T12:60:00Z",
                           "2026-01-31T12:00:60Z",
                           "2026-01-31T12:00:00.Z",
                           "2026-01-31T12:00:00+1:00",
                           "2026-01-31T12:00:00+24:00",
                           "2026-01-31T12:00:00+0100",
                           "2026-01-31T12:00:00Zx",
                           " 2026-01-31T12:00:00Z",
                           "1969-12-31T23:59:59Z",
                           "1970-01-01T00:00:00+00:01",
                           "9999-12-31T23:59:59-00:01",
                           "+026-01-31T12:00:00Z"}) {
    EXPECT_FALSE(parse_rfc3339(text)) << text;
  }
}

TEST(TrafficLimits, TheStricterOneOfAForwardsAndItsProfilesIsInEffect) {
  const TrafficLimits own{.allowed_cidrs = {*Cidr::parse("198.18.0.0/15")},
                          .max_connections = 10,
                          .max_connections_per_source = 5,
                          .max_bytes_per_second = 1000};
  const TrafficLimits profile{.allowed_cidrs = {},
                              .max_connections = 20,
                              .max_connections_per_source = 2,
                              .max_new_connections_per_second = 7,
                              .idle_timeout = std::chrono::seconds(60)};
  const TrafficLimits expected{.allowed_cidrs = own.allowed_cidrs,
                               .max_connections = 10,
                               .max_connections_per_source = 2,
                               .max_new_connections_per_second = 7,
                               .max_bytes_per_second = 1000,
                               .idle_timeout = std::chrono::seconds(60)};
  EXPECT_EQ(stricter(own, profile), expected);
  EXPECT_EQ(names_of(limits_of_profile(own, profile)),
            (std::vector<std::string_view>{"max_connections_per_source", "max_new_connections_per_second"}));
  EXPECT_EQ(stricter(own, {}), own);
  EXPECT_EQ(stricter({}, profile), profile);
  EXPECT_EQ(stricter({}, {}), TrafficLimits{});
}

TEST(InstanceState, HasNames) {
  EXPECT_EQ(to_string(InstanceState::kRunning), "running");
  EXPECT_EQ(to_string(InstanceState::kStopped), "stopped");
}

}  // namespace
}  // namespace portway
