#include "base/counter.h"

#include <gtest/gtest.h>

#include <array>

namespace portway {
namespace {

TEST(Histogram, PutsAValueOnABoundIntoTheBucketBelowIt) {
  Histogram<2> histogram;
  const std::array<double, 2> bounds_s = {0.001, 0.1};
  histogram.observe_us(1000, bounds_s);
  histogram.observe_us(1001, bounds_s);
  histogram.observe_us(100'001, bounds_s);
  EXPECT_EQ(histogram.buckets[0].get(), 1);
  EXPECT_EQ(histogram.buckets[1].get(), 1);
  EXPECT_EQ(histogram.buckets[2].get(), 1);
  EXPECT_EQ(histogram.sum_us.get(), 102'002);
}

}  // namespace
}  // namespace portway
