#include "control/api_stats.h"

#include <gmock/gmock.h>

#include <set>

namespace portway {
namespace {

TEST(ApiStats, EveryPortAllocationErrorHasANameOfItsOwn) {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < kPortAllocationErrors; ++i)
    names.insert(to_string(static_cast<PortAllocationError>(i)));
  EXPECT_EQ(names.size(), kPortAllocationErrors);
  EXPECT_EQ(to_string(PortAllocationError::kResources), "resources");
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
