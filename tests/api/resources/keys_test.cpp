// API keys over the API.

#include <gtest/gtest.h>

#include <string>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

TEST(Api, ADeletedKeyIsUnknownAtOnceAndAfterARestart) {
  Node node;
  const Response made = node.call("POST", "/api-keys", R"({"role": "tenant", "owner": "alice"})");
  ASSERT_EQ(made.status, 201U);
  const std::string secret(Node::json(made).at("secret").as_string());
  const std::string id(Node::json(made).at("api_key").at("id").as_string());
  node.restart();
  EXPECT_EQ(node.call("GET", "/instances", "", secret).status, 200U);
  EXPECT_EQ(node.call("GET", "/api-keys").body.find(secret), std::string::npos);
  EXPECT_EQ(node.call("DELETE", "/api-keys/" + id).status, 204U);
  EXPECT_EQ(node.call("GET", "/instances", "", secret).status, 401U);
  node.restart();
  EXPECT_EQ(node.call("GET", "/instances", "", secret).status, 401U);
}

TEST(Api, KeysAreListedPageByPage) {
  Node node;
  for (int i = 0; i < 3; ++i) node.tenant_key();
  const auto first = Node::json(node.call("GET", "/api-keys?limit=2"));
  EXPECT_EQ(first.at("api_keys").as_array().size(), 2U);
  const std::string cursor(first.at("next_cursor").as_string());
  const auto second = Node::json(node.call("GET", "/api-keys?limit=2&cursor=" + cursor));
  EXPECT_EQ(second.at("api_keys").as_array().size(), 2U);  // three, and the admin key file's
  EXPECT_FALSE(second.contains("next_cursor"));
}

}  // namespace
}  // namespace portway
