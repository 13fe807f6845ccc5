// The connections of a forward over the API.

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

class ConnectionsApi : public testing::Test {
 protected:
  ConnectionsApi() {
    node.put("vm-1");
    const Response created = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
    const std::string id(Node::json(created).at("port_forward").at("id").as_string());
    forward = parse_uuid(id).value();
    path = "/instances/vm-1/port-forwards/" + id + "/connections";
    for (const ConnectionId each : {4096U, 4097U, 8192U}) {
      LiveConnection live;
      live.id = each;
      live.client = {parse_address("203.0.113.9").value(), 40000};
      live.received_bytes = each;
      node.dataplane.live[forward].push_back(live);
    }
  }

  std::vector<std::int64_t> ids(const std::string& query) {
    std::vector<std::int64_t> found;
    const boost::json::object answer = Node::json(node.call("GET", path + query));
    for (const auto& each : answer.at("connections").as_array())
      found.push_back(each.at("id").to_number<std::int64_t>());
    return found;
  }

  Node node;
  ForwardId forward;
  std::string path;
};

TEST_F(ConnectionsApi, ListsLiveOnesInPages) {
  const boost::json::object page = Node::json(node.call("GET", path + "?limit=2"));
  EXPECT_EQ(page.at("connections").as_array().size(), 2U);
  EXPECT_EQ(page.at("connections").at(0).at("client"), "203.0.113.9:40000");
  EXPECT_EQ(page.at("connections").at(0).at("state"), "connecting");
  EXPECT_EQ(page.at("next_cursor"), "4097");
  EXPECT_EQ(ids("?cursor=4097"), (std::vector<std::int64_t>{8192}));
  EXPECT_EQ(ids(""), (std::vector<std::int64_t>{4096, 4097, 8192}));
  EXPECT_EQ(node.call("GET", path + "?cursor=x").status, 422U);
  EXPECT_EQ(node.call("GET", path + "?state=dead").status, 422U);
}

TEST_F(ConnectionsApi, ReportsWhyTheLastOnesClosedTheLatestFirst) {
  const auto served =
      std::make_shared<ServedForward>(ForwardRoute{.id = forward, .guest = {}, .instance_id = "vm-1"}, 1);
  const auto other = std::make_shared<ServedForward>(ForwardRoute{.id = make_uuid(), .guest = {}}, 1);
  for (ConnectionId id = 1; id <= 3; ++id) {
    CloseRecord record{.forward = id == 2 ? other : served, .id = id};
    record.cause = {CloseSide::kGuest, CloseHow::kReset};
    node.closes.add(std::move(record));
  }
  const boost::json::object answer = Node::json(node.call("GET", path + "?state=closed"));
  const boost::json::array& closed = answer.at("connections").as_array();
  ASSERT_EQ(closed.size(), 2U);
  EXPECT_EQ(closed[0].at("connection"), 3);
  EXPECT_EQ(closed[0].at("side"), "guest");
  EXPECT_EQ(closed[0].at("how"), "reset");
  EXPECT_EQ(closed[1].at("connection"), 1);
}

TEST_F(ConnectionsApi, WhatEndedInTheFormerOwnersTimeIsNotTheNextOnes) {
  const auto served =
      std::make_shared<ServedForward>(ForwardRoute{.id = forward, .guest = {}, .instance_id = "vm-1"}, 1);
  served->session->owned_since = std::chrono::seconds(20);
  for (ConnectionId id = 1; id <= 3; ++id) {
    CloseRecord record{.forward = served, .id = id};
    record.ended_at = std::chrono::seconds(10 * id);
    node.closes.add(std::move(record));
  }
  const auto seen = [&](std::string_view key) {
    const Response answer = node.call("GET", path + "?state=closed", "", key);
    return Node::json(answer).at("connections").as_array().size();
  };
  EXPECT_EQ(seen(node.tenant_key("alice")), 2U);
  EXPECT_EQ(seen(Node::kAdminKey), 3U);

  const auto events = node.follow({.key_id = {}, .role = Role::kTenant, .owner = "alice"});
  (void)events->read();
  CloseRecord refused{.forward = served};
  refused.ended_at = std::chrono::seconds(19);
  node.control().report_refused(refused);
  EXPECT_EQ(events->read().value(), "");
  refused.ended_at = std::chrono::seconds(21);
  node.control().report_refused(refused);
  EXPECT_NE(events->read().value().find("connection.refused"), std::string::npos);
}

TEST_F(ConnectionsApi, RefusedClientsOfOneInstanceCrowdOutNoOthers) {
  node.put("vm-2", "bob");
  const Response other = node.call("POST", "/instances/vm-2/port-forwards", R"({"guest_port": 3000})");
  const ForwardId others =
      parse_uuid(std::string(Node::json(other).at("port_forward").at("id").as_string())).value();
  const auto alices = node.follow({.key_id = {}, .role = Role::kTenant, .owner = "alice"});
  const auto bobs = node.follow({.key_id = {}, .role = Role::kTenant, .owner = "bob"});
  (void)alices->read();
  (void)bobs->read();
  const auto refuse = [&](const ForwardId& id, const std::string& instance) {
    CloseRecord record{.forward = std::make_shared<ServedForward>(
                           ForwardRoute{.id = id, .guest = {}, .instance_id = instance}, 1)};
    node.control().report_refused(record);
  };
  for (int i = 0; i < 1000; ++i) refuse(forward, "vm-1");
  refuse(others, "vm-2");
  EXPECT_NE(bobs->read().value().find("connection.refused"), std::string::npos);
  std::size_t told = 0;
  const std::string text = alices->read().value();
  for (std::size_t at = 0; (at = text.find("event: connection.refused", at)) != std::string::npos; ++at)
    ++told;
  EXPECT_GE(told, 1U);
  EXPECT_LT(told, 100U);
}

TEST_F(ConnectionsApi, EndsOneOrAll) {
  EXPECT_EQ(node.call("DELETE", path + "/4097").status, 204U);
  EXPECT_EQ(ids(""), (std::vector<std::int64_t>{4096, 8192}));
  for (const char* id : {"/4097", "/0", "/x", "/-1"})
    EXPECT_EQ(node.call("DELETE", path + id).status, 404U) << id;
  EXPECT_EQ(node.call("DELETE", path).status, 204U);
  EXPECT_TRUE(ids("").empty());
  EXPECT_EQ(node.call("DELETE", path).status, 204U) << "none is as good as all";
}

TEST_F(ConnectionsApi, AreTheOwnersAlone) {
  const std::string stranger = node.tenant_key("mallory");
  EXPECT_EQ(node.call("GET", path, "", stranger).status, 404U);
  EXPECT_EQ(node.call("DELETE", path, "", stranger).status, 404U);
  EXPECT_EQ(node.call("DELETE", path + "/4096", "", stranger).status, 404U);
  EXPECT_EQ(node.call("GET", path, "", node.tenant_key("alice")).status, 200U);
  EXPECT_EQ(ids("").size(), 3U);
}

}  // namespace
}  // namespace portway
