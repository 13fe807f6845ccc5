#include "metrics/stats.h"

#include <gmock/gmock.h>

#include <set>

#include "metrics/api_stats.h"

namespace portway {
namespace {

template <class Enum>
std::set<std::string_view> names(std::size_t count) {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < count; ++i) names.insert(to_string(static_cast<Enum>(i)));
  return names;
}

TEST(Stats, EveryReasonHasANameOfItsOwn) {
  EXPECT_EQ(names<CloseSide>(kCloseSides).size(), kCloseSides);
  EXPECT_EQ(names<CloseHow>(kCloseHows).size(), kCloseHows);
  EXPECT_EQ(names<ConnectError>(kConnectErrors).size(), kConnectErrors);
  EXPECT_EQ(names<RejectReason>(kRejectReasons).size(), kRejectReasons);
  EXPECT_EQ(names<PortAllocationError>(kPortAllocationErrors).size(), kPortAllocationErrors);
}

TEST(Stats, TheLastReasonsAreNamedRight) {
  EXPECT_EQ(to_string(CloseSide::kNode), "node");
  EXPECT_EQ(to_string(CloseHow::kShutdown), "shutdown");
  EXPECT_EQ(to_string(ConnectError::kOther), "other");
  EXPECT_EQ(to_string(RejectReason::kDraining), "draining");
  EXPECT_EQ(to_string(PortAllocationError::kResources), "resources");
}

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

TEST(ApiStats, CountsAnswersByRouteAndCode) {
  ApiStats stats;
  stats.count_request("/instances/{id}", 200, std::chrono::milliseconds(2));
  stats.count_request("/instances/{id}", 200, std::chrono::milliseconds(3));
  stats.count_request("/instances/{id}", 404, std::chrono::milliseconds(1));
  EXPECT_THAT(stats.requests, testing::ElementsAre(testing::Pair(testing::Pair("/instances/{id}", 200), 2),
                                                   testing::Pair(testing::Pair("/instances/{id}", 404), 1)));
  EXPECT_EQ(stats.request_duration.sum_us.get(), 6000);
}

}  // namespace
}  // namespace portway
