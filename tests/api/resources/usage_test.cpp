#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <string>

#include "tests/control/node.h"

namespace portway::test {
namespace {

boost::json::object activity_at(Node& node, const std::string& id, std::string_view key = Node::kAdminKey) {
  const Response response = node.call("GET", "/instances/" + id + "/activity", "", key);
  EXPECT_EQ(response.status, 200U) << response.body;
  return Node::json(response).at("activity").as_object();
}

std::int64_t steady_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// A forward's id; its meters are the data plane's.
std::string forward_to(Node& node, const std::string& id, int guest_port = 3000) {
  return Node::forward_id(node.call("POST", "/instances/" + id + "/port-forwards",
                                    R"({"guest_port": )" + std::to_string(guest_port) + "}"));
}

void carry(Node& node, const std::string& forward, std::uint64_t received, std::uint64_t sent) {
  const ForwardRoute& route = node.dataplane.opened.at(parse_uuid(forward).value()).first;
  for (const UsageMeterPtr& meter : {route.meter, route.instance_meter}) {
    meter->opened(0, steady_ns() - 60'000'000'000);
    meter->moved(0, true, received, steady_ns());
    meter->moved(0, false, sent, steady_ns());
  }
}

void end_connection(Node& node, const std::string& forward) {
  const ForwardRoute& route = node.dataplane.opened.at(parse_uuid(forward).value()).first;
  for (const UsageMeterPtr& meter : {route.meter, route.instance_meter}) meter->closed(0, steady_ns());
}

TEST(UsageApi, AnInstanceThatHasCarriedNothingSaysSo) {
  Node node;
  node.put("vm-1");
  const boost::json::object activity = activity_at(node, "vm-1");
  EXPECT_EQ(activity.at("instance_id"), "vm-1");
  EXPECT_EQ(activity.at("owner"), "alice");
  EXPECT_EQ(activity.at("state"), "running");
  EXPECT_EQ(activity.at("connections_active"), 0);
  EXPECT_EQ(activity.at("connections_total"), 0);
  EXPECT_EQ(activity.at("connection_seconds"), 0.0);
  EXPECT_FALSE(activity.contains("last_byte_at"));
  EXPECT_FALSE(activity.contains("last_connection_at"));
  const auto instance = Node::json(node.call("GET", "/instances/vm-1")).at("instance").as_object();
  EXPECT_EQ(activity.at("usage_since"), instance.at("created_at"));
  EXPECT_EQ(activity.at("session_id"), instance.at("session_id"));
}

TEST(UsageApi, CountsForwardsAndTheirInstance) {
  Node node;
  node.put("vm-1");
  const std::string first = forward_to(node, "vm-1", 3000);
  const std::string second = forward_to(node, "vm-1", 3001);
  carry(node, first, 1, 10);
  carry(node, second, 2, 20);
  boost::json::object activity = activity_at(node, "vm-1");
  EXPECT_EQ(activity.at("connections_active"), 2);
  EXPECT_EQ(activity.at("connections_total"), 2);
  EXPECT_EQ(activity.at("received_bytes"), 3);
  EXPECT_EQ(activity.at("sent_bytes"), 30);
  EXPECT_GE(activity.at("connection_seconds").to_number<double>(), 120);
  EXPECT_LT(activity.at("connection_seconds").to_number<double>(), 180);
  EXPECT_TRUE(activity.contains("last_byte_at"));
  const auto forward =
      Node::json(node.call("GET", "/instances/vm-1/port-forwards/" + second)).at("port_forward").as_object();
  EXPECT_EQ(forward.at("received_bytes"), 2);
  EXPECT_EQ(forward.at("sent_bytes"), 20);
  EXPECT_EQ(forward.at("connections_active"), 1);
  EXPECT_GE(forward.at("connection_seconds").to_number<double>(), 60);
  // What is gone stays on the bill, whatever of it is still open.
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1/port-forwards/" + first).status, 204U);
  activity = activity_at(node, "vm-1");
  EXPECT_EQ(activity.at("received_bytes"), 3);
  EXPECT_EQ(activity.at("connections_active"), 2);
}

TEST(UsageApi, SurvivesARestart) {
  Node node;
  node.put("vm-1");
  const std::string kept = forward_to(node, "vm-1", 3000);
  const std::string gone = forward_to(node, "vm-1", 3001);
  carry(node, kept, 1, 10);
  carry(node, gone, 2, 20);
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1/port-forwards/" + gone).status, 204U);
  end_connection(node, kept);
  const boost::json::object before = activity_at(node, "vm-1");
  node.control().save_usage();
  node.restart();
  const boost::json::object after = activity_at(node, "vm-1");
  for (const char* name : {"connections_total", "received_bytes", "sent_bytes", "last_byte_at",
                           "last_connection_at", "usage_since"})
    EXPECT_EQ(after.at(name), before.at(name)) << name;
  EXPECT_GE(after.at("connection_seconds").to_number<double>(),
            before.at("connection_seconds").to_number<double>());
  const auto forward =
      Node::json(node.call("GET", "/instances/vm-1/port-forwards/" + kept)).at("port_forward").as_object();
  EXPECT_EQ(forward.at("received_bytes"), 1);
  carry(node, kept, 1, 1);
  EXPECT_EQ(activity_at(node, "vm-1").at("received_bytes"), 4);
}

TEST(UsageApi, AForwardThatIsDisabledKeepsItsOwn) {
  Node node;
  node.put("vm-1");
  const std::string id = forward_to(node, "vm-1");
  const std::string path = "/instances/vm-1/port-forwards/" + id;
  carry(node, id, 1, 10);
  end_connection(node, id);
  EXPECT_EQ(node.call("PATCH", path, R"({"enabled": false})").status, 200U);
  EXPECT_EQ(Node::json(node.call("GET", path)).at("port_forward").as_object().at("sent_bytes"), 10);
  EXPECT_EQ(node.call("PATCH", path, R"({"enabled": true})").status, 200U);
  carry(node, id, 1, 10);
  EXPECT_EQ(Node::json(node.call("GET", path)).at("port_forward").as_object().at("sent_bytes"), 20);
}

// A bill is of the instance; a machine that is started again is the same one.
TEST(UsageApi, ANewSessionGoesOnAndADeletedInstanceBeginsAnew) {
  Node node;
  node.put("vm-1");
  carry(node, forward_to(node, "vm-1"), 1, 10);
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop").status, 200U);
  EXPECT_EQ(activity_at(node, "vm-1").at("sent_bytes"), 10);
  EXPECT_EQ(activity_at(node, "vm-1").at("state"), "stopped");
  node.put("vm-1");
  carry(node, forward_to(node, "vm-1"), 1, 10);
  EXPECT_EQ(activity_at(node, "vm-1").at("sent_bytes"), 20);
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1").status, 204U);
  EXPECT_EQ(node.call("GET", "/instances/vm-1/activity").status, 404U);
  node.put("vm-1");
  EXPECT_EQ(activity_at(node, "vm-1").at("sent_bytes"), 0);
  node.control().save_usage();
  node.restart();
  EXPECT_EQ(activity_at(node, "vm-1").at("sent_bytes"), 0);
}

TEST(UsageApi, IsShownToItsOwner) {
  Node node;
  node.put_at("vm-1", "198.19.0.1", "alice");
  node.put_at("vm-2", "198.19.0.2", "bob");
  const std::string alice = node.tenant_key("alice");
  EXPECT_EQ(activity_at(node, "vm-1", alice).at("owner"), "alice");
  const Response hidden = node.call("GET", "/instances/vm-2/activity", "", alice);
  EXPECT_EQ(hidden.status, 404U);
  EXPECT_EQ(Node::json(hidden).at("detail"),
            Node::json(node.call("GET", "/instances/none/activity", "", alice)).at("detail"));
  const auto listed = Node::json(node.call("GET", "/usage", "", alice)).at("usage").as_array();
  ASSERT_EQ(listed.size(), 1U);
  EXPECT_EQ(listed[0].at("instance_id"), "vm-1");
  EXPECT_EQ(Node::json(node.call("GET", "/usage")).at("usage").as_array().size(), 2U);
}

TEST(UsageApi, IsListedInPages) {
  Node node;
  for (const std::string id : {"vm-1", "vm-2", "vm-3"}) node.put_at(id, "198.19.0." + id.substr(3), "alice");
  const auto first = Node::json(node.call("GET", "/usage?limit=2"));
  EXPECT_EQ(first.at("usage").as_array().size(), 2U);
  EXPECT_EQ(first.at("next_cursor"), "vm-2");
  const auto rest = Node::json(node.call("GET", "/usage?limit=2&cursor=vm-2"));
  ASSERT_EQ(rest.at("usage").as_array().size(), 1U);
  EXPECT_EQ(rest.at("usage").as_array()[0].at("instance_id"), "vm-3");
  EXPECT_FALSE(rest.contains("next_cursor"));
  EXPECT_EQ(Node::json(node.call("GET", "/usage?metadata=env=dev")).at("usage").as_array().size(), 0U);
  EXPECT_EQ(node.call("GET", "/usage?limit=0").status, 422U);
}

TEST(UsageApi, DoesNotWaitForTheDisk) {
  Node node;
  node.put("vm-1");
  carry(node, forward_to(node, "vm-1"), 1, 10);
  node.lock_store();
  node.control().save_usage();
  EXPECT_EQ(activity_at(node, "vm-1").at("sent_bytes"), 10);
  node.unlock_store();
}

}  // namespace
}  // namespace portway::test
