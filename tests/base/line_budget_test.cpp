#include "base/line_budget.h"

#include <gtest/gtest.h>

#include <chrono>

namespace portway {
namespace {

TEST(LineBudget, HasAShareForEachAndOneForAll) {
  LineBudget budget(3, 2);
  const auto now = LineBudget::Clock::now();
  EXPECT_TRUE(budget.take("alice", now));
  EXPECT_TRUE(budget.take("alice", now));
  EXPECT_FALSE(budget.take("alice", now));
  EXPECT_TRUE(budget.take("bob", now));
  EXPECT_FALSE(budget.take("bob", now)) << "three in all";
  EXPECT_EQ(budget.take_left_out(), 2U);
  EXPECT_EQ(budget.take_left_out(), 0U);
  EXPECT_TRUE(budget.take("alice", now + std::chrono::seconds(1)));
}

}  // namespace
}  // namespace portway
