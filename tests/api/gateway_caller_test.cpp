// What a gateway may do on a node for others; how its certificate is verified is
// tests/daemon/gateways_test.py's.
#include "api/gateway_caller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/caller_header.h"
#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using ::testing::HasSubstr;

constexpr std::string_view kGatewayOfTests = "gateway.example.com";

class GatewayCaller : public testing::Test {
 protected:
  static Principal tenant(const std::string& owner) {
    return {.key_id = make_uuid(), .role = Role::kTenant, .owner = owner};
  }
  static Principal admin() { return {.key_id = make_uuid(), .role = Role::kAdmin, .owner = "ops"}; }

  /// As the gateway asks for `caller`.
  static Request asked_for(const Principal& caller, std::string method, std::string target,
                           std::string body = "") {
    Request request = Node::request_of(std::move(method), std::move(target), std::move(body), "");
    request.certificate_names = std::make_shared<const std::vector<std::string>>(
        std::vector{std::string("other.example.com"), std::string(kGatewayOfTests)});
    request.headers[std::string(kCallerHeader)] = caller_header(caller);
    return request;
  }
  Response call(const Principal& caller, std::string method, std::string target, std::string body = "") {
    return node_.handle(asked_for(caller, std::move(method), std::move(target), std::move(body)));
  }
  void set_gateways(std::vector<std::string> names) {
    node_.config().fleet.gateways = std::move(names);
    node_.control().apply_config();
  }

  Node node_{"[fleet]\ngateways = [\"Gateway.Example.com\"]\n"};
};

TEST_F(GatewayCaller, IsServedAsIfItCalledItself) {
  const std::string path = "/instances/vm-1";
  EXPECT_EQ(
      call(admin(), "PUT", path, R"({"guest_address": "198.19.0.2", "tap": "t", "owner": "alice"})").status,
      201U);
  EXPECT_EQ(call(tenant("alice"), "GET", path).status, 200U);
  EXPECT_EQ(call(tenant("bob"), "GET", path).status, 404U);
  EXPECT_EQ(call(tenant("alice"), "PUT", path, "{}").status, 403U);
  EXPECT_EQ(call(tenant("alice"), "POST", path + "/port-forwards", R"({"guest_port": 3000})").status, 201U);
  Principal reader = tenant("alice");
  reader.scope = KeyScope::kRead;
  EXPECT_EQ(call(reader, "GET", path + "/port-forwards").status, 200U);
  EXPECT_EQ(call(reader, "POST", path + "/port-forwards", R"({"guest_port": 3001})").status, 403U);
  Principal of_another = tenant("alice");
  of_another.instance_id = "vm-2";
  EXPECT_EQ(call(of_another, "GET", path).status, 404U);
}

TEST_F(GatewayCaller, KnowsWhoItIs) {
  const Principal alice = tenant("alice");
  const auto said = Node::json(call(alice, "GET", "/v1/whoami")).at("whoami").as_object();
  EXPECT_EQ(said.at("owner"), "alice");
  EXPECT_EQ(said.at("key_id").as_string(), to_string(alice.key_id));
}

TEST_F(GatewayCaller, IsNamedOnlyByAGateway) {
  node_.put("vm-1");
  const auto expect_refused = [this](Request request) {
    const Response answer = node_.handle(request);
    EXPECT_EQ(answer.status, 403U) << answer.body;
    EXPECT_THAT(answer.body, HasSubstr("fleet.gateways"));
    EXPECT_THAT(answer.body, HasSubstr("client_ca"));
    EXPECT_EQ(node_.api().admit(request).refusal.value().status, 403U);
  };
  Request request = asked_for(tenant("alice"), "GET", "/instances/vm-1");
  request.certificate_names = nullptr;
  expect_refused(request);
  // A key of one's own, or the right to need none, does not help.
  request.headers["authorization"] = "Bearer " + std::string(Node::kAdminKey);
  expect_refused(request);
  request.headers.erase("authorization");
  node_.config().api.admin_uids = {0};
  request.peer_credentials = PeerCredentials{};
  expect_refused(request);
  request.peer_credentials.reset();
  request.certificate_names = std::make_shared<const std::vector<std::string>>(
      std::vector<std::string>{"other.example.com", "xgateway.example.com", "*.example.com", ""});
  expect_refused(request);
  set_gateways({});
  expect_refused(asked_for(tenant("alice"), "GET", "/instances/vm-1"));
}

TEST_F(GatewayCaller, MustBeNamedWell) {
  Request request = asked_for(tenant("alice"), "GET", "/instances");
  for (const std::string value : {"", "alice", "{}"}) {
    request.headers[std::string(kCallerHeader)] = value;
    const Response answer = node_.handle(request);
    EXPECT_EQ(answer.status, 400U) << value;
    EXPECT_EQ(Node::json(answer).at("field"), "Portway-Caller");
  }
}

TEST_F(GatewayCaller, AGatewayThatNamesNobodyNeedsAKey) {
  Request request = asked_for(tenant("alice"), "GET", "/instances");
  request.headers.erase(std::string(kCallerHeader));
  EXPECT_EQ(node_.handle(request).status, 401U);
  request.headers["authorization"] = "Bearer " + std::string(Node::kAdminKey);
  EXPECT_EQ(node_.handle(request).status, 200U);
}

TEST_F(GatewayCaller, IsRememberedWhileItsBodyComes) {
  node_.put("vm-1");
  Request request =
      asked_for(tenant("alice"), "POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  node_.config().api.rate_limit_per_second = 1;
  node_.config().api.rate_limit_burst = 5;  // one change
  request.pass = node_.api().admit(request).pass;
  EXPECT_EQ(node_.handle(request).status, 201U);
  // The gateway is none any more.
  set_gateways({"another.example.com"});
  EXPECT_EQ(node_.handle(request).status, 403U);
}

TEST_F(GatewayCaller, PaysFromItsOwnersUnits) {
  const std::string alices_key = node_.tenant_key("alice");
  node_.config().api.rate_limit_per_second = 1;
  node_.config().api.rate_limit_burst = 5;  // one list
  EXPECT_EQ(call(tenant("alice"), "GET", "/instances").status, 200U);
  EXPECT_EQ(call(tenant("alice"), "GET", "/instances").status, 429U);
  EXPECT_EQ(node_.call("GET", "/instances", "", alices_key).status, 429U);
  EXPECT_EQ(call(tenant("bob"), "GET", "/instances").status, 200U);
}

TEST_F(GatewayCaller, SharesIdempotencyKeysWithItsDirectRequests) {
  node_.put("vm-1", "alice");
  node_.put_at("vm-2", "198.19.0.3", "bob");
  const auto made = node_.make_key("tenant", "alice");
  const std::string path = "/instances/vm-1/port-forwards";
  const std::string body = R"({"guest_port": 3000})";
  const Response first = node_.call_once("k", "POST", path, body, Node::secret_of(made));
  ASSERT_EQ(first.status, 201U);
  Principal alice = tenant("alice");
  alice.key_id = *parse_uuid(Node::id_of(made));
  Request again = asked_for(alice, "POST", path, body);
  again.headers["idempotency-key"] = "k";
  const Response replayed = node_.handle(again);
  EXPECT_EQ(replayed.body, first.body);
  EXPECT_EQ(Node::header(replayed, "Idempotency-Replayed"), "true");
  Request bobs = asked_for(tenant("bob"), "POST", "/instances/vm-2/port-forwards", body);
  bobs.headers["idempotency-key"] = "k";
  const Response other = node_.handle(bobs);
  EXPECT_EQ(other.status, 201U);
  EXPECT_EQ(Node::header(other, "Idempotency-Replayed"), "");
}

TEST_F(GatewayCaller, KeepsItsStreamsWithoutAKeyThatTheNodeKnows) {
  const Response opened = call(tenant("alice"), "GET", "/events");
  ASSERT_NE(opened.stream, nullptr);
  EXPECT_TRUE(opened.stream->read().has_value());
  node_.control().streams().recheck();
  EXPECT_TRUE(opened.stream->read().has_value());
  set_gateways({});
  EXPECT_FALSE(opened.stream->read().has_value());
}

TEST_F(GatewayCaller, IsInTheLogWithItsGateway) {
  Principal caller = tenant("alice");
  caller.via = kGatewayOfTests;
  EXPECT_EQ(who(caller), "key " + to_string(caller.key_id) + " via gateway.example.com");
  caller = admin_user(0);
  caller.via = kGatewayOfTests;
  EXPECT_EQ(actor_of(caller).name, "uid:0 via gateway.example.com");
}

}  // namespace
}  // namespace portway
