#include "api/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

TEST(Api, ABodyThatDoesNotSayItIsJsonIsRefused) {
  Node node;
  Request request{
      .id = "r", .method = "PUT", .target = "/instances/vm-1", .headers = {}, .body = "{}", .peer = {}};
  request.headers["authorization"] = "Bearer " + std::string(Node::kAdminKey);
  request.headers["content-type"] = "text/plain";
  EXPECT_EQ(node.handle(request).status, 415U);
  request.headers["content-type"] = "Application/JSON; charset=utf-8";
  EXPECT_EQ(node.handle(request).status, 422U);
}

TEST(Api, WithoutAKnownKeyNothingIsRevealed) {
  Node node;
  node.put("vm-1");
  for (const std::string key : {"", "pwk_wrong", "x"}) {
    const Response response = node.call("GET", "/instances/vm-1", "", key);
    EXPECT_EQ(response.status, 401U);
    EXPECT_EQ(Node::header(response, "WWW-Authenticate"), "Bearer");
  }
}

TEST(Api, AnothersInstanceLooksExactlyLikeAnUnknownOne) {
  Node node;
  node.put("vm-1", "alice");
  const std::string mallory = node.tenant_key("mallory");
  for (const std::string path :
       {"", "/port-forwards", "/port-forwards/0190b2c0-0000-7000-8000-000000000000"}) {
    const Response others = node.call("GET", "/instances/vm-1" + path, "", mallory);
    const Response unknown = node.call("GET", "/instances/vm-2" + path, "", mallory);
    EXPECT_EQ(others.status, 404U);
    EXPECT_EQ(others.body, unknown.body);
  }
  EXPECT_EQ(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})", mallory).status,
            404U);
  EXPECT_TRUE(Node::json(node.call("GET", "/instances", "", mallory)).at("instances").as_array().empty());
}

TEST(Api, ATenantDoesNotReachTheOrchestratorsCalls) {
  Node node;
  node.put("vm-1");
  const std::string key = node.tenant_key();
  EXPECT_EQ(node.call("PUT", "/instances/vm-9", "{}", key).status, 403U);
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1", "", key).status, 403U);
  EXPECT_EQ(node.call("POST", "/instances/vm-1/stop", "", key).status, 403U);
  EXPECT_EQ(node.call("GET", "/api-keys", "", key).status, 403U);
  EXPECT_EQ(node.call("GET", "/metrics", "", key).status, 403U);
  EXPECT_EQ(node.call("GET", "/instances/vm-1", "", key).status, 200U);
}

// Their bodies are not even read.
TEST(Api, AHeaderIsEnoughToRefuseARequest) {
  Node node;
  const std::string tenant = node.tenant_key();
  const auto admit = [&](std::string method, std::string target, std::string_view key) {
    RequestAdmission admission =
        node.api().admit(Node::request_of(std::move(method), std::move(target), "", key));
    return admission.refusal ? admission.refusal->status : 0;
  };
  EXPECT_EQ(admit("PUT", "/instances/vm-1", "pwk_wrong"), 401U);
  EXPECT_EQ(admit("PUT", "/instances/vm-1", tenant), 403U);
  EXPECT_EQ(admit("PUT", "/nowhere", Node::kAdminKey), 404U);
  EXPECT_EQ(admit("PATCH", "/api-keys", Node::kAdminKey), 405U);
  EXPECT_EQ(admit("PUT", "/instances/vm-1", Node::kAdminKey), 0U);
  EXPECT_EQ(admit("POST", "/instances/vm-1/port-forwards", tenant), 0U);
  EXPECT_EQ(admit("PUT", "not a path", Node::kAdminKey), 0U) << "handle() answers";
}

TEST(Api, AnAdmittedRequestIsCountedOnceAndItsKeyMustStillBeThere) {
  Node node;
  node.put("vm-1");
  const Response made = node.call("POST", "/api-keys", R"({"role": "tenant", "owner": "alice"})");
  const std::string secret(Node::json(made).at("secret").as_string());
  Request request =
      Node::request_of("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})", secret);
  node.config().api.rate_limit_per_second = 1;
  node.config().api.rate_limit_burst = 5;  // one change
  const Request another = request;
  request.pass = node.api().admit(request).pass;
  EXPECT_EQ(node.api().admit(another).refusal.value().status, 429U);
  EXPECT_EQ(node.handle(request).status, 201U);
  node.config().api.rate_limit_per_second = 0;
  const std::string id(Node::json(made).at("api_key").at("id").as_string());
  ASSERT_EQ(node.call("DELETE", "/api-keys/" + id).status, 204U);
  EXPECT_EQ(node.handle(request).status, 401U);
}

TEST(Api, KnowsItsMethodsAndPaths) {
  Node node;
  const Response wrong = node.call("PATCH", "/instances/vm-1/port-forwards");
  EXPECT_EQ(wrong.status, 405U);
  EXPECT_EQ(Node::header(wrong, "Allow"), "POST, PUT, GET, HEAD, DELETE, OPTIONS");
  const Response options = node.call("OPTIONS", "/instances/vm-1", "", "");
  EXPECT_EQ(options.status, 204U);
  EXPECT_EQ(Node::header(options, "Allow"), "GET, HEAD, PUT, PATCH, DELETE, OPTIONS");
  EXPECT_EQ(node.call("GET", "/nothing", "", "").status, 404U);
  EXPECT_EQ(node.call("GET", "/instances/", "").status, 404U);
  EXPECT_EQ(node.call("HEAD", "/healthz", "", "").status, 200U);
  EXPECT_EQ(node.call("GET", "/healthz", "", "").body, R"({"status":"ok"})");
  EXPECT_EQ(node.call("GET", "not a path").status, 400U);
}

TEST(Api, TakesEveryFormOfATargetThatAServerMustTake) {
  Node node;
  node.put("vm-1");
  EXPECT_EQ(node.call("GET", "http://node.example/instances/vm-1").status, 200U);
  EXPECT_EQ(node.call("GET", "http://node.example/instances?limits=3").status, 422U);
  EXPECT_EQ(node.call("GET", "http://node.example/instances/vm-1", "", "").status, 401U);
  EXPECT_EQ(node.call("GET", "http://node.example").status, 404U);
  EXPECT_EQ(node.call("GET", "ftp://node.example/instances/vm-1").status, 400U);
  EXPECT_EQ(node.call("OPTIONS", "*", "", "").status, 204U);
  EXPECT_EQ(node.call("GET", "*").status, 400U);
}

TEST(Api, APathIsDecodedOnceAndNamesOneInstance) {
  Node node;
  node.put("vm.1");
  EXPECT_EQ(node.call("GET", "/instances/vm%2E1").status, 200U);
  EXPECT_EQ(node.call("GET", "/instances/vm%252E1").status, 404U);
  EXPECT_EQ(node.call("GET", "/instances/vm%2F..%2Fvm.1").status, 404U);
}

TEST(Api, QueriesAreStrict) {
  Node node;
  node.put("vm-1");
  const Response unknown = node.call("GET", "/instances?limits=3");
  EXPECT_EQ(unknown.status, 422U);
  EXPECT_EQ(Node::json(unknown).at("field"), "limits");
  EXPECT_EQ(node.call("GET", "/instances?limit=0").status, 422U);
  EXPECT_EQ(node.call("GET", "/instances?limit=1&limit=2").status, 422U);
  EXPECT_EQ(node.call("GET", "/instances/vm-1/port-forwards?cursor=x").status, 422U);
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1/port-forwards/x?connections=maybe").status, 422U);
}

TEST(Api, WhileItDrainsItPromisesNothingNew) {
  Node node;
  node.put("vm-1");
  node.control().shut_down();
  const Response response = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  EXPECT_EQ(response.status, 503U);
  EXPECT_EQ(Node::code(response), "draining");
  EXPECT_NE(Node::header(response, "Retry-After"), "");
  EXPECT_EQ(node.call("GET", "/readyz", "", "").status, 503U);
  EXPECT_EQ(node.call("GET", "/healthz", "", "").status, 200U);
}

TEST(Api, RequestsAreCountedByRouteNeverByPath) {
  Node node;
  node.call("GET", "/instances/vm-1");
  node.call("GET", "/instances/vm-2");
  node.call("GET", "/secret-path");
  EXPECT_EQ((node.stats.requests[{"/instances/{id}", 404}]), 2U);
  EXPECT_EQ((node.stats.requests[{"other", 404}]), 1U);
}

TEST(Handlers, AnotherOwnersInstanceLooksAsIfItDidNotExist) {
  Node node;
  node.put("vm-1", "alice");
  const std::string alices = "/instances/vm-1";
  const Response forward =
      node.call("POST", alices + "/port-forwards", R"({"guest_port": 3000})", node.tenant_key("alice"));
  ASSERT_EQ(forward.status, 201U) << forward.body;
  const std::string mallory = node.tenant_key("mallory");
  const std::string unknown_id = "00000000-0000-7000-8000-000000000000";
  for (const std::string& path :
       {std::string(), std::string("/port-forwards"), "/port-forwards/" + Node::forward_id(forward),
        "/port-forwards/" + unknown_id}) {
    for (const char* method : {"GET", "DELETE", "POST"}) {
      const std::string body = std::string_view(method) == "POST" ? R"({"guest_port": 22})" : "";
      const Response theirs = node.call(method, alices + path, body, mallory);
      const Response none = node.call(method, "/instances/vm-none" + path, body, mallory);
      EXPECT_EQ(theirs.status, none.status) << method << path;
      EXPECT_EQ(theirs.body, none.body) << method << path;
      EXPECT_EQ(theirs.headers, none.headers) << method << path;
    }
  }
}

/// A call over the Unix socket.
Response call_as(Node& node, std::uint32_t uid, std::string target,
                 std::optional<std::string> authorization = {}) {
  Request request;
  request.id = "r";
  request.method = "GET";
  request.target = std::move(target);
  request.peer_credentials = PeerCredentials{.pid = 1, .uid = uid, .gid = uid};
  if (authorization) request.headers["authorization"] = *authorization;
  return node.handle(request);
}

TEST(AdminUids, AreAdminOnTheUnixSocketWithoutAKey) {
  Node node("admin_uids = [0, 1000]\n");
  EXPECT_EQ(call_as(node, 0, "/api-keys").status, 200U);
  EXPECT_EQ(call_as(node, 1000, "/api-keys").status, 200U);
  EXPECT_EQ(call_as(node, 1001, "/api-keys").status, 401U);
  EXPECT_EQ(node.call("GET", "/api-keys", "", "").status, 401U) << "over TCP nobody is known";
}

TEST(AdminUids, AreNotUsedForACallThatHasAKey) {
  Node node("admin_uids = [0]\n");
  EXPECT_EQ(call_as(node, 0, "/api-keys", "Bearer " + node.tenant_key()).status, 403U);
  EXPECT_EQ(call_as(node, 0, "/api-keys", "Bearer wrong").status, 401U);
  EXPECT_EQ(call_as(node, 0, "/api-keys", "").status, 401U);
}

TEST(AdminUids, AreNobodyUnlessConfigured) {
  Node node;
  EXPECT_EQ(call_as(node, 0, "/api-keys").status, 401U);
}

TEST(Handlers, ABodyThatNamesAMemberTwiceIsRefused) {
  Node node;
  node.put("vm-1");
  for (const char* body :
       {R"({"guest_port": 3000, "guest_port": 3001})", R"({"guest_port": 3000, "guest\u005fport": 22})",
        R"({"label": "a", "guest_port": 3000, "label": "a"})"}) {
    const Response response = node.call("POST", "/instances/vm-1/port-forwards", body);
    EXPECT_EQ(response.status, 400U) << body;
    EXPECT_EQ(Node::code(response), "malformed_json") << body;
    EXPECT_TRUE(Node::json(response).contains("field")) << body;
  }
}

}  // namespace
}  // namespace portway
