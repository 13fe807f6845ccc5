#include "control/node_faults.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace portway {
namespace {

TEST(NodeFaults, AreCountedByPartAndMendedOneByOne) {
  NodeFaults faults;
  EXPECT_EQ(faults.summary(), "");
  faults.set(FaultPart::kAccessLog, {}, "no space");
  faults.set(FaultPart::kApi, "127.0.0.1:80", "taken");
  faults.set(FaultPart::kApi, "127.0.0.1:81", "taken");
  EXPECT_EQ(faults.counts()[static_cast<std::size_t>(FaultPart::kApi)], 2U);
  EXPECT_EQ(faults.summary(), "api 127.0.0.1:80, api 127.0.0.1:81, access_log");
  faults.clear(FaultPart::kApi, "127.0.0.1:80");
  faults.clear(FaultPart::kApi, "127.0.0.1:80");
  EXPECT_EQ(faults.summary(), "api 127.0.0.1:81, access_log");
  faults.clear(FaultPart::kAccessLog);
  EXPECT_FALSE(faults.has(FaultPart::kAccessLog));
  EXPECT_TRUE(faults.has(FaultPart::kApi));
}

TEST(NodeFaults, KeepTheTimeOfTheFirstReason) {
  NodeFaults faults;
  faults.set(FaultPart::kAdminKey, {}, "mode 644");
  const Timestamp since = faults.all().at(0).since;
  faults.set(FaultPart::kAdminKey, {}, "not a key");
  ASSERT_EQ(faults.all().size(), 1U);
  EXPECT_EQ(faults.all()[0].detail, "not a key");
  EXPECT_EQ(faults.all()[0].since, since);
}

TEST(NodeFaults, HaveDistinctNames) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < kFaultParts; ++i) names.emplace_back(to_string(static_cast<FaultPart>(i)));
  EXPECT_EQ(std::ranges::count(names, "unknown"), 0);
  std::ranges::sort(names);
  EXPECT_EQ(std::ranges::adjacent_find(names), names.end());
}

}  // namespace
}  // namespace portway
