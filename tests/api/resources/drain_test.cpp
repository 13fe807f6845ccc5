// A node that is emptied by its operator: what it refuses then, and what goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Drain : public testing::Test {
 protected:
  Drain() {
    node_.put("vm-1");
    forward_ = Node::forward_id(node_.call("POST", kForwards, R"({"guest_port": 3000})"));
  }

  static std::string instance_body(const std::string& address, const std::string& tap) {
    return R"({"guest_address": ")" + address + R"(", "tap": ")" + tap + R"(", "owner": "alice"})";
  }
  bool drain() { return node_of(node_.call("POST", kDrain)).at("draining").as_bool(); }
  bool undrain() { return !node_of(node_.call("DELETE", kDrain)).at("draining").as_bool(); }
  static boost::json::object node_of(const Response& answer) {
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return Node::json(answer).at("node").as_object();
  }
  void expect_refused(const Response& answer) {
    EXPECT_EQ(answer.status, 503U) << answer.body;
    EXPECT_EQ(Node::code(answer), "draining");
    EXPECT_THAT(answer.body, HasSubstr("another node"));
    EXPECT_EQ(Node::header(answer, "Retry-After"), "30");
  }
  std::vector<std::string> types_in(BodyStream& stream) {
    std::string text;
    for (auto piece = stream.read(); piece && !piece->empty(); piece = stream.read()) text += *piece;
    std::vector<std::string> types;
    for (std::size_t at = 0; (at = text.find("event: ", at)) != std::string::npos;) {
      at += 7;
      types.push_back(text.substr(at, text.find('\n', at) - at));
    }
    return types;
  }

  static constexpr const char* kDrain = "/v1/node/drain";
  static constexpr const char* kInstance = "/instances/vm-1";
  static constexpr const char* kForwards = "/instances/vm-1/port-forwards";
  static constexpr const char* kAddress = "198.19.0.2";

  Node node_;
  std::string forward_;
};

TEST_F(Drain, RefusesNewSessionsAndForwards) {
  ASSERT_TRUE(drain());
  expect_refused(node_.call("PUT", "/instances/vm-2", instance_body("198.19.0.3", "tap-2")));
  expect_refused(node_.call("PUT", kInstance, instance_body("198.19.0.4", "tap-vm-1")));  // another machine
  expect_refused(node_.call("POST", kForwards, R"({"guest_port": 3001})"));
  const std::string two = R"({"port_forwards": [{"guest_port": 3000}, {"guest_port": 3001}]})";
  expect_refused(node_.call("POST", "/instances/vm-1/port-forwards:batch", two));
  expect_refused(node_.call("PUT", kForwards, two));
  expect_refused(node_.call("PUT", std::string(kForwards) + "?dry_run=true", two));
  expect_refused(node_.call("GET", "/readyz", "", ""));
  EXPECT_EQ(node_.call("GET", "/healthz", "", "").status, 200U);
  EXPECT_EQ(node_.call("GET", kForwards).status, 200U);
  EXPECT_EQ(Node::json(node_.call("GET", kForwards)).at("port_forwards").as_array().size(), 1U);
}

TEST_F(Drain, LetsWhatIsThereGoOnAndEnd) {
  ASSERT_TRUE(drain());
  const std::string forward = std::string(kForwards) + "/" + forward_;
  EXPECT_EQ(node_.call("PUT", kInstance, instance_body(kAddress, "tap-vm-1")).status, 200U);
  EXPECT_EQ(node_.call("PATCH", kInstance, R"({"metadata": {"a": "b"}})").status, 200U);
  EXPECT_EQ(node_.call("PATCH", forward, R"({"label": "web"})").status, 200U);
  EXPECT_EQ(
      node_.call("PUT", kForwards, R"({"port_forwards": [{"guest_port": 3000, "label": "web"}]})").status,
      200U);
  EXPECT_EQ(node_.call("GET", "/events").status, 200U);
  EXPECT_EQ(node_.call("DELETE", forward).status, 204U);
  EXPECT_EQ(node_.call("POST", "/instances/vm-1/stop").status, 200U);
  expect_refused(node_.call("PUT", kInstance, instance_body(kAddress, "tap-vm-1")));  // its next session
  EXPECT_EQ(node_.call("DELETE", kInstance).status, 204U);
  EXPECT_NE(node_.tenant_key("bob"), "");
}

TEST_F(Drain, AnswersARequestThatWasFulfilledBefore) {
  const std::string body = R"({"guest_port": 3001})";
  ASSERT_EQ(node_.call_once("k", "POST", kForwards, body).status, 201U);
  ASSERT_TRUE(drain());
  EXPECT_EQ(node_.call_once("k", "POST", kForwards, body).status, 201U);
  expect_refused(node_.call_once("another", "POST", kForwards, body));
}

TEST_F(Drain, IsAnAdminsAndMayBeRepeated) {
  const std::string tenant = node_.tenant_key("alice");
  EXPECT_EQ(node_.call("POST", kDrain, "", tenant).status, 403U);
  EXPECT_EQ(node_.call("DELETE", kDrain, "", tenant).status, 403U);
  EXPECT_EQ(node_of(node_.call("GET", "/v1/node")).at("draining"), false);
  const auto watched = node_.follow(admin_user(0));
  const auto first = node_of(node_.call("POST", kDrain));
  EXPECT_TRUE(first.contains("draining_since"));
  EXPECT_EQ(node_of(node_.call("POST", kDrain)), first);
  EXPECT_EQ(node_of(node_.call("GET", "/v1/node")), first);
  EXPECT_TRUE(undrain());
  EXPECT_TRUE(undrain());
  EXPECT_FALSE(node_of(node_.call("GET", "/v1/node")).contains("draining_since"));
  EXPECT_THAT(types_in(*watched), ElementsAre("node.draining", "node.undrained"));
  EXPECT_EQ(node_.call("PUT", "/instances/vm-2", instance_body("198.19.0.3", "tap-2")).status, 201U);
  EXPECT_EQ(node_.call("POST", kForwards, R"({"guest_port": 3001})").status, 201U);
  EXPECT_EQ(node_.call("GET", "/readyz", "", "").status, 200U);
}

TEST_F(Drain, IsNoTenantsEvent) {
  const auto watched = node_.follow({.role = Role::kTenant, .owner = "alice"});
  ASSERT_TRUE(drain());
  EXPECT_THAT(types_in(*watched), ElementsAre());
}

TEST_F(Drain, OutlivesTheProcessAndKeepsWhatIsThere) {
  const auto before = node_of(node_.call("POST", kDrain));
  node_.restart();
  EXPECT_EQ(node_of(node_.call("GET", "/v1/node")), before);
  EXPECT_EQ(node_.call("GET", std::string(kForwards) + "/" + forward_).status, 200U);
  EXPECT_EQ(node_.dataplane.opened.size(), 1U);
  EXPECT_EQ(node_.call("PUT", kInstance, instance_body(kAddress, "tap-vm-1")).status, 200U);
  expect_refused(node_.call("PUT", "/instances/vm-2", instance_body("198.19.0.3", "tap-2")));
  EXPECT_TRUE(undrain());
  node_.restart();
  EXPECT_EQ(node_of(node_.call("GET", "/v1/node")).at("draining"), false);
}

TEST_F(Drain, IsNotAcknowledgedIfTheDiskRefuses) {
  node_.lock_store();
  EXPECT_EQ(Node::code(node_.call("POST", kDrain)), "store_unavailable");
  EXPECT_EQ(node_of(node_.call("GET", "/v1/node")).at("draining"), false);
  node_.unlock_store();
  ASSERT_TRUE(drain());
  node_.lock_store();
  EXPECT_EQ(Node::code(node_.call("DELETE", kDrain)), "store_unavailable");
  EXPECT_EQ(node_of(node_.call("GET", "/v1/node")).at("draining"), true);
  node_.unlock_store();
}

TEST_F(Drain, IsRefusedWhileTheDaemonGoesDown) {
  node_.control().shut_down();
  EXPECT_EQ(Node::code(node_.call("POST", kDrain)), "draining");
}

TEST_F(Drain, OfTwoCallersIsTheLastOnesWord) {
  const auto ask = [](std::string method) {
    return Node::request_of(std::move(method), kDrain, "", Node::kAdminKey);
  };
  for (const bool ends_drained : {true, false}) {
    const auto answers =
        node_.handle_at_once({ask(ends_drained ? "DELETE" : "POST"), ask(ends_drained ? "POST" : "DELETE")});
    EXPECT_EQ(node_of(answers[0]).at("draining"), !ends_drained);
    EXPECT_EQ(node_of(answers[1]).at("draining"), ends_drained);
    EXPECT_EQ(node_of(node_.call("GET", "/v1/node")).at("draining"), ends_drained);
    node_.restart();
    EXPECT_EQ(node_of(node_.call("GET", "/v1/node")).at("draining"), ends_drained);
  }
}

// Whoever has drained the node and reads its lists knows all that is there.
TEST_F(Drain, TakesWhatWasUnderWayBeforeItIsAnswered) {
  const auto put = [](const std::string& id, const std::string& address) {
    return Node::request_of("PUT", "/instances/" + id, instance_body(address, "tap-" + id), Node::kAdminKey);
  };
  const auto answers =
      node_.handle_at_once({put("vm-2", "198.19.0.3"), Node::request_of("POST", kDrain, "", Node::kAdminKey),
                            put("vm-3", "198.19.0.4")});
  EXPECT_EQ(answers[0].status, 201U) << answers[0].body;
  EXPECT_EQ(answers[1].status, 200U);
  expect_refused(answers[2]);
}

}  // namespace
}  // namespace portway
