// API keys over the API.

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using namespace std::chrono_literals;
using test::Node;

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

// --- What a key is made with.

/// Who may call which route: T a tenant's key, t one of scope read, A an admin's, a one of scope read, m one
/// of scope metrics. A route that is not here fails the test: whoever adds one decides.
const std::map<std::string, std::string>& callers_of_routes() {
  static const std::map<std::string, std::string> table = {
      {"GET /instances", "TtAa"},
      {"GET /instances/{id}", "TtAa"},
      {"PUT /instances/{id}", "A"},
      {"PATCH /instances/{id}", "A"},
      {"DELETE /instances/{id}", "A"},
      {"POST /instances/{id}/stop", "A"},
      {"POST /instances/{id}/port-forwards", "TA"},
      {"POST /instances/{id}/port-forwards:batch", "TA"},
      {"PUT /instances/{id}/port-forwards", "TA"},
      {"GET /instances/{id}/port-forwards", "TtAa"},
      {"DELETE /instances/{id}/port-forwards", "TA"},
      {"GET /port-forwards", "TtAa"},
      {"GET /instances/{id}/port-forwards/{forward_id}", "TtAa"},
      {"PATCH /instances/{id}/port-forwards/{forward_id}", "TA"},
      {"DELETE /instances/{id}/port-forwards/{forward_id}", "TA"},
      {"GET /instances/{id}/port-forwards/{forward_id}/connections", "TtAa"},
      {"DELETE /instances/{id}/port-forwards/{forward_id}/connections", "TA"},
      {"DELETE /instances/{id}/port-forwards/{forward_id}/connections/{connection_id}", "TA"},
      {"GET /instances/{id}/port-forwards/{forward_id}/check", "TtAa"},
      {"POST /instances/{id}/port-forwards/{forward_id}/capture", "A"},
      {"GET /instances/{id}/activity", "TtAa"},
      {"GET /usage", "TtAa"},
      {"GET /connections/recent", "Aa"},
      {"GET /events", "TtAa"},
      {"GET /api-keys", "Aa"},
      {"POST /api-keys", "A"},
      {"GET /api-keys/{id}", "Aa"},
      {"PATCH /api-keys/{id}", "A"},
      {"DELETE /api-keys/{id}", "A"},
      {"POST /api-keys/{id}/rotate", "A"},
      {"GET /v1/whoami", "TtAam"},
      {"GET /whoami", "TtAam"},
      {"GET /profiles", "TtAa"},
      {"GET /v1/info", "TtAa"},
      {"GET /v1/node", "Aa"},
      {"POST /v1/node/upgrade", "A"},
      {"POST /v1/node/drain", "A"},
      {"DELETE /v1/node/drain", "A"},
      {"POST /v1/node/backup", "A"},
      {"GET /metrics", "Aam"},
      {"GET /healthz", "TtAam"},
      {"GET /readyz", "TtAam"},
      {"GET /version", "TtAam"},
      {"GET /openapi.json", "TtAam"},
      {"GET /ui", "TtAam"},
      {"GET /ui/{file}", "TtAam"},
  };
  return table;
}

std::string path_with(std::string_view pattern, const std::string& id, const std::string& forward_id = "x") {
  std::string path(pattern);
  for (const auto& [name, value] : {std::pair<std::string, std::string>{"{id}", id},
                                    {"{forward_id}", forward_id},
                                    {"{connection_id}", "1"},
                                    {"{file}", "app.js"}}) {
    if (const auto at = path.find(name); at != std::string::npos) path.replace(at, name.size(), value);
  }
  return path;
}

TEST(KeyScopes, AreCheckedByEachRouteAsTheTableHasIt) {
  Node node;
  const std::map<char, std::string> keys = {
      {'T', node.tenant_key()},
      {'t', Node::secret_of(node.make_key("tenant", "alice", R"(, "scope": "read")"))},
      {'A', Node::secret_of(node.make_key("admin", "ops"))},
      {'a', Node::secret_of(node.make_key("admin", "ops", R"(, "scope": "read")"))},
      {'m', Node::secret_of(node.make_key("admin", "prometheus", R"(, "scope": "metrics")"))}};
  for (const Route& route : node.api().routes()) {
    const std::string name = std::string(route.method) + " " + std::string(route.pattern);
    ASSERT_TRUE(callers_of_routes().contains(name)) << name << ": say in the table who may call it";
    const std::string& callers = callers_of_routes().at(name);
    for (const auto& [letter, key] : keys) {
      const bool may = callers.find(letter) != std::string::npos;
      const Response response = node.call(std::string(route.method), path_with(route.pattern, "none"),
                                          route.method == "GET" ? "" : "{}", key);
      EXPECT_EQ(response.status == 403, !may) << name << " by " << letter << ": " << response.body;
      if (!may) {
        EXPECT_EQ(Node::code(response), "forbidden");
      }
    }
  }
  EXPECT_EQ(callers_of_routes().size(), node.api().routes().size());
}

TEST(KeyScopes, ReadPermitsHeadAndSaysWhatItRefuses) {
  Node node;
  node.put("vm-1");
  const std::string key = Node::secret_of(node.make_key("tenant", "alice", R"(, "scope": "read")"));
  EXPECT_EQ(node.call("HEAD", "/instances/vm-1", "", key).status, 200U);
  const Response refused = node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})", key);
  EXPECT_EQ(refused.status, 403U);
  EXPECT_NE(refused.body.find("scope of this key is read"), std::string::npos);
  EXPECT_EQ(
      Node::json(node.call("GET", "/instances/vm-1/port-forwards")).at("port_forwards").as_array().size(),
      0U);
}

/// Two tenants and two instances of one of them.
class KeyOfOneInstance : public testing::Test {
 protected:
  KeyOfOneInstance() {
    for (const std::string id : {"vm-1", "vm-2"}) node_.put_at(id, "198.19.0." + id.substr(3), "alice");
    node_.put_at("vm-3", "198.19.0.3", "bob");
  }
  Response call(const std::string& method, const std::string& target, const std::string& body = "") {
    return node_.call(method, target, body, key_);
  }
  std::string forward_of(const std::string& id) {
    return Node::forward_id(
        node_.call("POST", "/instances/" + id + "/port-forwards", R"({"guest_port": 3000})"));
  }

  Node node_;
  const std::string key_ = Node::secret_of(node_.make_key("tenant", "alice", R"(, "instance_id": "vm-1")"));
};

TEST_F(KeyOfOneInstance, SeesNoOtherAtAnyRoute) {
  const std::map<std::string, std::string> bodies = {
      {"POST /instances/{id}/port-forwards", R"({"guest_port": 3001})"},
      {"POST /instances/{id}/port-forwards:batch", R"({"port_forwards": [{"guest_port": 3001}]})"},
      {"PUT /instances/{id}/port-forwards", R"({"port_forwards": []})"},
      {"PATCH /instances/{id}/port-forwards/{forward_id}", R"({"label": "x"})"}};
  const std::string others = forward_of("vm-2");
  const std::string bobs = forward_of("vm-3");
  for (const Route& route : node_.api().routes()) {
    if (route.access == Access::kPublic || !route.pattern.starts_with("/instances/")) continue;
    const std::string method(route.method);
    const std::string name = method + " " + std::string(route.pattern);
    const auto body = bodies.find(name);
    const auto ask = [&](const std::string& id, const std::string& forward) {
      return call(method, path_with(route.pattern, id, forward), body == bodies.end() ? "" : body->second);
    };
    const unsigned expected = route.access == Access::kTenant ? 404 : 403;
    const Response unknown = ask("vm-4", others);
    EXPECT_EQ(unknown.status, expected) << name << unknown.body;
    for (const Response& other : {ask("vm-2", others), ask("vm-3", bobs)}) {
      EXPECT_EQ(other.status, expected) << name << other.body;
      EXPECT_EQ(other.body, unknown.body) << name;
    }
    if (route.pattern.find("{forward_id}") != std::string_view::npos && route.access == Access::kTenant) {
      EXPECT_EQ(ask("vm-1", others).status, 404U) << name;
    }
  }
}

TEST_F(KeyOfOneInstance, WorksWithItsOwn) {
  const Response made = call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
  ASSERT_EQ(made.status, 201U) << made.body;
  const std::string path = "/instances/vm-1/port-forwards/" + Node::forward_id(made);
  EXPECT_EQ(call("PATCH", path, R"({"label": "x"})").status, 200U);
  EXPECT_EQ(call("GET", path + "/connections").status, 200U);
  EXPECT_EQ(call("DELETE", path).status, 204U);
}

TEST_F(KeyOfOneInstance, ListsOnlyThat) {
  const auto ids = [this](const std::string& query) {
    std::string all;
    const auto answer = Node::json(call("GET", "/instances" + query));
    for (const auto& each : answer.at("instances").as_array())
      all += std::string(each.at("id").as_string()) + " ";
    return all;
  };
  EXPECT_EQ(ids(""), "vm-1 ");
  EXPECT_EQ(ids("?limit=1"), "vm-1 ");
  EXPECT_FALSE(Node::json(call("GET", "/instances?limit=1")).contains("next_cursor"));
  EXPECT_EQ(ids("?cursor=vm-0"), "vm-1 ");
  EXPECT_EQ(ids("?cursor=vm-1"), "");
  node_.put_at("vm-1", "198.19.0.1", "bob");
  EXPECT_EQ(ids(""), "") << "it is another owner's now";
  EXPECT_EQ(call("GET", "/instances/vm-1").status, 404U);
}

TEST_F(KeyOfOneInstance, FollowsNoOthersEvents) {
  const Response events = call("GET", "/events");
  ASSERT_NE(events.stream, nullptr);
  while (const auto piece = events.stream->read()) {
    if (piece->empty()) break;
  }
  forward_of("vm-2");
  forward_of("vm-3");
  const std::string own = forward_of("vm-1");
  const std::string text = events.stream->read().value_or("");
  EXPECT_NE(text.find(own), std::string::npos);
  EXPECT_EQ(text.find("vm-2"), std::string::npos);
  EXPECT_EQ(text.find("vm-3"), std::string::npos);
}

TEST_F(KeyOfOneInstance, LeavesItsOwnerStreamsAndIdempotencyKeys) {
  std::vector<Response> open;
  const std::string second = Node::secret_of(node_.make_key("tenant", "alice", R"(, "instance_id": "vm-1")"));
  for (std::size_t i = 0; i < StreamLimits().instance; ++i)
    open.push_back(node_.call("GET", "/events", "", i % 2 == 0 ? key_ : second));
  EXPECT_NE(open.back().stream, nullptr);
  const Response refused = call("GET", "/events");
  EXPECT_EQ(Node::code(refused), "stream_limit");
  EXPECT_EQ(Node::json(refused).at("limit"), StreamLimits().instance);
  EXPECT_NE(node_.call("GET", "/events", "", node_.tenant_key("alice")).stream, nullptr);

  const std::string path = "/instances/vm-1/port-forwards";
  EXPECT_EQ(node_.call_once("once", "POST", path, R"({"guest_port": 3000})", key_).status, 201U);
  EXPECT_EQ(node_.call_once("once", "POST", path, R"({"guest_port": 3001})", key_).status, 422U);
  EXPECT_EQ(
      node_.call_once("once", "POST", path, R"({"guest_port": 3001})", node_.tenant_key("alice")).status,
      201U);
}

TEST(Keys, AreMadeAsTheyAreAskedForAndKeptSo) {
  Node node;
  const auto made = node.make_key("tenant", "alice", R"(, "description": "CI, grüße", "scope": "read",
      "instance_id": "vm-1", "expires_at": "2999-12-31T23:59:59+01:00")");
  const auto& key = made.at("api_key");
  EXPECT_EQ(key.at("description"), "CI, grüße");
  EXPECT_EQ(key.at("scope"), "read");
  EXPECT_EQ(key.at("instance_id"), "vm-1");
  EXPECT_EQ(key.at("expires_at"), "2999-12-31T22:59:59.000Z");
  EXPECT_EQ(key.at("state"), "active");
  const std::string id = Node::id_of(made);
  EXPECT_EQ(Node::secret_of(made).substr(0, 41), "pwk_" + id + "_") << "whoever finds it can trace it";
  const std::string path = "/api-keys/" + id;
  EXPECT_EQ(Node::json(node.call("GET", path)).at("api_key"), key);
  node.restart();
  EXPECT_EQ(Node::json(node.call("GET", path)).at("api_key"), key);
  EXPECT_EQ(node.call("GET", path).body.find(Node::secret_of(made).substr(41)), std::string::npos);
  EXPECT_EQ(node.call("GET", "/api-keys/0190b2c0-0000-7000-8000-000000000000").status, 404U);
  EXPECT_EQ(node.call("GET", "/api-keys/x").status, 404U);
}

TEST(Keys, AreRefusedByFieldIfTheyMakeNoSense) {
  Node node;
  const auto field_of = [&](const std::string& body) {
    const Response response = node.call("POST", "/api-keys", "{\"owner\": \"alice\", " + body + "}");
    EXPECT_EQ(response.status, 422U) << body << response.body;
    return std::string(Node::json(response).at("field").as_string());
  };
  const std::string tenant = R"("role": "tenant", )";
  const std::string admin = R"("role": "admin", )";
  EXPECT_EQ(field_of(R"("scope": "full")"), "role");
  EXPECT_EQ(field_of(R"("role": "root")"), "role");
  EXPECT_EQ(field_of(tenant + R"("scope": "write")"), "scope");
  EXPECT_EQ(field_of(tenant + R"("scope": "metrics")"), "scope");
  EXPECT_EQ(field_of(tenant + R"("scope": 7)"), "scope");
  EXPECT_EQ(field_of(admin + R"("instance_id": "vm-1")"), "instance_id");
  EXPECT_EQ(field_of(tenant + R"("instance_id": "")"), "instance_id");
  EXPECT_EQ(field_of(tenant + R"("instance_id": "a/b")"), "instance_id");
  EXPECT_EQ(field_of(tenant + R"("description": ")" + std::string(257, 'x') + "\""), "description");
  EXPECT_EQ(field_of(tenant + R"("description": "a\nb")"), "description");
  EXPECT_EQ(field_of(tenant + R"("expires_at": "tomorrow")"), "expires_at");
  EXPECT_EQ(field_of(tenant + R"("expires_at": "2000-01-01T00:00:00Z")"), "expires_at");
  EXPECT_EQ(field_of(tenant + R"("expires_at": 4102444800)"), "expires_at");
  EXPECT_EQ(field_of(tenant + R"("ttl_seconds": 0)"), "ttl_seconds");
  EXPECT_EQ(field_of(tenant + R"("ttl_seconds": 315360001)"), "ttl_seconds");
  EXPECT_EQ(field_of(tenant + R"("ttl_seconds": 1, "expires_at": "2999-01-01T00:00:00Z")"), "ttl_seconds");
  EXPECT_EQ(field_of(tenant + R"("secret": "pwk_mine")"), "secret");
  EXPECT_EQ(Node::json(node.call("GET", "/api-keys")).at("api_keys").as_array().size(), 1U);
}

TEST(Keys, FromBeforeTheyNamedTheirKeyStillWork) {
  Node node;
  const std::string secret = "pwk_" + std::string(43, 'A');
  ApiKey key;
  key.id = make_uuid();
  key.owner = "alice";
  key.secret_sha256 = sha256(secret);
  ASSERT_TRUE(node.run(node.store().add_api_key(key)));
  node.restart();
  EXPECT_EQ(Node::json(node.call("GET", "/whoami", "", secret)).at("whoami").at("key_id"),
            to_string(key.id).c_str());
}

// --- Changes.

TEST(Keys, CanBeDescribedAnewAndLastLonger) {
  Node node;
  const auto made = node.make_key("tenant", "alice", R"(, "ttl_seconds": 60)");
  const std::string path = "/api-keys/" + Node::id_of(made);
  const auto patched = [&](const std::string& body) { return node.call("PATCH", path, body); };
  EXPECT_EQ(Node::json(patched(R"({"description": "CI"})")).at("api_key").at("description"), "CI");
  EXPECT_EQ(Node::json(patched(R"({"expires_at": "2999-01-01T00:00:00Z"})")).at("api_key").at("expires_at"),
            "2999-01-01T00:00:00.000Z");
  node.restart();
  const auto kept = Node::json(node.call("GET", path)).at("api_key");
  EXPECT_EQ(kept.at("description"), "CI");
  EXPECT_EQ(kept.at("expires_at"), "2999-01-01T00:00:00.000Z");
  EXPECT_FALSE(
      Node::json(patched(R"({"expires_at": null})")).at("api_key").as_object().contains("expires_at"));
  EXPECT_EQ(Node::json(patched(R"({"description": null})")).at("api_key").at("description"), "");
  EXPECT_EQ(Node::json(patched(R"({"expires_at": "2000-01-01T00:00:00Z"})")).at("field"), "expires_at");
  EXPECT_EQ(Node::json(patched(R"({"scope": "full"})")).at("code"), "unknown_field");
  EXPECT_EQ(Node::json(patched(R"({"ttl_seconds": 1})")).at("code"), "unknown_field");
  EXPECT_EQ(node.call("PATCH", "/api-keys/0190b2c0-0000-7000-8000-000000000000", "{}").status, 404U);
}

TEST(Keys, OfTheAdminKeyFileAreChangedThere) {
  Node node;
  const auto id = Node::json(node.call("GET", "/whoami")).at("whoami").at("key_id").as_string();
  const std::string path = "/api-keys/" + std::string(id);
  for (const Response& response : {node.call("PATCH", path, R"({"description": "x"})"),
                                   node.call("POST", path + "/rotate"), node.call("DELETE", path)}) {
    EXPECT_EQ(response.status, 403U);
    EXPECT_NE(response.body.find(node.config().api.admin_key_file), std::string::npos) << response.body;
  }
  EXPECT_EQ(node.call("GET", path).status, 200U);
}

TEST(Keys, OfTheAdminKeyFileAreTheOnesThatTheirSecretNames) {
  Node node;
  const auto who = [&](const std::string& secret) {
    const Response response = node.call("GET", "/whoami", "", secret);
    return response.status == 200 ? std::string(Node::json(response).at("whoami").at("key_id").as_string())
                                  : "";
  };
  const Uuid id = make_uuid();
  const std::string secret = make_secret(id);
  node.control().set_admin_key(secret);
  EXPECT_EQ(who(secret), to_string(id));
  // One that a stored key has is not taken from it, whichever comes first.
  node.control().set_admin_key(Node::kAdminKey);
  const auto stored = node.make_key("tenant", "alice");
  const std::string same_id = make_secret(*parse_uuid(Node::id_of(stored)));
  node.control().set_admin_key(same_id);
  EXPECT_EQ(who(Node::secret_of(stored)), Node::id_of(stored));
  EXPECT_NE(who(same_id), Node::id_of(stored));
  EXPECT_NE(who(same_id), "");
}

// --- Rotation.

class Rotation : public testing::Test {
 protected:
  unsigned status_with(const std::string& secret) {
    return node_.call("GET", "/instances", "", secret).status;
  }
  std::string rotate(const std::string& body = "") {
    const Response response = node_.call("POST", path_ + "/rotate", body);
    EXPECT_EQ(response.status, 200U) << response.body;
    return Node::secret_of(Node::json(response));
  }
  boost::json::object key() { return Node::json(node_.call("GET", path_)).at("api_key").as_object(); }
  bool ended(const Response& events) { return !events.stream->read().has_value(); }

  Node node_;
  const boost::json::object made_ = node_.make_key("tenant", "alice");
  const std::string first_ = Node::secret_of(made_);
  const std::string path_ = "/api-keys/" + Node::id_of(made_);
};

TEST_F(Rotation, EndsTheOldSecretAndItsStreamsAtOnce) {
  const Response events = node_.call("GET", "/events", "", first_);
  EXPECT_FALSE(ended(events));
  const std::string second = rotate();
  EXPECT_EQ(second.substr(0, 41), first_.substr(0, 41)) << "it is the same key";
  EXPECT_NE(second, first_);
  EXPECT_TRUE(ended(events));
  EXPECT_EQ(status_with(first_), 401U);
  EXPECT_EQ(status_with(second), 200U);
  EXPECT_FALSE(key().contains("old_secret_valid_until"));
  node_.restart();
  EXPECT_EQ(status_with(first_), 401U);
  EXPECT_EQ(status_with(second), 200U);
}

TEST_F(Rotation, LeavesTheOldSecretItsOverlapAndNoLonger) {
  const Response of_first = node_.call("GET", "/events", "", first_);
  const std::string second = rotate(R"({"overlap_seconds": 3600})");
  const Response of_second = node_.call("GET", "/events", "", second);
  EXPECT_EQ(status_with(first_), 200U);
  EXPECT_EQ(status_with(second), 200U);
  EXPECT_FALSE(ended(of_first));
  const std::string until(key().at("old_secret_valid_until").as_string());
  const auto of_old = Node::json(node_.call("GET", "/whoami", "", first_)).at("whoami").as_object();
  EXPECT_EQ(of_old.at("secret_valid_until"), until.c_str());
  EXPECT_FALSE(Node::json(node_.call("GET", "/whoami", "", second))
                   .at("whoami")
                   .as_object()
                   .contains("secret_valid_until"));
  node_.time_passed = node_.clock_set_by = std::chrono::hours(1);
  node_.control().retry();
  EXPECT_TRUE(ended(of_first));
  EXPECT_FALSE(ended(of_second));
  EXPECT_EQ(status_with(first_), 401U);
  EXPECT_EQ(status_with(second), 200U);
  EXPECT_FALSE(key().contains("old_secret_valid_until"));
}

TEST_F(Rotation, AgainEndsTheOldestSecretAtOnce) {
  const Response of_first = node_.call("GET", "/events", "", first_);
  const std::string second = rotate(R"({"overlap_seconds": 86400})");
  const Response of_second = node_.call("GET", "/events", "", second);
  const std::string third = rotate(R"({"overlap_seconds": 60})");
  EXPECT_TRUE(ended(of_first));
  EXPECT_FALSE(ended(of_second));
  EXPECT_EQ(status_with(first_), 401U);
  EXPECT_EQ(status_with(second), 200U);
  node_.restart();
  EXPECT_EQ(status_with(first_), 401U);
  EXPECT_EQ(status_with(second), 200U) << "an overlap outlives the daemon";
  EXPECT_EQ(status_with(third), 200U);
}

TEST_F(Rotation, OfAKeyThatIsDeletedLeavesNoSecret) {
  const std::string second = rotate(R"({"overlap_seconds": 3600})");
  EXPECT_EQ(node_.call("DELETE", path_).status, 204U);
  EXPECT_EQ(status_with(first_), 401U);
  EXPECT_EQ(status_with(second), 401U);
  EXPECT_EQ(node_.call("POST", path_ + "/rotate").status, 404U);
}

TEST_F(Rotation, IsRefusedWithTheField) {
  const auto field_of = [&](const std::string& body) {
    return std::string(Node::json(node_.call("POST", path_ + "/rotate", body)).at("field").as_string());
  };
  EXPECT_EQ(field_of(R"({"overlap_seconds": -1})"), "overlap_seconds");
  EXPECT_EQ(field_of(R"({"overlap_seconds": 86401})"), "overlap_seconds");
  EXPECT_EQ(field_of(R"({"overlap": 1})"), "overlap");
  EXPECT_EQ(Node::json(node_.call_once("once", "POST", path_ + "/rotate", "")).at("field"),
            "idempotency-key");
  node_.call("PATCH", path_, R"({"expires_at": "2999-01-01T00:00:00Z"})");
  node_.clock_set_by = std::chrono::hours(24) * 366 * 1000;
  EXPECT_EQ(Node::json(node_.call("POST", path_ + "/rotate")).at("field"), "expires_at");
  EXPECT_EQ(status_with(first_), 401U);
}

TEST_F(Rotation, DoesNotOutlastTheKey) {
  node_.clock_set_by = std::chrono::milliseconds(0);
  node_.call("PATCH", path_, R"({"expires_at": "2999-01-01T00:00:00Z"})");
  node_.clock_set_by = parse_rfc3339("2998-12-31T23:30:00Z").value() - now();
  rotate(R"({"overlap_seconds": 3600})");
  EXPECT_EQ(key().at("old_secret_valid_until"), "2999-01-01T00:00:00.000Z");
}

// --- The end.

TEST(KeyExpiry, EndsOpenStreamsAtOnce) {
  Node node;
  const auto made = node.make_key("tenant", "alice", R"(, "ttl_seconds": 3600)");
  const Response events = node.call("GET", "/events", "", Node::secret_of(made));
  const Response of_another = node.call("GET", "/events", "", node.tenant_key());
  ASSERT_NE(events.stream, nullptr) << events.body;
  bool woken = false;
  (void)events.stream->read();
  events.stream->on_ready([&woken] { woken = true; });
  node.time_passed = node.clock_set_by = 1h - 50ms;
  node.call("PATCH", "/api-keys/" + Node::id_of(made), R"({"description": "the clocks are looked at"})");
  const auto deadline = std::chrono::steady_clock::now() + 10s;
  while (!woken && std::chrono::steady_clock::now() < deadline) node.context.run_one_until(deadline);
  EXPECT_TRUE(woken);
  EXPECT_FALSE(events.stream->read());
  EXPECT_TRUE(of_another.stream->read());
  EXPECT_EQ(node.call("GET", "/instances", "", Node::secret_of(made)).status, 401U);
  EXPECT_EQ(Node::json(node.call("GET", "/api-keys/" + Node::id_of(made))).at("api_key").at("state"),
            "expired");
}

TEST(KeyExpiry, IsNoticedIfTheClockIsSetForwardAndNotPutOffIfItIsSetBack) {
  Node node;
  const auto made = node.make_key("tenant", "alice", R"(, "ttl_seconds": 3600)");
  const auto open = [&] { return node.call("GET", "/events", "", Node::secret_of(made)); };
  const Response first = open();
  node.clock_set_by = 1h;
  node.control().retry();
  EXPECT_FALSE(first.stream->read());
  node.clock_set_by = -24h;
  const Response second = open();
  ASSERT_NE(second.stream, nullptr) << second.body;
  node.time_passed = 1h;
  node.control().retry();
  EXPECT_FALSE(second.stream->read());
  EXPECT_EQ(open().status, 401U);
}

TEST(KeyExpiry, MakesRoomForOtherKeysWhenTheNodeHasAsManyAsItCan) {
  Node node;
  const auto first = node.make_key("tenant", "alice", R"(, "ttl_seconds": 60)");
  const auto second = node.make_key("tenant", "alice", R"(, "ttl_seconds": 120)");
  // Not through the store, where each takes its time.
  while (node.control().keys().size() < kApiKeysMax + 1) {
    ApiKey key;
    key.id = make_uuid();
    key.owner = "bob";
    key.secret_sha256 = sha256(to_string(key.id));
    node.control().keys().add(key);
  }
  const std::string body = R"({"role": "tenant", "owner": "alice"})";
  const Response refused = node.call("POST", "/api-keys", body);
  EXPECT_EQ(Node::code(refused), "quota_exceeded");
  EXPECT_EQ(Node::json(refused).at("limit"), kApiKeysMax);
  EXPECT_EQ(Node::json(refused).at("current"), kApiKeysMax);
  node.time_passed = node.clock_set_by = 1h;
  EXPECT_EQ(node.call("POST", "/api-keys", body).status, 201U);
  EXPECT_EQ(node.call("GET", "/api-keys/" + Node::id_of(first)).status, 404U);
  EXPECT_EQ(node.call("GET", "/api-keys/" + Node::id_of(second)).status, 200U);
  EXPECT_EQ(node.control().keys().size(), kApiKeysMax + 1);
}

// --- The fleet's.

ApiKey fleet_key(const std::string& secret) {
  ApiKey key;
  key.id = make_uuid();
  key.owner = "alice";
  key.secret_sha256 = sha256(secret);
  key.created_at = now();
  return key;
}

TEST(FleetKeys, AreShownAndCannotBeChangedHere) {
  Node node;
  const ApiKey key = fleet_key("fleets");
  const std::string own = Node::id_of(node.make_key("tenant", "bob"));
  node.control().set_fleet_keys({{key.id, key}});
  const std::string path = "/api-keys/" + to_string(key.id);
  EXPECT_EQ(Node::json(node.call("GET", path)).at("api_key").at("fleet"), true);
  EXPECT_FALSE(Node::json(node.call("GET", "/api-keys/" + own)).at("api_key").as_object().contains("fleet"));
  EXPECT_EQ(node.call("GET", "/instances", "", "fleets").status, 200U);
  EXPECT_TRUE(Node::json(node.call("GET", path)).at("api_key").as_object().contains("last_used_at"));
  for (const Response& refused : {node.call("PATCH", path, R"({"description": "x"})"),
                                  node.call("DELETE", path), node.call("POST", path + "/rotate")}) {
    EXPECT_EQ(refused.status, 403U);
    EXPECT_NE(refused.body.find("change it at a gateway"), std::string::npos) << refused.body;
  }
  EXPECT_EQ(node.call("GET", "/instances", "", "fleets").status, 200U);
  node.control().save_sessions();
  node.restart();
  EXPECT_EQ(node.call("GET", path).status, 404U) << "only etcd has it";
  EXPECT_EQ(node.call("GET", "/instances", "", "fleets").status, 401U);
}

TEST(FleetKeys, EndWithTheirStreams) {
  Node node;
  const ApiKey key = fleet_key("fleets");
  node.control().set_fleet_keys({{key.id, key}});
  const Response stream = node.call("GET", "/events", "", "fleets");
  ASSERT_NE(stream.stream, nullptr) << stream.body;
  node.control().set_fleet_keys({});
  EXPECT_FALSE(stream.stream->read());
  EXPECT_EQ(node.call("GET", "/instances", "", "fleets").status, 401U);
}

TEST(FleetKeys, ExpireAsOthersDo) {
  Node node;
  ApiKey key = fleet_key("fleets");
  key.expires_at = now() + 1h;
  node.control().set_fleet_keys({{key.id, key}});
  const Response stream = node.call("GET", "/events", "", "fleets");
  ASSERT_NE(stream.stream, nullptr) << stream.body;
  node.clock_set_by = 1h;
  node.control().retry();
  EXPECT_FALSE(stream.stream->read());
  EXPECT_EQ(node.call("GET", "/instances", "", "fleets").status, 401U);
}

TEST(FleetKeys, TakeNoRoomFromTheNodesOwn) {
  Node node;
  std::map<Uuid, ApiKey> keys;
  for (std::size_t i = 0; i < kApiKeysMax; ++i) {
    const ApiKey key = fleet_key(std::to_string(i));
    keys.emplace(key.id, key);
  }
  node.control().set_fleet_keys(std::move(keys));
  EXPECT_EQ(node.call("POST", "/api-keys", R"({"role": "tenant", "owner": "alice"})").status, 201U);
}

// --- Uses.

TEST(KeyUses, AreShownAtOnceAndOnDiskAfterAWhile) {
  Node node;
  const auto made = node.make_key("tenant", "alice");
  const auto key = [&] {
    return Node::json(node.call("GET", "/api-keys/" + Node::id_of(made))).at("api_key").as_object();
  };
  EXPECT_FALSE(key().contains("last_used_at"));
  EXPECT_EQ(node.call("GET", "/instances", "", Node::secret_of(made)).status, 200U);
  const auto used = key().at("last_used_at");
  node.control().retry();  // not every time
  EXPECT_FALSE(node.store().load_api_keys().value().front().last_used_at);
  node.control().save_sessions();
  node.restart();
  EXPECT_EQ(key().at("last_used_at"), used);
}

TEST(KeyUses, ThatTheDiskRefusesFailNoRequest) {
  Node node;
  const auto made = node.make_key("tenant", "alice");
  node.lock_store();
  EXPECT_EQ(node.call("GET", "/instances", "", Node::secret_of(made)).status, 200U);
  node.control().save_sessions();
  EXPECT_EQ(node.call("GET", "/instances", "", Node::secret_of(made)).status, 200U);
  node.unlock_store();
}

// --- Who am I.

TEST(WhoAmI, TellsAKeyWhatItMay) {
  Node node;
  const auto made =
      node.make_key("tenant", "alice", R"(, "scope": "read", "instance_id": "vm-1", "ttl_seconds": 60)");
  for (const std::string path : {"/whoami", "/v1/whoami"}) {
    const auto who = Node::json(node.call("GET", path, "", Node::secret_of(made))).at("whoami").as_object();
    EXPECT_EQ(who.at("role"), "tenant");
    EXPECT_EQ(who.at("owner"), "alice");
    EXPECT_EQ(who.at("scope"), "read");
    EXPECT_EQ(who.at("instance_id"), "vm-1");
    EXPECT_EQ(who.at("key_id"), made.at("api_key").at("id"));
    EXPECT_EQ(who.at("expires_at"), made.at("api_key").at("expires_at"));
    EXPECT_EQ(node.call("GET", path, "", "").status, 401U);
  }
}

TEST(WhoAmI, TellsAUserOfTheUnixSocket) {
  Node node("admin_uids = [7]\n");
  Request request{.id = "r", .method = "GET", .target = "/whoami", .headers = {}, .body = "", .peer = {}};
  request.peer_credentials.emplace();
  request.peer_credentials->uid = 7;
  const auto who = Node::json(node.handle(request)).at("whoami").as_object();
  EXPECT_EQ(who.at("role"), "admin");
  EXPECT_EQ(who.at("owner"), "uid:7");
  EXPECT_EQ(who.at("scope"), "full");
  EXPECT_FALSE(who.contains("key_id"));
}

}  // namespace
}  // namespace portway
