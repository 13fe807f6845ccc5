// The forwards of all instances, of which a caller sees its own.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::ElementsAre;
using testing::IsEmpty;

class AllForwardsTest : public testing::Test {
 protected:
  /// Two owners; the host ports are not in the order of creation.
  AllForwardsTest() {
    for (const auto& [id, owner] :
         {std::pair("vm-1", "alice"), std::pair("vm-2", "alice"), std::pair("vm-3", "bob")}) {
      node_.put(id, owner);
    }
    make("vm-1", 31002, "web");
    make("vm-3", 31001, "web");
    make("vm-2", 31003, "db");
    make("vm-1", 31000, "db");
  }

  void make(const std::string& instance, int port, const std::string& label) {
    const Response made = node_.call(
        "POST", "/instances/" + instance + "/port-forwards",
        R"({"guest_port": 3000, "host_port": )" + std::to_string(port) + R"(, "label": ")" + label + "\"}");
    ASSERT_EQ(made.status, 201U) << made.body;
  }
  std::vector<int> ports(const std::string& query, std::string_view key = Node::kAdminKey) {
    std::vector<int> all;
    const Response listed = node_.call("GET", "/port-forwards" + query, "", key);
    EXPECT_EQ(listed.status, 200U) << listed.body;
    const auto body = Node::json(listed);
    for (const auto& each : body.at("port_forwards").as_array()) {
      all.push_back(each.at("host_port").to_number<int>());
    }
    return all;
  }

  Node node_;
};

TEST_F(AllForwardsTest, AnAdminSeesAllAndATenantItsOwn) {
  EXPECT_THAT(ports(""), ElementsAre(31002, 31001, 31003, 31000));
  EXPECT_THAT(ports("", node_.tenant_key("alice")), ElementsAre(31002, 31003, 31000));
  EXPECT_THAT(ports("", node_.tenant_key("bob")), ElementsAre(31001));
  EXPECT_THAT(ports("?owner=bob", node_.tenant_key("alice")), IsEmpty());
  EXPECT_THAT(ports("?instance_id=vm-3", node_.tenant_key("alice")), IsEmpty());
  EXPECT_THAT(ports("", node_.tenant_key("carol")), IsEmpty());
  const Response of_one =
      node_.call("POST", "/api-keys", R"({"role": "tenant", "owner": "alice", "instance_id": "vm-2"})");
  EXPECT_THAT(ports("", std::string(Node::json(of_one).at("secret").as_string())), ElementsAre(31003));
}

TEST_F(AllForwardsTest, FiltersMustAllFit) {
  EXPECT_THAT(ports("?owner=alice"), ElementsAre(31002, 31003, 31000));
  EXPECT_THAT(ports("?label=web"), ElementsAre(31002, 31001));
  EXPECT_THAT(ports("?label=web&owner=bob"), ElementsAre(31001));
  EXPECT_THAT(ports("?host_port=31003"), ElementsAre(31003));
  EXPECT_THAT(ports("?guest_port=3001"), IsEmpty());
  EXPECT_THAT(ports("?instance_id=vm-1"), ElementsAre(31002, 31000));
  EXPECT_THAT(ports("?state=failed"), IsEmpty());
  EXPECT_THAT(ports("?state=unavailable&label=db"), ElementsAre(31003, 31000));
}

TEST_F(AllForwardsTest, AreSortedAndPaged) {
  EXPECT_THAT(ports("?sort=host_port"), ElementsAre(31000, 31001, 31002, 31003));
  EXPECT_THAT(ports("?sort=host_port&order=desc"), ElementsAre(31003, 31002, 31001, 31000));
  EXPECT_THAT(ports("?order=desc"), ElementsAre(31000, 31003, 31001, 31002));
  for (const std::string sorting :
       {"sort=host_port", "sort=host_port&order=desc", "order=desc", "order=asc"}) {
    const std::vector<int> all = ports("?" + sorting);
    std::vector<int> paged;
    std::string cursor;
    do {
      const auto page =
          Node::json(node_.call("GET", "/port-forwards?limit=1&" + sorting + "&cursor=" + cursor));
      paged.push_back(page.at("port_forwards").at(0).at("host_port").to_number<int>());
      const auto* next = page.if_contains("next_cursor");
      cursor = next == nullptr ? "" : std::string(next->as_string());
    } while (!cursor.empty() && paged.size() < 10);
    EXPECT_EQ(paged, all) << sorting;
  }
}

TEST_F(AllForwardsTest, APageContinuesBehindAForwardThatIsGone) {
  const auto page = Node::json(node_.call("GET", "/port-forwards?limit=2&sort=host_port"));
  const std::string cursor(page.at("next_cursor").as_string());
  EXPECT_EQ(node_.call("DELETE", "/instances/vm-3").status, 204U);  // the last one of the page
  EXPECT_THAT(ports("?sort=host_port&cursor=" + cursor), ElementsAre(31002, 31003));
}

TEST_F(AllForwardsTest, WhatDoesNotFitIsRefusedByName) {
  for (const auto& [query, field] :
       {std::pair("?sort=label", "sort"), std::pair("?order=up", "order"), std::pair("?state=open", "state"),
        std::pair("?host_port=0", "host_port"), std::pair("?cursor=x", "cursor"),
        std::pair("?cursor=1.x", "cursor"), std::pair("?limit=0", "limit"),
        std::pair("?tenant=bob", "tenant")}) {
    const Response refused = node_.call("GET", std::string("/port-forwards") + query);
    EXPECT_EQ(refused.status, 422U) << query;
    EXPECT_EQ(Node::json(refused).at("field"), field) << query;
  }
}

}  // namespace
}  // namespace portway
