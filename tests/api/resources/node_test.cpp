// Readiness over the API.

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

/// What GET /readyz and POST of a forward report in turn: the same.
void expect_ready_as_post(Node& node, std::string_view code) {
  const Response made = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  const Response ready = node.call("GET", "/readyz", "", "");
  if (code.empty()) {
    EXPECT_EQ(made.status, 201U) << made.body;
    EXPECT_EQ(ready.status, 200U) << ready.body;
    return;
  }
  EXPECT_EQ(made.status, 503U) << made.body;
  ASSERT_EQ(ready.status, 503U) << ready.body;
  EXPECT_EQ(Node::code(made), code);
  EXPECT_EQ(Node::code(ready), code);
  EXPECT_FALSE(Node::header(ready, "Retry-After").empty());
}

TEST(Readiness, EndsWithTheDescriptorsAndComesBackWithThem) {
  Node node;
  node.put("vm-1");
  expect_ready_as_post(node, "");
  node.dataplane.binds_left = 0;
  expect_ready_as_post(node, "resource_exhausted");
  node.dataplane.binds_left = -1;
  expect_ready_as_post(node, "");
}

TEST(Readiness, EndsWithTheLastHostPort) {
  Node node("[ports]\nrange = \"20000-20001\"\n");
  node.put("vm-1");
  expect_ready_as_post(node, "");
  EXPECT_EQ(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  expect_ready_as_post(node, "port_pool_exhausted");
}

TEST(Readiness, EndsWhenTheDaemonGoesDown) {
  Node node;
  node.put("vm-1");
  node.control().shut_down();
  expect_ready_as_post(node, "draining");
}

TEST(Readiness, FollowsTheDiskEvenWithoutRequests) {
  Node node;
  node.put("vm-1");
  const auto becomes = [&node](unsigned status) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (node.call("GET", "/readyz", "", "").status != status) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));  // the store's thread checks the disk
    }
    return true;
  };
  node.lock_store();
  EXPECT_TRUE(becomes(503));
  expect_ready_as_post(node, "store_unavailable");
  EXPECT_EQ(node.call("GET", "/readyz", "", "").body.find(node.path()), std::string::npos)
      << "anybody may ask";
  node.unlock_store();
  EXPECT_TRUE(becomes(200));
  expect_ready_as_post(node, "");
}

TEST(Readiness, HasAllReasonsAtOnce) {
  Node node("[ports]\nrange = \"20000-20000\"\n");
  node.put("vm-1");
  EXPECT_EQ(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  node.dataplane.binds_left = 0;
  node.control().shut_down();
  expect_ready_as_post(node, "draining");
  const auto ready = Node::json(node.call("GET", "/readyz", "", ""));
  std::vector<std::string> codes;
  for (const auto& reason : ready.at("reasons").as_array()) {
    codes.emplace_back(reason.at("code").as_string());
    EXPECT_FALSE(reason.at("detail").as_string().empty());
  }
  EXPECT_EQ(codes, (std::vector<std::string>{"draining", "port_pool_exhausted", "resource_exhausted"}));
}

// What does not work and keeps no forward down is no reason to take the node out of service.
TEST(Readiness, NamesFaultsWithoutTheirReasons) {
  Node node;
  EXPECT_EQ(node.call("GET", "/readyz", "", "").body, R"({"status":"ready"})");
  node.process.status.faults = {
      {.part = FaultPart::kApi, .subject = "127.0.0.1:80", .detail = "cannot listen; free the port"},
      {.part = FaultPart::kApi, .subject = "127.0.0.1:81", .detail = "cannot listen; free the port"},
      {.part = FaultPart::kAccessLog, .subject = "", .detail = "/var/log/x: no space; make some"}};
  EXPECT_EQ(node.call("GET", "/readyz", "", "").body, R"({"status":"ready","faults":["api","access_log"]})");
  const auto faults = Node::json(node.call("GET", "/v1/node")).at("process").at("faults").as_array();
  ASSERT_EQ(faults.size(), 3U);
  EXPECT_EQ(boost::json::serialize(faults[1]),
            R"({"part":"api","detail":"cannot listen; free the port","since":"1970-01-01T00:00:00.000Z",)"
            R"("subject":"127.0.0.1:81"})");
  EXPECT_FALSE(faults[2].as_object().contains("subject"));
}

// --- The process.

TEST(NodeProcess, SaysWhatItHasTakenOver) {
  Node node;
  EXPECT_EQ(node.call("GET", "/v1/node").body,
            R"({"process":{"pid":4711,"version":")" PORTWAY_VERSION
            R"(","started_at":"1970-01-01T00:00:00.000Z","handover_timeout_s":30,"upgrading":false,)"
            R"("upgrades_failed":0,"faults":[]},"node":{"draining":false}})");
  HandoverStats& handover = node.process.status.handover;
  handover = {
      .taken_over = true, .from_living = true, .found = 5, .adopted = 3, .left_over = 1, .seconds = 0.5};
  handover.lost[static_cast<std::size_t>(Lost::kPoison)] = 2;
  const auto process = Node::json(node.call("GET", "/v1/node")).at("process");
  EXPECT_EQ(boost::json::serialize(process.at("taken_over_from")),
            R"({"end":"upgrade","connections":5,"adopted":3,"reset":{"poison":2},)"
            R"("descriptors_left_over":1,"seconds":5E-1})");
}

TEST(NodeProcess, AnUpgradeIsAnAdminsAndSaysWhyItCannotBe) {
  Node node;
  const std::string tenant = node.tenant_key("alice");
  EXPECT_EQ(node.call("GET", "/v1/node", "", tenant).status, 403U);
  EXPECT_EQ(node.call("POST", "/v1/node/upgrade", "", tenant).status, 403U);
  EXPECT_FALSE(node.process.status.upgrading);
  const Response started = node.call("POST", "/v1/node/upgrade");
  EXPECT_EQ(started.status, 202U);
  EXPECT_TRUE(Node::json(started).at("process").at("upgrading").as_bool());
  node.process.refusal = "An upgrade is under way already.";
  const Response again = node.call("POST", "/v1/node/upgrade");
  EXPECT_EQ(again.status, 409U);
  EXPECT_EQ(Node::code(again), "upgrade_not_possible");
}

}  // namespace
}  // namespace portway
