#include "proxy/timer_wheel.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace portway {
namespace {

using std::chrono::milliseconds;

std::vector<std::uint32_t> expired(TimerWheel& wheel, Nanos now) {
  std::vector<std::uint32_t> indices;
  wheel.expire(now, [&indices](std::uint32_t index) { indices.push_back(index); });
  return indices;
}

TEST(TimerWheel, ExpiresADeadlineOnceAndNeverEarly) {
  TimerWheel wheel(milliseconds(0));
  wheel.set(7, milliseconds(100));
  EXPECT_TRUE(expired(wheel, milliseconds(99)).empty());
  EXPECT_EQ(expired(wheel, milliseconds(104)), std::vector<std::uint32_t>{7});
  EXPECT_TRUE(expired(wheel, milliseconds(60'000)).empty());
}

TEST(TimerWheel, ADeadlineBeyondATurnWaitsForItsTurn) {
  TimerWheel wheel(milliseconds(0));
  wheel.set(1, std::chrono::hours(1));
  for (int s = 1; s < 3600; s += 7) EXPECT_TRUE(expired(wheel, std::chrono::seconds(s)).empty());
  EXPECT_EQ(expired(wheel, std::chrono::seconds(3601)).size(), 1U);
}

TEST(TimerWheel, ADeadlineThatHasPassedIsDueWithTheNextTick) {
  TimerWheel wheel(milliseconds(1000));
  wheel.set(1, milliseconds(10));
  EXPECT_LE(wheel.until_next(milliseconds(1000)), TimerWheel::kTick);
  EXPECT_EQ(expired(wheel, milliseconds(1004)).size(), 1U);
}

TEST(TimerWheel, KnowsHowLongNothingIsDue) {
  TimerWheel wheel(milliseconds(0));
  EXPECT_EQ(wheel.until_next(milliseconds(0)), TimerWheel::kNever);
  wheel.set(1, milliseconds(5000));
  EXPECT_GE(wheel.until_next(milliseconds(0)), milliseconds(5000));
  EXPECT_LE(wheel.until_next(milliseconds(0)), milliseconds(5000) + TimerWheel::kTick);
  wheel.clear(1);
  EXPECT_EQ(wheel.until_next(milliseconds(0)), TimerWheel::kNever);
}

TEST(TimerWheel, AgreesWithASortedListWhateverIsSetMovedAndCleared) {
  std::mt19937_64 random(20);
  TimerWheel wheel(milliseconds(0));
  std::map<std::uint32_t, Nanos> model;
  Nanos now{0};
  for (int step = 0; step < 20'000; ++step) {
    const auto index = static_cast<std::uint32_t>(random() % 64);
    if (random() % 8 == 0) {
      wheel.clear(index);
      model.erase(index);
    } else {
      const Nanos deadline = now + milliseconds(random() % (random() % 16 == 0 ? 100'000 : 500));
      wheel.set(index, deadline);
      model[index] = deadline;
    }
    now += milliseconds(random() % 20);
    for (const std::uint32_t each : expired(wheel, now)) {
      ASSERT_TRUE(model.contains(each));
      EXPECT_LE(model[each], now);
      model.erase(each);
    }
    for (const auto& [each, deadline] : model)
      ASSERT_GT(deadline + TimerWheel::kTick, now) << each << " is late";
  }
}

}  // namespace
}  // namespace portway
