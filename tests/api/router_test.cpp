#include "api/router.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace portway {
namespace {

Result<Response> no_answer(const Call&) {
  return Response{};
}

Route route(std::string_view method, std::string_view pattern) {
  return {std::string(method), std::string(pattern), Access::kTenant, {}, ReadHandler(no_answer)};
}

const Router kRouter({route("POST", "/things"), route("GET", "/things"), route("PUT", "/things/{id}"),
                      route("GET", "/things/{id}/parts/{part}"), route("POST", "/things:batch"),
                      route("DELETE", "/things/{id}")});

using Path = std::vector<std::string>;

TEST(Router, FindsTheRouteOfAMethodAndAPath) {
  const auto match = kRouter.find("POST", {"things"});
  ASSERT_NE(match.route, nullptr);
  EXPECT_EQ(match.route->method, "POST");
  EXPECT_EQ(match.route->pattern, "/things");
  EXPECT_EQ(match.pattern, "/things");
  EXPECT_TRUE(match.path.empty());
}

TEST(Router, GivesTheSegmentsThatStandForParameters) {
  const auto match = kRouter.find("GET", {"things", "a/b", "parts", ""});
  ASSERT_NE(match.route, nullptr);
  EXPECT_EQ(match.path, (Path{"a/b", ""})) << "a decoded slash does not split a segment";
}

TEST(Router, AnswersHeadWhereItAnswersGet) {
  const auto match = kRouter.find("HEAD", {"things"});
  ASSERT_NE(match.route, nullptr);
  EXPECT_EQ(match.route->method, "GET");
  EXPECT_EQ(kRouter.find("HEAD", {"things", "a"}).route, nullptr);
}

TEST(Router, ListsThePathsMethodsForAllow) {
  const auto match = kRouter.find("PATCH", {"things"});
  EXPECT_EQ(match.route, nullptr);
  EXPECT_EQ(match.allowed, "POST, GET, HEAD, OPTIONS");
  EXPECT_EQ(match.pattern, "/things") << "requests are counted by their path, whatever their method";
  EXPECT_EQ(kRouter.find("GET", {"things", "a"}).allowed, "PUT, DELETE, OPTIONS");
}

TEST(Router, KnowsNoOtherPaths) {
  for (const Path& path : {Path{}, Path{""}, Path{"thing"}, Path{"things", "a", "parts"},
                           Path{"things:other"}, Path{"things", "a", "parts", "b", "c"}, Path{"Things"}}) {
    const auto match = kRouter.find("GET", path);
    EXPECT_EQ(match.route, nullptr);
    EXPECT_EQ(match.allowed, "");
    EXPECT_EQ(match.pattern, "other");
  }
}

TEST(Router, APathMayBeginWithTheVersion) {
  const auto match = kRouter.find("GET", {"v1", "things", "a", "parts", "b"});
  ASSERT_NE(match.route, nullptr);
  EXPECT_EQ(match.pattern, "/things/{id}/parts/{part}");
  EXPECT_EQ(match.path, (Path{"a", "b"}));
  for (const Path& path :
       {Path{"v1"}, Path{"v2", "things"}, Path{"v1", "v1", "things"}, Path{"things", "v1", "a"}}) {
    EXPECT_EQ(kRouter.find("GET", path).pattern, "other");
  }
}

TEST(Router, TakesAColonAsPartOfASegment) {
  const auto match = kRouter.find("POST", {"things:batch"});
  ASSERT_NE(match.route, nullptr);
  EXPECT_EQ(match.route->pattern, "/things:batch");
}

TEST(AccountOf, IsOneForAllKeysOfARoleAndOwner) {
  EXPECT_EQ(account_of({.key_id = make_uuid(), .role = Role::kTenant, .owner = "alice"}), "tenant:alice");
  EXPECT_EQ(account_of({.key_id = make_uuid(), .role = Role::kTenant, .owner = "alice"}), "tenant:alice");
  EXPECT_EQ(account_of({.key_id = make_uuid(), .role = Role::kAdmin, .owner = "alice"}), "admin:alice");
}

}  // namespace
}  // namespace portway
