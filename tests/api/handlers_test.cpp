#include "api/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <chrono>
#include <thread>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <thread>

#include "api/http/problem.h"
#include "api/openapi.h"
#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::HasSubstr;

std::string header(const Response& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    if (key == name) return value;
  }
  return "";
}

std::string forward_id(const Response& created) {
  return std::string(Node::json(created).at("port_forward").at("id").as_string());
}

TEST(ProductPage, CreatingAForwardAnswersWithThePagesFieldsInThePagesOrder) {
  Node node;
  node.put("vm-1");
  const Response response = node.call("POST", "/instances/vm-1/port-forwards", R"({
    "guest_port": 3000,
    "protocol": "tcp",
    "label": "dev-server"
  })",
                                      node.tenant_key());
  ASSERT_EQ(response.status, 201U) << response.body;
  const auto body = Node::json(response);
  const auto& forward = body.at("port_forward").as_object();
  std::vector<std::string> names;
  for (const auto& [name, value] : forward) names.emplace_back(name);
  names.resize(6);
  EXPECT_EQ(names,
            (std::vector<std::string>{"id", "instance_id", "guest_port", "host_port", "protocol", "label"}));
  EXPECT_EQ(forward.at("instance_id"), "vm-1");
  EXPECT_EQ(forward.at("guest_port"), 3000);
  EXPECT_EQ(forward.at("protocol"), "tcp");
  EXPECT_EQ(forward.at("label"), "dev-server");
  EXPECT_GE(forward.at("host_port").as_int64(), 20000);
  EXPECT_LE(forward.at("host_port").as_int64(), 32767);
  EXPECT_EQ(body.at("hostname"), "compute-1.example");
  EXPECT_EQ(header(response, "Location"), "/instances/vm-1/port-forwards/" + forward_id(response));
}

TEST(Handlers, AForwardNamesEveryAddressThatItListensAt) {
  Node node;
  node.put("vm-1");
  const std::string key = node.tenant_key();
  const Response created = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})", key);
  const auto listed = Node::json(node.call("GET", "/instances/vm-1/port-forwards", "", key));
  for (const auto& forward : {Node::json(created).at("port_forward"), listed.at("port_forwards").at(0)}) {
    EXPECT_EQ(forward.at("bind_address"), "203.0.113.7");
    EXPECT_EQ(forward.at("bind_addresses"), boost::json::array({"203.0.113.7", "2001:db8::7"}));
  }
}

TEST(ProductPage, AForwardIsListedFoundAndDeleted) {
  Node node;
  node.put("vm-1");
  const std::string key = node.tenant_key();
  const std::string id =
      forward_id(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})", key));
  const auto list = Node::json(node.call("GET", "/instances/vm-1/port-forwards", "", key));
  ASSERT_EQ(list.at("port_forwards").as_array().size(), 1U);
  EXPECT_EQ(list.at("port_forwards").at(0).at("id").as_string(), id);
  EXPECT_EQ(list.at("hostname"), "compute-1.example");
  EXPECT_EQ(node.call("GET", "/instances/vm-1/port-forwards/" + id, "", key).status, 200U);
  const Response deleted = node.call("DELETE", "/instances/vm-1/port-forwards/" + id, "", key);
  EXPECT_EQ(deleted.status, 204U);
  EXPECT_EQ(deleted.body, "");
  EXPECT_EQ(node.call("GET", "/instances/vm-1/port-forwards/" + id, "", key).status, 404U);
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1/port-forwards/" + id, "", key).status, 404U);
}

struct Refusal {
  std::string what;
  std::string body;
  unsigned status;
  std::string code;
  std::string field;
};

void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.body;
}

class RefusedForwards : public testing::TestWithParam<Refusal> {};

TEST_P(RefusedForwards, NameTheCodeAndTheField) {
  Node node;
  node.put("vm-1");
  const Response response =
      node.call("POST", "/instances/vm-1/port-forwards", GetParam().body, node.tenant_key());
  EXPECT_EQ(response.status, GetParam().status) << response.body;
  EXPECT_EQ(response.content_type, "application/problem+json");
  const auto body = Node::json(response);
  EXPECT_EQ(body.at("code").as_string(), GetParam().code);
  EXPECT_EQ(body.at("status"), GetParam().status);
  EXPECT_EQ(body.at("request_id"), "request-1");
  EXPECT_FALSE(body.at("detail").as_string().empty());
  EXPECT_FALSE(body.at("title").as_string().empty());
  if (GetParam().field.empty()) {
    EXPECT_FALSE(body.contains("field"));
  } else {
    EXPECT_EQ(body.at("field").as_string(), GetParam().field);
  }
  EXPECT_EQ(node.dataplane.bound, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Api, RefusedForwards,
    testing::Values(
        Refusal{"ssh", R"({"guest_port": 22})", 403, "blocked_port", "guest_port"},
        Refusal{"privileged", R"({"guest_port": 80})", 403, "privileged_port", "guest_port"},
        Refusal{"udp", R"({"guest_port": 3000, "protocol": "udp"})", 422, "unsupported_protocol", "protocol"},
        Refusal{"zero", R"({"guest_port": 0})", 422, "invalid_port", "guest_port"},
        Refusal{"too_high", R"({"guest_port": 65536})", 422, "invalid_port", "guest_port"},
        Refusal{"text", R"({"guest_port": "3000"})", 422, "invalid_port", "guest_port"},
        Refusal{"fraction", R"({"guest_port": 3000.5})", 422, "invalid_port", "guest_port"},
        Refusal{"missing", R"({"label": "a"})", 422, "invalid_request", "guest_port"},
        Refusal{"label", R"({"guest_port": 3000, "label": "a\nb"})", 422, "invalid_label", "label"},
        Refusal{"unknown_field", R"({"guest_port": 3000, "port": 1})", 422, "unknown_field", "port"},
        Refusal{"mistyped_field", R"({"guestport": 3000})", 422, "unknown_field", "guestport"},
        Refusal{"host_port_by_tenant", R"({"guest_port": 3000, "host_port": 20001})", 403, "forbidden",
                "host_port"},
        Refusal{"not_json", R"({"guest_port": )", 400, "malformed_json", ""},
        Refusal{"no_object", R"([3000])", 400, "malformed_json", ""}),
    [](const auto& test) { return test.param.what; });

TEST(Api, ABodyThatDoesNotSayItIsJsonIsRefused) {
  Node node;
  Request request{
      .id = "r", .method = "PUT", .target = "/instances/vm-1", .headers = {}, .body = "{}", .peer = {}};
  request.headers["authorization"] = "Bearer " + std::string(Node::kAdminKey);
  request.headers["content-type"] = "text/plain";
  EXPECT_EQ(node.api().handle(request).status, 415U);
  request.headers["content-type"] = "Application/JSON; charset=utf-8";
  EXPECT_EQ(node.api().handle(request).status, 422U);
}

TEST(Api, AnAdminMayForwardAPrivilegedPortAndChooseTheHostPort) {
  Node node;
  node.put("vm-1");
  const Response response =
      node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 80, "host_port": 20080})");
  ASSERT_EQ(response.status, 201U) << response.body;
  EXPECT_EQ(Node::json(response).at("port_forward").at("host_port"), 20080);
  const Response again =
      node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 81, "host_port": 20080})");
  EXPECT_EQ(again.status, 409U);
  EXPECT_EQ(Node::code(again), "host_port_taken");
}

TEST(Api, TheQuotaOfTheProfileHoldsAndSaysSo) {
  Node node("[profiles.small]\nmax_forwarded_ports = 1\n");
  node.call("PUT", "/instances/vm-1",
            R"({"guest_address": "198.19.0.2", "tap": "tap0", "owner": "alice", "profile": "small"})");
  ASSERT_EQ(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  const Response response = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3001})");
  EXPECT_EQ(response.status, 409U);
  const auto body = Node::json(response);
  EXPECT_EQ(body.at("code"), "quota_exceeded");
  EXPECT_EQ(body.at("limit"), 1);
  EXPECT_EQ(body.at("current"), 1);
}

TEST(Api, WithoutAKnownKeyNothingIsTold) {
  Node node;
  node.put("vm-1");
  for (const std::string key : {"", "pwk_wrong", "x"}) {
    const Response response = node.call("GET", "/instances/vm-1", "", key);
    EXPECT_EQ(response.status, 401U);
    EXPECT_EQ(header(response, "WWW-Authenticate"), "Bearer");
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

TEST(Api, ADeletedKeyIsUnknownAtOnceAndAfterARestart) {
  Node node;
  const Response made = node.call("POST", "/api-keys", R"({"role": "tenant", "owner": "alice"})");
  ASSERT_EQ(made.status, 201U);
  const std::string secret(Node::json(made).at("secret").as_string());
  const std::string id(Node::json(made).at("api_key").at("id").as_string());
  node.restart();
  EXPECT_EQ(node.call("GET", "/instances", "", secret).status, 200U);
  EXPECT_EQ(node.call("GET", "/api-keys").body.find(secret), std::string::npos);
  EXPECT_EQ(node.call("DELETE", "/api-keys/" + id).status, 204U);
  EXPECT_EQ(node.call("GET", "/instances", "", secret).status, 401U);
  node.restart();
  EXPECT_EQ(node.call("GET", "/instances", "", secret).status, 401U);
}

TEST(Api, AKeyThatCallsTooOftenIsToldWhenToComeBack) {
  Node node;
  const Config::Api limits{.rate_limit_per_second = 2};
  KeyRing ring(limits);
  ring.add({.id = make_uuid(),
            .role = Role::kTenant,
            .owner = "a",
            .secret_sha256 = sha256("k"),
            .created_at = {}});
  EXPECT_TRUE(ring.authenticate("Bearer k"));
  EXPECT_TRUE(ring.authenticate("bearer k"));
  const auto third = ring.authenticate("Bearer k");
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, ErrorCode::kRateLimited);
  EXPECT_EQ(header(problem(third.error(), "r"), "Retry-After"), "1");
}

TEST(Api, KnowsItsMethodsAndPaths) {
  Node node;
  const Response wrong = node.call("PATCH", "/instances/vm-1/port-forwards");
  EXPECT_EQ(wrong.status, 405U);
  EXPECT_EQ(header(wrong, "Allow"), "POST, GET, HEAD, OPTIONS");
  const Response options = node.call("OPTIONS", "/instances/vm-1", "", "");
  EXPECT_EQ(options.status, 204U);
  EXPECT_EQ(header(options, "Allow"), "GET, HEAD, PUT, DELETE, OPTIONS");
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

TEST(Api, ListsAreReadPageByPage) {
  Node node("[profiles.default]\nmax_forwarded_ports = 100\n");
  node.put("vm-1");
  for (int port = 3000; port < 3005; ++port) {
    node.call("POST", "/instances/vm-1/port-forwards",
              R"({"guest_port": )" + std::to_string(port) + R"(, "label": ")" +
                  (port % 2 == 0 ? "even" : "odd") + "\"}");
  }
  std::vector<std::int64_t> seen;
  std::string cursor;
  do {
    const auto page = Node::json(node.call(
        "GET", "/instances/vm-1/port-forwards?limit=2" + (cursor.empty() ? "" : "&cursor=" + cursor)));
    for (const auto& forward : page.at("port_forwards").as_array())
      seen.push_back(forward.at("guest_port").as_int64());
    cursor = page.contains("next_cursor") ? std::string(page.at("next_cursor").as_string()) : "";
  } while (!cursor.empty());
  EXPECT_EQ(seen, (std::vector<std::int64_t>{3000, 3001, 3002, 3003, 3004}));
  const auto even = Node::json(node.call("GET", "/instances/vm-1/port-forwards?label=even"));
  EXPECT_EQ(even.at("port_forwards").as_array().size(), 3U);
}

TEST(Api, AGuestAddressThatLeadsIntoTheNodeIsRefused) {
  Node node;
  for (const std::string address : {"127.0.0.1", "169.254.169.254", "10.0.0.1", "nonsense", "0.0.0.0"}) {
    const Response response =
        node.call("PUT", "/instances/vm-1",
                  R"({"guest_address": ")" + address + R"(", "tap": "tap0", "owner": "alice"})");
    EXPECT_EQ(response.status, 422U) << address;
    EXPECT_EQ(Node::code(response), "invalid_address") << address;
  }
}

TEST(Api, AnInstanceHasOneGuestAddressOrOneOfEachFamily) {
  Node node;
  const auto put = [&](const std::string& fields) {
    return node.call("PUT", "/instances/vm-1", "{" + fields + R"(, "tap": "tap0", "owner": "alice"})");
  };
  struct Case {
    std::string fields;
    boost::json::array addresses;
  };
  for (const Case& each : {
           Case{R"("guest_address": "198.19.0.2")", {"198.19.0.2"}},
           Case{R"("guest_address": "fd00:19::2")", {"fd00:19::2"}},
           Case{R"("guest_addresses": ["fd00:19::2"])", {"fd00:19::2"}},
           Case{R"("guest_addresses": ["198.19.0.2", "fd00:19::2"])", {"198.19.0.2", "fd00:19::2"}},
           Case{R"("guest_addresses": ["fd00:19::2", "198.19.0.2"])", {"198.19.0.2", "fd00:19::2"}},
           Case{R"("guest_address": "fd00:19::2", "guest_addresses": ["198.19.0.2", "fd00:19::2"])",
                {"198.19.0.2", "fd00:19::2"}},
           Case{R"("guest_address": "198.19.0.2", "guest_addresses": null)", {"198.19.0.2"}},
       }) {
    const Response response = put(each.fields);
    ASSERT_LT(response.status, 300U) << each.fields << response.body;
    const auto instance = Node::json(response).at("instance").as_object();
    EXPECT_EQ(instance.at("guest_addresses"), each.addresses) << each.fields;
    EXPECT_EQ(instance.at("guest_address"), each.addresses.at(0)) << each.fields;
  }
}

TEST(Api, GuestAddressesThatMakeNoSenseAreRefusedByField) {
  Node node;
  struct Case {
    std::string fields;
    std::string code;
    std::string field;
  };
  for (const Case& each : {
           Case{R"("profile": "default")", "invalid_request", "guest_address"},
           Case{R"("guest_addresses": "198.19.0.2")", "invalid_request", "guest_addresses"},
           Case{R"("guest_addresses": [])", "invalid_request", "guest_addresses"},
           Case{R"("guest_address": "198.19.0.2", "guest_addresses": [])", "invalid_request",
                "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "fd00:19::2", "fd00:19::3"])", "invalid_request",
                "guest_addresses"},
           Case{R"("guest_addresses": [7])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "nonsense"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "198.19.0.3"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "::ffff:198.19.0.2"])", "invalid_address",
                "guest_addresses"},
           Case{R"("guest_addresses": ["fd00:19::2", "fd00:19::3"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "::1"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "fe80::2"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["198.19.0.2", "2001:db8::2"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_addresses": ["127.0.0.1", "fd00:19::2"])", "invalid_address", "guest_addresses"},
           Case{R"("guest_address": "198.19.0.3", "guest_addresses": ["198.19.0.2", "fd00:19::2"])",
                "invalid_address", "guest_address"},
           Case{R"("guest_address": "", "guest_addresses": ["198.19.0.2"])", "invalid_address",
                "guest_address"},
       }) {
    const Response response =
        node.call("PUT", "/instances/vm-1", "{" + each.fields + R"(, "tap": "tap0", "owner": "alice"})");
    EXPECT_EQ(response.status, 422U) << each.fields;
    EXPECT_EQ(Node::code(response), each.code) << each.fields << response.body;
    EXPECT_EQ(Node::json(response).at("field").as_string(), each.field) << each.fields << response.body;
  }
}

TEST(Api, WhileItDrainsItPromisesNothingNew) {
  Node node;
  node.put("vm-1");
  node.control().drain();
  const Response response = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  EXPECT_EQ(response.status, 503U);
  EXPECT_EQ(Node::code(response), "draining");
  EXPECT_NE(header(response, "Retry-After"), "");
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

// --- Connections.

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

TEST_F(ConnectionsApi, TellsWhyTheLastOnesClosedTheLatestFirst) {
  const auto served =
      std::make_shared<ServedForward>(ForwardRoute{.id = forward, .upstream = {}, .instance_id = "vm-1"}, 1);
  const auto other = std::make_shared<ServedForward>(ForwardRoute{.id = make_uuid(), .upstream = {}}, 1);
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
      std::make_shared<ServedForward>(ForwardRoute{.id = forward, .upstream = {}, .instance_id = "vm-1"}, 1);
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
  node.control().tell_refused(refused);
  EXPECT_EQ(events->read().value(), "");
  refused.ended_at = std::chrono::seconds(21);
  node.control().tell_refused(refused);
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
                           ForwardRoute{.id = id, .upstream = {}, .instance_id = instance}, 1)};
    node.control().tell_refused(record);
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

TEST(Api, MetricsComeInTheScopeAskedFor) {
  Node node;
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics")), "metrics of scope 0");
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics?scope=all")), "metrics of scope 0");
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics?scope=node")), "metrics of scope 1");
  EXPECT_EQ(Node::whole(node.call("GET", "/metrics?scope=forwards")), "metrics of scope 2");
  const Response refused = node.call("GET", "/metrics?scope=clients");
  EXPECT_EQ(refused.status, 400U);
  EXPECT_EQ(Node::json(refused).at("field"), "scope");
  EXPECT_EQ(node.call("GET", "/metrics?scopes=node").status, 422U) << "unknown parameters are refused";
}

class OpenMetrics : public testing::Test {
 protected:
  Response get(std::string target, std::string accept_encoding = "") {
    Request request{
        .id = "r", .method = "GET", .target = std::move(target), .headers = {}, .body = {}, .peer = {}};
    if (!accept_encoding.empty()) request.headers["accept-encoding"] = std::move(accept_encoding);
    return node_.api().handle_open_metrics(request);
  }

 private:
  Node node_;
};

TEST_F(OpenMetrics, ServesMetricsAndHealthWithoutAKeyAndNothingElse) {
  EXPECT_EQ(Node::whole(get("/metrics")), "metrics of scope 0");
  EXPECT_EQ(Node::whole(get("/metrics?scope=node")), "metrics of scope 1");
  EXPECT_EQ(get("/metrics?scope=x").status, 400U);
  EXPECT_EQ(get("/healthz").status, 200U);
  EXPECT_EQ(get("/instances").status, 404U);
}

TEST(Api, ABatchAnswersWithAllOfItsForwards) {
  Node node;
  node.put("vm-1");
  const Response made = node.call(
      "POST", "/instances/vm-1/port-forwards:batch",
      R"({"port_forwards": [{"guest_port": 3000, "label": "a"}, {"guest_port": 3001}]})", node.tenant_key());
  ASSERT_EQ(made.status, 201U) << made.body;
  const auto body = Node::json(made);
  EXPECT_EQ(body.at("port_forwards").as_array().size(), 2U);
  EXPECT_EQ(body.at("port_forwards").at(0).at("label"), "a");
  EXPECT_EQ(body.at("hostname"), "compute-1.example");
}

TEST(Api, ABatchesErrorNamesTheEntryAndItsField) {
  Node node;
  node.put("vm-1");
  const auto field = [&](const std::string& body) {
    const auto problem = Node::json(node.call("POST", "/instances/vm-1/port-forwards:batch", body));
    return std::string(problem.at("field").as_string());
  };
  EXPECT_EQ(field(R"({"port_forwards": [{"guest_port": 3000}, {"guest_port": 0}]})"),
            "port_forwards[1].guest_port");
  EXPECT_EQ(field(R"({"port_forwards": [{"guest_port": 3000}, {"guest_port": 22}]})"),
            "port_forwards[1].guest_port");
  EXPECT_EQ(field(R"({"port_forwards": [{"guest_port": 3000, "port": 1}]})"), "port_forwards[0].port");
  EXPECT_EQ(field(R"({"port_forwards": [7]})"), "port_forwards[0]");
  EXPECT_EQ(field(R"({"port_forwards": []})"), "port_forwards");
  EXPECT_EQ(field(R"({})"), "port_forwards");
  EXPECT_EQ(node.control().registry().forward_count(), 0U);
}

TEST(Api, ALabelIsChangedInPlace) {
  Node node;
  node.put("vm-1");
  const Response made = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  const auto forward = Node::json(made).at("port_forward").as_object();
  const std::string path = "/instances/vm-1/port-forwards/" + std::string(forward.at("id").as_string());
  const Response changed = node.call("PATCH", path, R"({"label": "shop"})", node.tenant_key());
  ASSERT_EQ(changed.status, 200U) << changed.body;
  EXPECT_EQ(Node::json(changed).at("port_forward").at("label"), "shop");
  EXPECT_EQ(Node::json(changed).at("port_forward").at("host_port"), forward.at("host_port"));
  EXPECT_EQ(node.call("PATCH", path, R"({"label": "a\u0007b"})").status, 422U);
  EXPECT_EQ(node.call("PATCH", path, R"({"host_port": 20001})").status, 422U);
  EXPECT_EQ(node.call("PATCH", path, R"({"label": "x"})", node.tenant_key("bob")).status, 404U);
  node.restart();
  EXPECT_EQ(Node::json(node.call("GET", path)).at("port_forward").at("label"), "shop");
}

TEST(Api, LimitsAreSetChangedAndTakenAway) {
  Node node;
  node.put("vm-1");
  const Response made =
      node.call("POST", "/instances/vm-1/port-forwards",
                R"({"guest_port": 3000, "allowed_cidrs": ["203.0.113.0/24", "2001:db8::/32"],
                                      "max_connections": 10, "max_bytes_per_second": 1000000})",
                node.tenant_key());
  ASSERT_EQ(made.status, 201U) << made.body;
  const auto forward = Node::json(made).at("port_forward").as_object();
  EXPECT_EQ(forward.at("allowed_cidrs").as_array().size(), 2U);
  EXPECT_EQ(forward.at("max_connections"), 10);
  EXPECT_FALSE(forward.contains("max_connections_per_source"));
  const std::string id(forward.at("id").as_string());
  const std::string path = "/instances/vm-1/port-forwards/" + id;
  const auto limits = [&] { return node.dataplane.opened.at(parse_uuid(id).value()).first.limits; };
  EXPECT_EQ(limits().max_connections, 10U);

  const Response changed = node.call(
      "PATCH", path, R"({"allowed_cidrs": null, "max_connections": 20, "max_connections_per_source": 2})");
  ASSERT_EQ(changed.status, 200U) << changed.body;
  EXPECT_TRUE(limits().allowed_cidrs.empty());
  EXPECT_EQ(limits().max_connections, 20U);
  EXPECT_EQ(limits().max_connections_per_source, 2U);
  EXPECT_EQ(limits().max_bytes_per_second, 1'000'000U);
  node.restart();
  EXPECT_EQ(limits().max_connections, 20U);

  for (const char* wrong :
       {R"({"allowed_cidrs": "203.0.113.0/24"})", R"({"allowed_cidrs": ["203.0.113.0/33"]})",
        R"({"allowed_cidrs": [7]})", R"({"max_connections": 0})", R"({"max_bytes_per_second": -1})",
        R"({"max_new_connections_per_second": 1.5})"}) {
    EXPECT_EQ(node.call("PATCH", path, wrong).status, 422U) << wrong;
  }
}

class AdminLimits : public testing::Test {
 protected:
  AdminLimits() { node_.put("vm-1"); }

  /// The path of a new forward.
  std::string create(const std::string& body, std::string_view key) {
    const Response made = node_.call("POST", "/instances/vm-1/port-forwards", body, key);
    EXPECT_EQ(made.status, 201U) << made.body;
    return "/instances/vm-1/port-forwards/" + forward_id(made);
  }
  boost::json::object forward(const std::string& path) {
    return Node::json(node_.call("GET", path)).at("port_forward").as_object();
  }
  void expect_refused(const std::string& path, const std::string& body, const std::string& field) {
    const Response refused = node_.call("PATCH", path, body, tenant_);
    EXPECT_EQ(refused.status, 403U) << body;
    EXPECT_EQ(Node::code(refused), "forbidden");
    EXPECT_EQ(Node::json(refused).at("field").as_string(), field);
    EXPECT_THAT(std::string(Node::json(refused).at("detail").as_string()), HasSubstr("An admin has set"));
  }

  Node node_;
  const std::string admin_{Node::kAdminKey};
  const std::string tenant_ = node_.tenant_key();
};

// The operator throttled a forward, and its tenant lifted that with the next PATCH.
TEST_F(AdminLimits, AreTheAdminsToChangeAndSurviveARestart) {
  const std::string path = create(R"({"guest_port": 3000, "max_connections": 10})", tenant_);
  EXPECT_FALSE(forward(path).contains("admin_limits"));
  ASSERT_EQ(
      node_.call("PATCH", path, R"({"max_connections": 5, "allowed_cidrs": ["203.0.113.0/24"]})").status,
      200U);
  for (int run = 0; run < 2; ++run) {
    EXPECT_EQ(forward(path).at("admin_limits"), (boost::json::array{"allowed_cidrs", "max_connections"}));
    for (const std::string value : {"100", "5", "1", "null"}) {
      expect_refused(path, R"({"max_connections": )" + value + "}", "max_connections");
    }
    expect_refused(path, R"({"allowed_cidrs": []})", "allowed_cidrs");
    expect_refused(path, R"({"label": "x", "max_connections": null})", "max_connections");
    EXPECT_EQ(forward(path).at("max_connections"), 5);
    EXPECT_EQ(forward(path).at("label"), "") << "nothing of a refused change is made";
    node_.restart();
  }
  // What no admin has set stays the tenant's, and where its guest sees its clients from always is.
  const Response own = node_.call(
      "PATCH", path, R"({"label": "mine", "max_bytes_per_second": 1000, "source_mode": "plain"})", tenant_);
  EXPECT_EQ(own.status, 200U) << own.body;
  EXPECT_EQ(node_.call("PATCH", path, R"({"max_bytes_per_second": null})", tenant_).status, 200U);
}

TEST_F(AdminLimits, AreGivenBackByTakingThemAway) {
  const std::string path =
      create(R"({"guest_port": 3000, "max_connections": 5, "max_bytes_per_second": 1000})", admin_);
  EXPECT_EQ(forward(path).at("admin_limits"),
            (boost::json::array{"max_connections", "max_bytes_per_second"}));
  expect_refused(path, R"({"max_bytes_per_second": 2000})", "max_bytes_per_second");
  ASSERT_EQ(node_.call("PATCH", path, R"({"max_bytes_per_second": null, "label": "x"})").status, 200U);
  EXPECT_EQ(forward(path).at("admin_limits"), boost::json::array{"max_connections"});
  EXPECT_EQ(node_.call("PATCH", path, R"({"max_bytes_per_second": 2000})", tenant_).status, 200U);
  EXPECT_EQ(forward(path).at("admin_limits"), boost::json::array{"max_connections"}) << "a tenant's own";
  ASSERT_EQ(node_.call("PATCH", path, R"({"max_connections": null})").status, 200U);
  EXPECT_FALSE(forward(path).contains("admin_limits"));
}

TEST_F(AdminLimits, AreRememberedOfABatchToo) {
  const Response made = node_.call("POST", "/instances/vm-1/port-forwards:batch", R"({"port_forwards": [
      {"guest_port": 3000, "max_connections": 5}, {"guest_port": 3001}]})");
  ASSERT_EQ(made.status, 201U) << made.body;
  const auto list = Node::json(made).at("port_forwards").as_array();
  EXPECT_EQ(list[0].at("admin_limits"), boost::json::array{"max_connections"});
  EXPECT_FALSE(list[1].as_object().contains("admin_limits"));
  const std::string path = "/instances/vm-1/port-forwards/" + std::string(list[0].at("id").as_string());
  expect_refused(path, R"({"max_connections": 6})", "max_connections");
  const Response own =
      node_.call("POST", "/instances/vm-1/port-forwards:batch",
                 R"({"port_forwards": [{"guest_port": 3002, "max_connections": 5}]})", tenant_);
  EXPECT_FALSE(Node::json(own).at("port_forwards").at(0).as_object().contains("admin_limits"));
}

TEST(Api, ACaptureHasBoundsAndNeedsAnAdmin) {
  Node node;
  node.put("vm-1");
  const Response made = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  const std::string id(Node::json(made).at("port_forward").at("id").as_string());
  const std::string path = "/instances/vm-1/port-forwards/" + id + "/capture";
  EXPECT_EQ(node.call("POST", path, "", node.tenant_key()).status, 403U);
  EXPECT_EQ(node.call("POST", path + "?seconds=61").status, 422U);
  EXPECT_EQ(node.call("POST", path + "?max_bytes=17000000").status, 422U);
  const Response gone = node.call("POST", path);  // the tap of this test does not exist
  EXPECT_EQ(gone.status, 409U) << gone.body;
}

TEST(Api, ACheckSaysThatTheTapIsMissing) {
  Node node;
  node.put("vm-1");
  const Response made = node.call("POST", "/instances/vm-1/port-forwards",
                                  R"({"guest_port": 3000, "allowed_cidrs": ["203.0.113.0/24"]})");
  const std::string id(Node::json(made).at("port_forward").at("id").as_string());
  const std::string path = "/instances/vm-1/port-forwards/" + id + "/check";
  EXPECT_EQ(node.call("GET", path + "?client=nobody").status, 422U);
  const Response answer = node.call("GET", path + "?client=198.51.100.1", "", node.tenant_key());
  ASSERT_EQ(answer.status, 200U);
  const auto check = boost::json::parse(answer.stream->read().value()).at("check").as_object();
  EXPECT_EQ(answer.stream->read(), std::nullopt);
  EXPECT_EQ(check.at("ok"), false);
  EXPECT_EQ(check.at("steps").at(0).at("ok"), true);
  EXPECT_EQ(check.at("steps").at(1).at("step"), "source");
  EXPECT_EQ(check.at("steps").at(1).at("ok"), false);
  EXPECT_EQ(check.at("steps").at(2).at("step"), "tap");
  EXPECT_EQ(check.at("steps").as_array().size(), 3U);
}

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
  EXPECT_EQ(Node::header(second, "Idempotency-Replayed"), "true");
  EXPECT_EQ(node.control().registry().forward_count(), 1U);

  const Response other = node.call_once("again", "POST", path, R"({"guest_port": 3001})");
  EXPECT_EQ(other.status, 422U);
  EXPECT_EQ(Node::code(other), "idempotency_key_reused");
  // Another owner's key of the same name is another key.
  EXPECT_EQ(node.call_once("again", "POST", path, R"({"guest_port": 3001})", node.tenant_key()).status, 201U);
}

// A 201 promises a port that leads to the caller's guest: said again after that has ended, it would send
// clients to whoever has the port next.
TEST(Api, AnAnswerIsNotGivenAgainWhenWhatItMadeIsGone) {
  const std::string path = "/instances/vm-1/port-forwards";
  const std::string body = R"({"guest_port": 3000})";
  for (const std::string end : {"forward deleted", "stopped", "new session", "deleted and registered anew"}) {
    Node node;
    node.put("vm-1");
    const std::string tenant = node.tenant_key();
    const Response first = node.call_once("again", "POST", path, body, tenant);
    ASSERT_EQ(first.status, 201U) << first.body;
    if (end == "forward deleted") node.call("DELETE", path + "/" + forward_id(first));
    if (end == "stopped" || end == "new session") node.call("POST", "/instances/vm-1/stop");
    if (end == "deleted and registered anew") node.call("DELETE", "/instances/vm-1");
    if (end != "forward deleted" && end != "stopped") node.put("vm-1");
    for (int run = 0; run < 2; ++run) {
      const Response again = node.call_once("again", "POST", path, body, tenant);
      EXPECT_EQ(again.status, 409U) << end << ": " << again.body;
      EXPECT_EQ(Node::code(again), "idempotent_answer_gone") << end;
      EXPECT_EQ(node.control().registry().forward_count(), 0U) << "nor is it made again";
      node.restart();
    }
    if (end == "stopped") node.put("vm-1");
    EXPECT_EQ(node.call_once("anew", "POST", path, body, tenant).status, 201U) << end;
  }
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

TEST(Api, KeysAreListedPageByPage) {
  Node node;
  for (int i = 0; i < 3; ++i) node.tenant_key();
  const auto first = Node::json(node.call("GET", "/api-keys?limit=2"));
  EXPECT_EQ(first.at("api_keys").as_array().size(), 2U);
  const std::string cursor(first.at("next_cursor").as_string());
  const auto second = Node::json(node.call("GET", "/api-keys?limit=2&cursor=" + cursor));
  EXPECT_EQ(second.at("api_keys").as_array().size(), 2U);  // three, and the admin key file's
  EXPECT_FALSE(second.contains("next_cursor"));
}

TEST_F(OpenMetrics, AreCompressedForWhoTakesThat) {
  const auto header = [](const Response& response, std::string_view name) -> std::string {
    for (const auto& [key, value] : response.headers) {
      if (key == name) return value;
    }
    return "";
  };
  const Response plain = get("/metrics");
  EXPECT_EQ(header(plain, "Content-Encoding"), "");
  EXPECT_EQ(header(plain, "Vary"), "Accept-Encoding");
  const Response zipped = get("/metrics", "gzip");  // as Prometheus asks
  EXPECT_EQ(header(zipped, "Content-Encoding"), "gzip");
  EXPECT_EQ(Node::whole(zipped).substr(0, 2), "\x1f\x8b");
}

/// What GET /readyz and POST of a forward say, by turns: the same.
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
  node.control().drain();
  expect_ready_as_post(node, "draining");
}

TEST(Readiness, FollowsTheDiskAlsoWhenNobodyWantsAnythingOfIt) {
  Node node;
  node.put("vm-1");
  const auto becomes = [&node](unsigned status) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (node.call("GET", "/readyz", "", "").status != status) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));  // the store's thread asks the disk
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

TEST(Handlers, AnotherOwnersInstanceLooksAsIfItDidNotExist) {
  Node node;
  node.put("vm-1", "alice");
  const std::string alices = "/instances/vm-1";
  const Response forward =
      node.call("POST", alices + "/port-forwards", R"({"guest_port": 3000})", node.tenant_key("alice"));
  ASSERT_EQ(forward.status, 201U) << forward.body;
  const std::string mallory = node.tenant_key("mallory");
  const std::string unknown_id = "00000000-0000-7000-8000-000000000000";
  for (const std::string& path : {std::string(), std::string("/port-forwards"),
                                  "/port-forwards/" + forward_id(forward), "/port-forwards/" + unknown_id}) {
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
  return node.api().handle(request);
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

TEST(AdminUids, AreHeldToTheRateLimitEachForItself) {
  const Config::Api limits{.rate_limit_per_second = 2};
  KeyRing keys(limits);
  EXPECT_EQ(keys.authenticate_user(0)->owner, "uid:0");
  EXPECT_TRUE(keys.authenticate_user(0));
  const auto third = keys.authenticate_user(0);
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, ErrorCode::kRateLimited);
  EXPECT_TRUE(keys.authenticate_user(1000));
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

/// The other way round, and what each answers, is openapi_test.py's.
TEST(Contract, DocumentsEveryRouteAndWhoMayCallIt) {
  Node node;
  const auto paths = boost::json::parse(openapi_json()).at("paths").as_object();
  for (const Route& route : node.api().routes()) {
    std::string method(route.method);
    std::ranges::transform(method, method.begin(), [](char c) { return static_cast<char>(std::tolower(c)); });
    const auto* path = paths.if_contains(route.pattern);
    const auto* operation = path == nullptr ? nullptr : path->as_object().if_contains(method);
    ASSERT_NE(operation, nullptr) << route.method << " " << route.pattern;
    const auto& fields = operation->as_object();
    EXPECT_EQ(fields.contains("security"), route.access == Access::kPublic) << route.pattern;
    EXPECT_EQ(std::string(fields.at("summary").as_string()).ends_with("(admin)"),
              route.access == Access::kAdmin)
        << route.method << " " << route.pattern;
  }
}

/// The query parameters that the contract documents for an operation.
std::vector<std::string> documented_parameters(const boost::json::object& contract, const Route& route) {
  const auto& path = contract.at("paths").at(route.pattern).as_object();
  std::string method(route.method);
  std::ranges::transform(method, method.begin(), [](char c) { return static_cast<char>(std::tolower(c)); });
  std::vector<std::string> names;
  for (const boost::json::object& owner : {path, path.at(method).as_object()}) {
    const auto* list = owner.if_contains("parameters");
    if (list == nullptr) continue;
    for (boost::json::value parameter : list->as_array()) {
      if (const auto* reference = parameter.as_object().if_contains("$ref")) {
        const std::string_view name = reference->as_string();
        parameter = contract.at("components").at("parameters").at(name.substr(name.rfind('/') + 1));
      }
      if (parameter.at("in") == "query") names.emplace_back(parameter.at("name").as_string());
    }
  }
  return names;
}

TEST(Contract, DocumentsEveryQueryParameter) {
  Node node;
  const auto contract = boost::json::parse(openapi_json()).as_object();
  for (const Route& route : node.api().routes()) {
    std::vector<std::string> listed;
    for (const auto& parameter : route.query.listed()) listed.emplace_back(parameter.name);
    EXPECT_THAT(documented_parameters(contract, route), testing::UnorderedElementsAreArray(listed))
        << route.method << " " << route.pattern;
  }
}

}  // namespace
}  // namespace portway
