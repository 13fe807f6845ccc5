// What a caller requires before a change: a delayed or repeated request must not hit what came after it.

#include "api/preconditions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

constexpr const char* kInstance = "/instances/vm-1";
constexpr const char* kForwards = "/instances/vm-1/port-forwards";

class PreconditionsTest : public testing::Test {
 protected:
  PreconditionsTest() { node_.put("vm-1"); }

  static Request request(const std::string& method, const std::string& path, const std::string& body,
                         const std::string& header = "", const std::string& value = "") {
    Request made = Node::request_of(method, path, body, Node::kAdminKey);
    if (!header.empty()) made.headers[header] = value;
    return made;
  }
  Response call(const std::string& method, const std::string& path, const std::string& body,
                const std::string& header, const std::string& value) {
    return node_.handle(request(method, path, body, header, value));
  }
  std::string tag_of(const std::string& path) { return Node::header(node_.call("GET", path), "ETag"); }
  std::string session() {
    return std::string(Node::json(node_.call("GET", kInstance)).at("instance").at("session_id").as_string());
  }
  std::string make_forward() {
    return std::string(kForwards) + "/" +
           Node::forward_id(node_.call("POST", kForwards, R"({"guest_port": 3000})"));
  }

  Node node_;
};

constexpr const char* kRegistration =
    R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "alice"})";

TEST_F(PreconditionsTest, ATagIsTheSameUntilASettingChanges) {
  const std::string before = tag_of(kInstance);
  EXPECT_FALSE(before.empty());
  const std::string forward = make_forward();
  EXPECT_EQ(tag_of(kInstance), before) << "of another resource";
  EXPECT_EQ(node_.call("PATCH", kInstance, R"({"owner": "bob"})").status, 200U);
  EXPECT_NE(tag_of(kInstance), before);
  const std::string of_forward = tag_of(forward);
  EXPECT_EQ(node_.call("PATCH", forward, R"({"max_connections": 3})").status, 200U);
  EXPECT_NE(tag_of(forward), of_forward);
  EXPECT_EQ(node_.call("PATCH", forward, R"({"max_connections": null})").status, 200U);
  const Response registered = node_.call("PUT", kInstance, kRegistration);
  EXPECT_EQ(Node::header(registered, "ETag"), tag_of(kInstance));
  EXPECT_EQ(tag_of(kInstance), before) << "as it was";
}

TEST_F(PreconditionsTest, ADelayedCallDoesNotReachTheNextSession) {
  const std::string tag = tag_of(kInstance);
  const std::string old = "\"" + session() + "\"";
  ASSERT_EQ(node_.call("POST", "/instances/vm-1/stop").status, 200U);
  ASSERT_EQ(node_.call("PUT", kInstance, kRegistration).status, 200U);
  for (const std::string& seen : {tag, old}) {
    EXPECT_EQ(call("POST", "/instances/vm-1/stop", "", "if-match", seen).status, 412U);
    EXPECT_EQ(call("DELETE", kInstance, "", "if-match", seen).status, 412U);
    EXPECT_EQ(call("PUT", kInstance, kRegistration, "if-match", seen).status, 412U);
    EXPECT_EQ(call("PATCH", kInstance, R"({"owner": "bob"})", "if-match", seen).status, 412U);
  }
  EXPECT_EQ(Node::json(node_.call("GET", kInstance)).at("instance").at("state"), "running");
  EXPECT_EQ(call("POST", "/instances/vm-1/stop", "", "if-match", "\"" + session() + "\"").status, 200U);
}

TEST_F(PreconditionsTest, OfTwoChangesOfWhatBothHaveSeenOneIsMade) {
  const std::string forward = make_forward();
  const std::string tag = tag_of(forward);
  const auto answers =
      node_.handle_at_once({request("PATCH", forward, R"({"label": "a"})", "if-match", tag),
                            request("PATCH", forward, R"({"label": "b"})", "if-match", tag)});
  EXPECT_EQ(answers[0].status, 200U);
  EXPECT_EQ(answers[1].status, 412U);
  EXPECT_EQ(Node::code(answers[1]), "precondition_failed");
  EXPECT_EQ(call("DELETE", forward, "", "if-match", tag).status, 412U);
  EXPECT_EQ(call("DELETE", forward, "", "if-match", tag_of(forward)).status, 204U);
}

TEST_F(PreconditionsTest, IfNoneMatchCreatesOnly) {
  EXPECT_EQ(call("PUT", kInstance, kRegistration, "if-none-match", "*").status, 412U);
  const std::string other = R"({"guest_address": "198.19.0.3", "tap": "tap-vm-2", "owner": "alice"})";
  EXPECT_EQ(call("PUT", "/instances/vm-2", other, "if-none-match", "*").status, 201U);
  EXPECT_EQ(call("PUT", "/instances/vm-3", other, "if-match", "*").status, 412U) << "does not exist";
  EXPECT_EQ(call("PUT", kInstance, kRegistration, "if-none-match", "\"a\"").status, 422U);
}

TEST_F(PreconditionsTest, IfMatchIsAListOfTags) {
  const std::string tag = tag_of(kInstance);
  const auto status = [&](const std::string& value) {
    return call("PATCH", kInstance, R"({"owner": "alice"})", "if-match", value).status;
  };
  EXPECT_EQ(status("*"), 200U);
  EXPECT_EQ(status("\"x\" , " + tag), 200U);
  EXPECT_EQ(status("\"x\""), 412U);
  EXPECT_EQ(status("W/" + tag), 412U) << "a weak tag matches nothing here";
  for (const char* malformed : {"", "x", "\"x", "\"x\" \"y\"", "\"x\",", "* *", "W/x"}) {
    EXPECT_EQ(status(malformed), 422U) << malformed;
  }
  std::string many = tag;
  for (int i = 0; i < 40; ++i) many += ", \"x\"";
  EXPECT_EQ(status(many), 422U);
}

// --- PATCH of an instance.

TEST_F(PreconditionsTest, APatchThatIsRefusedInPartChangesNothing) {
  const std::string before = node_.call("GET", kInstance).body;
  for (const char* body : {R"({"owner": "bob", "profile": "none"})", R"({"owner": "bob", "vmm_pid": 0})",
                           R"({"owner": "bob", "guest_address": "127.0.0.1"})", R"({"owner": ""})",
                           R"({"owner": null})", R"({"owner": "bob", "tap": "tap9"})"}) {
    EXPECT_EQ(node_.call("PATCH", kInstance, body).status, 422U) << body;
  }
  EXPECT_EQ(node_.call("GET", kInstance).body, before);
}

TEST_F(PreconditionsTest, APatchKeepsTheForwards) {
  const std::string forward = make_forward();
  const Response changed =
      node_.call("PATCH", kInstance, R"({"owner": "bob", "guest_address": "198.19.0.9"})");
  ASSERT_EQ(changed.status, 200U) << changed.body;
  EXPECT_EQ(Node::json(changed).at("instance").at("owner"), "bob");
  EXPECT_EQ(Node::json(changed).at("instance").at("guest_address"), "198.19.0.9");
  EXPECT_EQ(node_.call("GET", forward).status, 200U);
  EXPECT_EQ(node_.call("GET", forward, "", node_.tenant_key("alice")).status, 404U);
  EXPECT_EQ(node_.call("GET", forward, "", node_.tenant_key("bob")).status, 200U);
  node_.restart();
  EXPECT_EQ(Node::json(node_.call("GET", kInstance)).at("instance").at("owner"), "bob");
}

}  // namespace
}  // namespace portway
