#include "api/idempotency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::HasSubstr;

TEST(Api, TheSameRequestWithTheSameIdempotencyKeyGetsTheSameAnswerAlsoAfterARestart) {
  Node node;
  node.put("vm-1");
  const std::string path = "/instances/vm-1/port-forwards";
  const Response first = node.call_once("again", "POST", path, R"({"guest_port": 3000})");
  ASSERT_EQ(first.status, 201U) << first.body;
  node.restart();
  const Response second = node.call_once("again", "POST", path, R"({"guest_port": 3000})");
  EXPECT_EQ(second.status, 201U);
  EXPECT_EQ(second.body, first.body);
  EXPECT_EQ(Node::header(second, "Location"), Node::header(first, "Location"));
  EXPECT_NE(Node::header(first, "ETag"), "");
  EXPECT_EQ(Node::header(second, "ETag"), Node::header(first, "ETag"));
  EXPECT_EQ(Node::header(second, "Idempotency-Replayed"), "true");
  EXPECT_EQ(node.control().registry().forward_count(), 1U);

  const Response other = node.call_once("again", "POST", path, R"({"guest_port": 3001})");
  EXPECT_EQ(other.status, 422U);
  EXPECT_EQ(Node::code(other), "idempotency_key_reused");
  // Another owner's key with the same name is a different key.
  EXPECT_EQ(node.call_once("again", "POST", path, R"({"guest_port": 3001})", node.tenant_key()).status, 201U);
}

// A 201 promises a port that leads to the caller's guest: repeated after the forward has ended, it would
// send clients to the port's next owner.
TEST(Api, AnAnswerIsNotGivenAgainWhenWhatItMadeIsGone) {
  const std::string path = "/instances/vm-1/port-forwards";
  const std::string body = R"({"guest_port": 3000})";
  for (const std::string end :
       {"forward deleted", "stopped", "new session", "deleted and registered again"}) {
    Node node;
    node.put("vm-1");
    const std::string tenant = node.tenant_key();
    const Response first = node.call_once("again", "POST", path, body, tenant);
    ASSERT_EQ(first.status, 201U) << first.body;
    if (end == "forward deleted") node.call("DELETE", path + "/" + Node::forward_id(first));
    if (end == "stopped" || end == "new session") node.call("POST", "/instances/vm-1/stop");
    if (end == "deleted and registered again") node.call("DELETE", "/instances/vm-1");
    if (end != "forward deleted" && end != "stopped") node.put("vm-1");
    for (int run = 0; run < 2; ++run) {
      const Response again = node.call_once("again", "POST", path, body, tenant);
      EXPECT_EQ(again.status, 409U) << end << ": " << again.body;
      EXPECT_EQ(Node::code(again), "idempotent_answer_gone") << end;
      EXPECT_EQ(node.control().registry().forward_count(), 0U) << "nor is it made again";
      node.restart();
    }
    if (end == "stopped") node.put("vm-1");
    EXPECT_EQ(node.call_once("another", "POST", path, body, tenant).status, 201U) << end;
  }
}

// With the tag that it had then: a change that requires it does not undo what was changed since.
TEST(Api, AnAnswerThatIsGivenAgainHasTheTagOfWhatItShows) {
  Node node;
  node.put("vm-1");
  const std::string path = "/instances/vm-1/port-forwards";
  const Response first = node.call_once("again", "POST", path, R"({"guest_port": 3000})");
  const std::string forward = path + "/" + Node::forward_id(first);
  ASSERT_EQ(node.call("PATCH", forward, R"({"label": "web"})").status, 200U);
  const Response again = node.call_once("again", "POST", path, R"({"guest_port": 3000})");
  EXPECT_EQ(again.body, first.body);
  Request change = Node::request_of("PATCH", forward, R"({"label": "old"})", Node::kAdminKey);
  change.headers["if-match"] = Node::header(again, "ETag");
  EXPECT_EQ(node.handle(change).status, 412U);
}

TEST(Api, OrchestratorsOfOneNameShareAnswersButNotTheRoomForThem) {
  Node node;
  node.put("vm-1");
  const std::string path = "/instances/vm-1/port-forwards";
  const std::string body = R"({"guest_port": 3000})";
  const auto one = node.make_key("admin", "fleet");
  const auto other = node.make_key("admin", "fleet");
  const Response first = node.call_once("again", "POST", path, body, Node::secret_of(one));
  ASSERT_EQ(first.status, 201U);
  EXPECT_EQ(node.call_once("again", "POST", path, body, Node::secret_of(other)).body, first.body)
      << "one takes over from the other";
  ASSERT_EQ(node.call_once("more", "POST", path, R"({"guest_port": 3001})", Node::secret_of(other)).status,
            201U);
  const auto payer = [&](const std::string& key) {
    return node.run(node.control().find_answer("admin:fleet", key)).value().value().payer;
  };
  EXPECT_EQ(payer("again"), "key " + Node::id_of(one));
  EXPECT_EQ(payer("more"), "key " + Node::id_of(other));
  const std::string alice = node.tenant_key();
  ASSERT_EQ(node.call_once("hers", "POST", path, R"({"guest_port": 3002})", alice).status, 201U);
  EXPECT_EQ(node.run(node.control().find_answer("tenant:alice", "hers")).value().value().payer,
            "tenant:alice");
}

TEST(Api, AnAnswerIsNotGivenAgainToWhoDoesNotSeeTheInstanceAnyMore) {
  Node node;
  node.put("vm-1", "alice");
  const std::string path = "/instances/vm-1/port-forwards";
  const std::string alice = node.tenant_key("alice");
  ASSERT_EQ(node.call_once("again", "POST", path, R"({"guest_port": 3000})", alice).status, 201U);
  node.put("vm-1", "bob");
  EXPECT_EQ(node.call_once("again", "POST", path, R"({"guest_port": 3000})", alice).status, 404U);
  node.call("DELETE", "/instances/vm-1");
  EXPECT_EQ(node.call_once("again", "POST", path, R"({"guest_port": 3000})", alice).status, 404U);
}

TEST(Api, ABatchsAnswerIsNotGivenAgainWhenOneOfItsForwardsIsGone) {
  Node node;
  node.put("vm-1");
  const std::string path = "/instances/vm-1/port-forwards";
  const std::string body = R"({"port_forwards": [{"guest_port": 3000}, {"guest_port": 3001}]})";
  const Response first = node.call_once("again", "POST", path + ":batch", body);
  ASSERT_EQ(first.status, 201U);
  EXPECT_EQ(node.call_once("again", "POST", path + ":batch", body).body, first.body);
  const std::string second(Node::json(first).at("port_forwards").at(1).at("id").as_string());
  node.call("DELETE", path + "/" + second);
  const Response again = node.call_once("again", "POST", path + ":batch", body);
  EXPECT_EQ(again.status, 409U);
  EXPECT_EQ(Node::code(again), "idempotent_answer_gone");
  EXPECT_THAT(again.body, HasSubstr("Of the 2 port forwards"));
  EXPECT_EQ(node.control().registry().forward_count(), 1U);
}

TEST(Api, WhatWasRefusedMayBeTriedAgainWithTheSameIdempotencyKey) {
  Node node;
  node.put("vm-1");
  const std::string path = "/instances/vm-1/port-forwards:batch";
  const std::string body = R"({"port_forwards": [{"guest_port": 3000}]})";
  node.call("POST", "/instances/vm-1/stop");
  EXPECT_EQ(node.call_once("again", "POST", path, body).status, 409U);
  node.put("vm-1");
  EXPECT_EQ(node.call_once("again", "POST", path, body).status, 201U);
}

TEST(Api, AnIdempotencyKeyHasAShapeAndNoSecretIsRepeated) {
  Node node;
  node.put("vm-1");
  const std::string path = "/instances/vm-1/port-forwards";
  EXPECT_EQ(node.call_once("", "POST", path, R"({"guest_port": 3000})").status, 422U);
  EXPECT_EQ(node.call_once(std::string(256, 'x'), "POST", path, R"({"guest_port": 3000})").status, 422U);
  const Response refused =
      node.call_once("again", "POST", "/api-keys", R"({"role": "tenant", "owner": "alice"})");
  EXPECT_EQ(refused.status, 422U);
  EXPECT_EQ(Node::json(refused).at("field"), "idempotency-key");
}

}  // namespace
}  // namespace portway
