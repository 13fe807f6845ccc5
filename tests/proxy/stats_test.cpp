#include "proxy/stats.h"

#include <gtest/gtest.h>

#include <set>

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
}

TEST(Stats, TheLastReasonsAreNamedRight) {
  EXPECT_EQ(to_string(CloseSide::kNode), "node");
  EXPECT_EQ(to_string(CloseHow::kShutdown), "shutdown");
  EXPECT_EQ(to_string(ConnectError::kOther), "other");
  EXPECT_EQ(to_string(RejectReason::kDraining), "draining");
}

}  // namespace
}  // namespace portway
