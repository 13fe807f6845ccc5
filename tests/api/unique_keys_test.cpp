#include "api/unique_keys.h"

#include <gtest/gtest.h>

namespace portway {
namespace {

TEST(DuplicateKey, IsFoundAtAnyDepthAndOnlyInOneObject) {
  EXPECT_EQ(duplicate_key(R"({"a": [{"b": 1, "c": {"d": 1, "d": 2}}]})"), "d");
  EXPECT_EQ(duplicate_key(R"({"": 1, "": 2})"), "");
  EXPECT_EQ(duplicate_key(R"({"a": {"a": {"b": "a"}}, "b": [{"a": 1}, {"a": 1}]})"), std::nullopt);
  EXPECT_EQ(duplicate_key(R"({"a": 1, "a")"), "a");
  EXPECT_EQ(duplicate_key("nothing"), std::nullopt);
}

}  // namespace
}  // namespace portway
