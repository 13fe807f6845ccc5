// Forwards over the API: creating, listing, changing and deleting them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::HasSubstr;

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
  EXPECT_EQ(Node::header(response, "Location"),
            "/instances/vm-1/port-forwards/" + Node::forward_id(response));
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
      Node::forward_id(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})", key));
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

class ProfileLimits : public testing::Test {
 protected:
  ProfileLimits() {
    node_.put("vm-1");
    path_ = "/instances/vm-1/port-forwards/" +
            Node::forward_id(node_.call("POST", "/instances/vm-1/port-forwards",
                                        R"({"guest_port": 3000, "max_connections": 500})", tenant_));
  }

  boost::json::object forward() {
    return Node::json(node_.call("GET", path_, "", tenant_)).at("port_forward").as_object();
  }
  boost::json::object in_effect() { return forward().at("limits_in_effect").as_object(); }
  static boost::json::object limit(std::uint64_t value, std::string_view from) {
    return {{"value", value}, {"from", from}};
  }
  const TrafficLimits& served() const { return node_.dataplane.opened.begin()->second.first.profile_limits; }

  Node node_{
      "[profiles.default]\nmax_connections = 100\nmax_bytes_per_second = 5000\n"
      "[profiles.small]\nmax_connections = 10\nidle_timeout_s = 60\n"
      "[proxy]\nidle_timeout_s = 3600\n"};
  const std::string tenant_ = node_.tenant_key();
  std::string path_;
};

TEST_F(ProfileLimits, HoldForEveryForwardAndItsTenantCannotLiftThem) {
  EXPECT_EQ(served().max_connections, 100U);
  EXPECT_EQ(forward().at("max_connections"), 500) << "its own";
  EXPECT_EQ(in_effect(), (boost::json::object{{"max_connections", limit(100, "profile")},
                                              {"max_bytes_per_second", limit(5000, "profile")},
                                              {"idle_timeout_s", limit(3600, "node")}}));
  // A stricter one of its own holds; without it the profile's does.
  ASSERT_EQ(node_.call("PATCH", path_, R"({"max_connections": 20})", tenant_).status, 200U);
  EXPECT_EQ(in_effect().at("max_connections"), limit(20, "forward"));
  ASSERT_EQ(node_.call("PATCH", path_, R"({"max_connections": null})", tenant_).status, 200U);
  EXPECT_EQ(in_effect().at("max_connections"), limit(100, "profile"));
  EXPECT_FALSE(forward().contains("max_connections"));
  EXPECT_EQ(node_.call("PATCH", path_, R"({"idle_timeout_s": null})", tenant_).status, 422U);
  EXPECT_EQ(served().max_connections, 100U);
  node_.restart();
  EXPECT_EQ(served().max_connections, 100U);
}

TEST_F(ProfileLimits, FollowAnotherProfileAndTheConfiguration) {
  ASSERT_EQ(node_.call("PATCH", "/instances/vm-1", R"({"profile": "small"})").status, 200U);
  EXPECT_EQ(served().max_connections, 10U);
  EXPECT_EQ(served().max_bytes_per_second, 0U);
  EXPECT_EQ(in_effect(), (boost::json::object{{"max_connections", limit(10, "profile")},
                                              {"idle_timeout_s", limit(60, "profile")}}));
  Config wanted = node_.config();
  wanted.profiles.at("small").limits.max_connections = 7;
  EXPECT_EQ(take_live_keys(node_.config(), wanted), std::vector<std::string>{});
  node_.control().apply_config();
  EXPECT_EQ(served().max_connections, 7U);
  wanted.profiles.erase("small");  // then the default's hold
  (void)take_live_keys(node_.config(), wanted);
  node_.control().apply_config();
  EXPECT_EQ(served().max_connections, 100U);
}

TEST_F(ProfileLimits, AreShownWithTheProfile) {
  const auto profiles = Node::json(node_.call("GET", "/profiles", "", tenant_)).at("profiles").as_array();
  const boost::json::object small{{"name", "small"},
                                  {"max_forwarded_ports", 5},
                                  {"allow_host_port", false},
                                  {"max_connections", 10},
                                  {"idle_timeout_s", 60}};
  EXPECT_EQ(profiles.at(1), small);
}

class AdminLimits : public testing::Test {
 protected:
  AdminLimits() { node_.put("vm-1"); }

  /// The path of a new forward.
  std::string create(const std::string& body, std::string_view key) {
    const Response made = node_.call("POST", "/instances/vm-1/port-forwards", body, key);
    EXPECT_EQ(made.status, 201U) << made.body;
    return "/instances/vm-1/port-forwards/" + Node::forward_id(made);
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
  // Limits that no admin has set stay the tenant's, and source_mode always does.
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

}  // namespace
}  // namespace portway
