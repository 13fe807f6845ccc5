// PUT of the forwards that an instance should have: what is there and fits stays, the rest is made or
// removed, all of it or nothing.

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

constexpr const char* kForwardSet = "/instances/vm-1/port-forwards";

class ForwardSetTest : public testing::Test {
 protected:
  ForwardSetTest() { node_.put("vm-1"); }

  boost::json::object set(const std::string& forwards, const std::string& query = "",
                          std::string_view key = Node::kAdminKey) {
    const Response answer =
        node_.call("PUT", kForwardSet + query, R"({"port_forwards": [)" + forwards + "]}", key);
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return Node::json(answer);
  }
  boost::json::object refused(const std::string& forwards, unsigned status,
                              std::string_view key = Node::kAdminKey) {
    const Response answer = node_.call("PUT", kForwardSet, R"({"port_forwards": [)" + forwards + "]}", key);
    EXPECT_EQ(answer.status, status) << answer.body;
    return Node::json(answer);
  }
  static std::vector<std::string> labels(const boost::json::object& answer, std::string_view list) {
    std::vector<std::string> all;
    for (const auto& each : answer.at(list).as_array()) all.emplace_back(each.at("label").as_string());
    return all;
  }
  std::vector<std::string> labels_now() {
    return labels(Node::json(node_.call("GET", kForwardSet)), "port_forwards");
  }
  std::int64_t port_of(const std::string& label) {
    const auto body = Node::json(node_.call("GET", kForwardSet));
    for (const auto& each : body.at("port_forwards").as_array()) {
      if (each.at("label").as_string() == label) return each.at("host_port").as_int64();
    }
    return 0;
  }

  Node node_;
};

constexpr const char* kWeb = R"({"guest_port": 3000, "label": "web"})";
constexpr const char* kDb = R"({"guest_port": 5432, "label": "db"})";

TEST_F(ForwardSetTest, IsMadeAndThenStays) {
  const auto first = set(std::string(kWeb) + "," + kDb);
  EXPECT_THAT(labels(first, "created"), ElementsAre("web", "db"));
  EXPECT_EQ(first.at("dry_run"), false);
  const auto port = port_of("web");
  for (int i = 0; i < 2; ++i) {
    const auto again = set(std::string(kDb) + "," + kWeb);  // in any order
    EXPECT_THAT(labels(again, "unchanged"), ElementsAre("db", "web"));
    EXPECT_THAT(labels(again, "created"), IsEmpty());
    EXPECT_THAT(labels(again, "removed"), IsEmpty());
  }
  EXPECT_EQ(port_of("web"), port);
  node_.restart();
  EXPECT_EQ(port_of("web"), port);
}

TEST_F(ForwardSetTest, WhatIsNotInItGoes) {
  set(std::string(kWeb) + "," + kDb);
  node_.call("POST", kForwardSet, R"({"guest_port": 22000})");  // by hand, without a label
  const auto answer = set(kDb);
  EXPECT_THAT(labels(answer, "removed"), ElementsAre("web", ""));
  EXPECT_THAT(labels_now(), ElementsAre("db"));
  EXPECT_EQ(node_.control().ports().used(), 1U);
  EXPECT_THAT(labels(set(""), "removed"), ElementsAre("db"));
  EXPECT_EQ(node_.control().ports().used(), 0U);
  node_.restart();
  EXPECT_THAT(labels_now(), IsEmpty());
}

TEST_F(ForwardSetTest, OneWithAnotherGuestPortOrOtherLimitsIsChangedInPlace) {
  set(std::string(kWeb) + "," + kDb);
  const auto port = port_of("db");
  const auto web_port = port_of("web");
  const auto answer = set(
      R"({"guest_port": 3001, "label": "web"}, {"guest_port": 5432, "label": "db", "max_connections": 9})");
  EXPECT_THAT(labels(answer, "created"), IsEmpty());
  EXPECT_THAT(labels(answer, "removed"), IsEmpty());
  EXPECT_THAT(labels(answer, "updated"), ElementsAre("web", "db"));
  EXPECT_EQ(answer.at("updated").at(0).at("guest_port"), 3001);
  EXPECT_EQ(answer.at("updated").at(1).at("max_connections"), 9);
  EXPECT_EQ(port_of("web"), web_port);
  EXPECT_EQ(port_of("db"), port);
  EXPECT_FALSE(set(std::string(kDb)).at("updated").at(0).as_object().contains("max_connections"))
      << "a limit that the set does not have goes";
}

TEST_F(ForwardSetTest, ARowStaysAsAWholeOrIsMadeAnew) {
  constexpr const char* kRow = R"({"guest_port": 8000, "label": "row", "host_ports": 3})";
  const auto first = set(std::string(kRow) + "," + kDb).at("created").as_array();
  ASSERT_EQ(first.size(), 4U);
  for (std::int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(first[static_cast<std::size_t>(i)].at("guest_port"), 8000 + i);
    EXPECT_EQ(first[static_cast<std::size_t>(i)].at("host_port"), first[0].at("host_port").as_int64() + i);
  }
  EXPECT_EQ(set(std::string(kRow) + "," + kDb).at("unchanged").as_array().size(), 4U);
  const std::string second(first[1].at("id").as_string());
  EXPECT_EQ(node_.call("DELETE", std::string(kForwardSet) + "/" + second).status, 204U);
  EXPECT_EQ(set(std::string(kRow) + "," + kDb, "?dry_run=true").at("to_create"), boost::json::parse("[0]"));
  const auto anew = set(std::string(kRow) + "," + kDb);
  EXPECT_EQ(anew.at("created").as_array().size(), 3U);
  EXPECT_EQ(anew.at("removed").as_array().size(), 2U);
  EXPECT_EQ(anew.at("unchanged").as_array().size(), 1U);
  EXPECT_EQ(node_.control().ports().used(), 4U);
  EXPECT_EQ(refused(std::string(kRow) + R"(, {"guest_port": 1, "label": "row"})", 422).at("field"),
            "port_forwards[1].label");
}

TEST_F(ForwardSetTest, MetadataAndWhetherItIsEnabledBecomeThoseOfTheSet) {
  set(R"({"guest_port": 1000, "metadata": {"a": "1", "b": "2"}, "enabled": false})");
  const auto answer = set(R"({"guest_port": 1000, "metadata": {"b": "3"}})");
  const auto& updated = answer.at("updated").at(0);
  EXPECT_EQ(updated.at("metadata"), boost::json::object({{"b", "3"}}));
  EXPECT_EQ(updated.at("cause"), "tap_down");  // its machine has not started
  EXPECT_EQ(set(R"({"guest_port": 1000, "metadata": {"b": "3"}})").at("unchanged").as_array().size(), 1U);
}

TEST_F(ForwardSetTest, ADryRunChangesNothing) {
  set(kWeb);
  const auto before = Node::json(node_.call("GET", kForwardSet));
  const auto answer = set(kDb, "?dry_run=true");
  EXPECT_EQ(answer.at("dry_run"), true);
  EXPECT_EQ(answer.at("to_create"), boost::json::parse("[0]"));
  EXPECT_THAT(labels(answer, "created"), IsEmpty());
  EXPECT_THAT(labels(answer, "removed"), ElementsAre("web"));
  EXPECT_EQ(Node::json(node_.call("GET", kForwardSet)), before);
  EXPECT_EQ(node_.control().ports().used(), 1U);
}

TEST_F(ForwardSetTest, OneMistakeRefusesAllOfIt) {
  set(kWeb);
  EXPECT_EQ(refused(std::string(kDb) + R"(, {"guest_port": 0, "label": "x"})", 422).at("field"),
            "port_forwards[1].guest_port");
  EXPECT_EQ(refused(std::string(kWeb) + R"(, {"guest_port": 22, "label": "x"})", 403).at("field"),
            "port_forwards[1].guest_port");
  EXPECT_EQ(refused(R"({"guest_port": 1, "label": "x"}, {"guest_port": 2, "label": "x"})", 422).at("field"),
            "port_forwards[1].label");
  EXPECT_EQ(refused(R"({"guest_port": 7}, {"guest_port": 7})", 422).at("field"),
            "port_forwards[1].guest_port");
  EXPECT_THAT(labels_now(), ElementsAre("web"));
  EXPECT_EQ(node_.control().ports().used(), 1U);
}

TEST_F(ForwardSetTest, AHostPortOfAnotherForwardIsRefusedAndNothingIsTaken) {
  node_.put("vm-2");
  ASSERT_EQ(
      node_.call("POST", "/instances/vm-2/port-forwards", R"({"guest_port": 1, "host_port": 31000})").status,
      201U);
  const auto error =
      refused(std::string(kWeb) + R"(, {"guest_port": 2, "label": "x", "host_port": 31000})", 409);
  EXPECT_EQ(error.at("field"), "port_forwards[1].host_port");
  EXPECT_EQ(node_.control().ports().used(), 1U);
}

TEST_F(ForwardSetTest, LimitsOfAnAdminStayWhenATenantSetsWithoutThem) {
  const std::string tenant = node_.tenant_key();
  set(R"({"guest_port": 3000, "label": "web", "max_connections": 5})");
  EXPECT_THAT(labels(set(kWeb, "", tenant), "unchanged"), ElementsAre("web"));
  EXPECT_EQ(refused(R"({"guest_port": 3000, "label": "web", "max_connections": 50})", 403, tenant).at("code"),
            "forbidden");
  const auto own = set(R"({"guest_port": 3000, "label": "web", "max_bytes_per_second": 7000})", "", tenant);
  EXPECT_EQ(own.at("updated").at(0).at("max_connections"), 5);
  EXPECT_EQ(own.at("updated").at(0).at("max_bytes_per_second"), 7000);
}

TEST_F(ForwardSetTest, AnotherOwnersInstanceIsNotThere) {
  EXPECT_EQ(refused(kWeb, 404, node_.tenant_key("bob")).at("code"), "not_found");
}

TEST(ForwardSetQuota, CountsWhatIsLeft) {
  Node node("[profiles.default]\nmax_forwarded_ports = 2\n");
  node.put("vm-1");
  const auto set = [&](const std::string& forwards) {
    return node.call("PUT", kForwardSet, R"({"port_forwards": [)" + forwards + "]}").status;
  };
  EXPECT_EQ(set(R"({"guest_port": 1000}, {"guest_port": 1001})"), 200U);
  EXPECT_EQ(set(R"({"guest_port": 1002}, {"guest_port": 1003})"), 200U) << "in place of the others";
  EXPECT_EQ(set(R"({"guest_port": 1002}, {"guest_port": 1003}, {"guest_port": 1004})"), 409U);
  EXPECT_EQ(node.control().registry().forward_count(), 2U);
}

TEST(ForwardSetRace, OfTwoSetsAtOnceTheLaterOneHolds) {
  Node node;
  node.put("vm-1");
  const auto put = [](const std::string& forward) {
    return Node::request_of("PUT", kForwardSet, R"({"port_forwards": [)" + forward + "]}", Node::kAdminKey);
  };
  const auto answers = node.handle_at_once({put(kWeb), put(kDb)});
  EXPECT_EQ(answers[0].status, 200U);
  EXPECT_EQ(answers[1].status, 200U);
  EXPECT_EQ(node.control().registry().forward_count(), 1U);
  EXPECT_EQ(node.control().ports().used(), 1U);
  node.restart();
  EXPECT_EQ(Node::json(node.call("GET", kForwardSet)).at("port_forwards").at(0).at("label"), "db");
}

TEST(ForwardSetRace, AMachineThatIsGoneMeanwhileLeavesNothing) {
  Node node;
  node.put("vm-1");
  node.lock_store();
  node.while_the_disk_is_waited_for([&] {
    node.control().end_session("vm-1", SessionEnd::kTapDeleted);
    node.unlock_store();
  });
  const Response answer = node.call("PUT", kForwardSet, R"({"port_forwards": [{"guest_port": 3000}]})");
  EXPECT_EQ(answer.status, 409U);
  node.settle();
  EXPECT_EQ(node.control().ports().used(), 0U);
  node.restart();
  EXPECT_EQ(node.control().registry().forward_count(), 0U);
}

}  // namespace
}  // namespace portway
