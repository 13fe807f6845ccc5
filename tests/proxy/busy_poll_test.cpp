#include "proxy/busy_poll.h"

#include <gtest/gtest.h>

namespace portway {
namespace {

using namespace std::chrono_literals;

constexpr Nanos kMax = 50us;

BusyPoll grown() {
  BusyPoll poll(kMax);
  while (poll.window() < kMax) poll.happened(poll.window() + 1us);
  return poll;
}

TEST(BusyPoll, BeginsAsleep) {
  EXPECT_EQ(BusyPoll(kMax).window(), 0us);
}

TEST(BusyPoll, NeverLooksWhereItIsTurnedOff) {
  BusyPoll poll(0us);
  for (int i = 0; i < 100; ++i) poll.happened(1us);
  EXPECT_EQ(poll.window(), 0us);
}

TEST(BusyPoll, ShortSleepsOpenTheWindowUpToItsMaximum) {
  BusyPoll poll(kMax);
  Nanos before = poll.window();
  for (int i = 0; i < 3; ++i) {
    poll.happened(40us);
    EXPECT_GT(poll.window(), before);
    before = poll.window();
  }
  for (int i = 0; i < 100; ++i) poll.happened(1us);
  EXPECT_LE(poll.window(), kMax);
  EXPECT_EQ(grown().window(), kMax);
}

TEST(BusyPoll, AWindowThatFindsSomethingStaysOpen) {
  BusyPoll poll = grown();
  for (int i = 0; i < 1000; ++i) poll.happened(i % 10 == 0 ? 60us : 20us);
  EXPECT_EQ(poll.window(), kMax);
}

TEST(BusyPoll, ALongSilenceClosesIt) {
  BusyPoll poll = grown();
  poll.happened(1s);
  EXPECT_EQ(poll.window(), 0us);
}

TEST(BusyPoll, SparseEventsAreSleptFor) {
  BusyPoll poll(kMax);
  for (int i = 0; i < 1000; ++i) {
    poll.happened(1ms);
    ASSERT_EQ(poll.window(), 0us);
  }
}

// Events that come just after the window are the worst case. At most a tenth of the time is spent polling.
TEST(BusyPoll, EventsThatAreAlwaysTooLateAreSleptForMostly) {
  BusyPoll poll(kMax);
  Nanos looked{0};
  Nanos passed{0};
  for (int i = 0; i < 10'000; ++i) {
    looked += poll.window();
    passed += 60us;
    poll.happened(60us);
  }
  EXPECT_LT(looked, passed / 10);
}

}  // namespace
}  // namespace portway
