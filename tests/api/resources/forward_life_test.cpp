// What may change in a forward's life: its guest port, whether it is enabled, its metadata, and its end.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using namespace std::chrono_literals;

constexpr const char* kForwardsToLive = "/instances/vm-1/port-forwards";

class ForwardLifeTest : public testing::Test {
 protected:
  explicit ForwardLifeTest(std::string_view settings = "") : node_(settings) { node_.put("vm-1"); }

  boost::json::object made(const std::string& body, std::string_view key = Node::kAdminKey) {
    const Response answer = node_.call("POST", kForwardsToLive, body, key);
    EXPECT_EQ(answer.status, 201U) << answer.body;
    return Node::json(answer).at("port_forward").as_object();
  }
  static std::string path_of(const boost::json::object& forward) {
    return std::string(kForwardsToLive) + "/" + std::string(forward.at("id").as_string());
  }
  boost::json::object now_of(const boost::json::object& forward) {
    const Response answer = node_.call("GET", path_of(forward));
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return Node::json(answer).at("port_forward").as_object();
  }
  boost::json::object changed(const boost::json::object& forward, const std::string& body,
                              std::string_view key = Node::kAdminKey) {
    const Response answer = node_.call("PATCH", path_of(forward), body, key);
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return Node::json(answer).at("port_forward").as_object();
  }
  Response refused(const boost::json::object& forward, const std::string& body, unsigned status,
                   std::string_view key = Node::kAdminKey) {
    Response answer = node_.call("PATCH", path_of(forward), body, key);
    EXPECT_EQ(answer.status, status) << answer.body;
    return answer;
  }
  std::vector<std::int64_t> listed(const std::string& query = "", const std::string& path = kForwardsToLive) {
    const Response answer = node_.call("GET", path + query);
    EXPECT_EQ(answer.status, 200U) << answer.body;
    std::vector<std::int64_t> ports;
    const auto body = Node::json(answer);
    for (const auto& each : body.at("port_forwards").as_array())
      ports.push_back(each.at("guest_port").as_int64());
    return ports;
  }
  bool is_open(const boost::json::object& forward) {
    return node_.dataplane.opened.contains(*parse_uuid(std::string_view(forward.at("id").as_string())));
  }
  /// The clock moves on, and what is due is done.
  void pass(std::chrono::milliseconds time) {
    node_.clock_set_by += time;
    node_.time_passed += time;
    node_.control().retry();
    node_.context.restart();
    node_.context.poll();
    while (node_.control().has_changes_under_way()) node_.context.run_one();
  }

  Node node_;
};

// --- The guest port.

TEST_F(ForwardLifeTest, TheGuestPortChangesInPlace) {
  const auto forward = made(R"({"guest_port": 3000})");
  const auto other = made(R"({"guest_port": 4000})");
  const auto now = changed(forward, R"({"guest_port": 3001})");
  EXPECT_EQ(now.at("guest_port"), 3001);
  EXPECT_EQ(now.at("host_port"), forward.at("host_port"));
  EXPECT_EQ(now_of(other).at("guest_port"), 4000);
  const auto& route =
      node_.dataplane.opened.at(*parse_uuid(std::string_view(now.at("id").as_string()))).first;
  EXPECT_EQ(route.guest.endpoint.port(), 3001);
  EXPECT_THAT(node_.dataplane.closed, IsEmpty()) << "connections go on";
  node_.restart();
  EXPECT_EQ(now_of(forward).at("guest_port"), 3001);
}

TEST_F(ForwardLifeTest, AGuestPortIsCheckedAsInANewForward) {
  const auto forward = made(R"({"guest_port": 3000})");
  const std::string tenant = node_.tenant_key("alice");
  refused(forward, R"({"guest_port": 22})", 403);
  refused(forward, R"({"guest_port": 80})", 403, tenant);
  refused(forward, R"({"guest_port": 0})", 422);
  refused(forward, R"({"guest_port": 65536})", 422);
  refused(forward, R"({"guest_port": null})", 422);
  EXPECT_EQ(now_of(forward).at("guest_port"), 3000);
}

// --- Enabled.

TEST_F(ForwardLifeTest, ADisabledForwardKeepsItsPortAndServesNobody) {
  const auto forward = made(R"({"guest_port": 3000})");
  const auto off = changed(forward, R"({"enabled": false})");
  EXPECT_EQ(off.at("state"), "disabled");
  EXPECT_FALSE(off.contains("reason"));
  EXPECT_FALSE(is_open(forward));
  EXPECT_EQ(node_.dataplane.reasons, std::vector{CloseHow::kForwardDisabled});
  EXPECT_EQ(node_.dataplane.closed.front().second, ClosePolicy::kReset);
  EXPECT_EQ(node_.control().ports().used(), 1U);
  changed(forward, R"({"enabled": false, "max_connections": 7, "guest_port": 3001})");
  node_.restart();
  EXPECT_EQ(now_of(forward).at("state"), "disabled");
  EXPECT_FALSE(is_open(forward));
  EXPECT_EQ(node_.control().forwards_failed(), 0U);
  node_.control().retry();
  EXPECT_FALSE(is_open(forward));

  const auto on = changed(forward, R"({"enabled": true})");
  EXPECT_EQ(on.at("state"), "unavailable");  // its machine has not started
  EXPECT_EQ(on.at("cause"), "tap_down");
  EXPECT_EQ(on.at("host_port"), forward.at("host_port"));
  const auto& route = node_.dataplane.opened.at(*parse_uuid(std::string_view(on.at("id").as_string()))).first;
  EXPECT_EQ(route.limits.max_connections, 7U);
  EXPECT_EQ(route.guest.endpoint.port(), 3001);
  changed(forward, R"({"enabled": true})");  // once more
}

TEST_F(ForwardLifeTest, OneThatIsMadeDisabledServesNobodyUntilItIsEnabled) {
  const auto forward = made(R"({"guest_port": 3000, "enabled": false})");
  EXPECT_EQ(forward.at("state"), "disabled");
  EXPECT_FALSE(is_open(forward));
  changed(forward, R"({"enabled": true})");
  EXPECT_TRUE(is_open(forward));
}

TEST_F(ForwardLifeTest, OneWhosePortAnotherProgramHasByNowIsNotEnabled) {
  const auto forward = made(R"({"guest_port": 3000, "enabled": false})");
  node_.dataplane.taken.insert(static_cast<std::uint16_t>(forward.at("host_port").as_int64()));
  refused(forward, R"({"enabled": true})", 409);
  EXPECT_EQ(now_of(forward).at("state"), "disabled");
  EXPECT_EQ(node_.call("PUT", kForwardsToLive, R"({"port_forwards": [{"guest_port": 3000}]})").status, 409U);
  node_.dataplane.taken.clear();
  changed(forward, R"({"enabled": true})");
}

TEST_F(ForwardLifeTest, ADisabledForwardIsDeletedLikeAnyOther) {
  const auto forward = made(R"({"guest_port": 3000, "enabled": false})");
  EXPECT_EQ(node_.call("DELETE", path_of(forward)).status, 204U);
  EXPECT_EQ(node_.control().ports().used(), 0U);
  EXPECT_THAT(node_.dataplane.closed, IsEmpty());
  made(R"({"guest_port": 3000, "enabled": false})");
  EXPECT_EQ(node_.call("POST", "/instances/vm-1/stop").status, 200U);
  EXPECT_EQ(node_.control().ports().used(), 0U);
}

TEST_F(ForwardLifeTest, TwoWhoEnableItAtOnceGetItOnce) {
  const auto forward = made(R"({"guest_port": 3000, "enabled": false})");
  const Request enable = Node::request_of("PATCH", path_of(forward), R"({"enabled": true})", Node::kAdminKey);
  const Request disable =
      Node::request_of("PATCH", path_of(forward), R"({"enabled": false})", Node::kAdminKey);
  for (const Response& answer : node_.handle_at_once({enable, enable, disable, enable}))
    EXPECT_EQ(answer.status, 200U);
  EXPECT_TRUE(is_open(forward));
  EXPECT_EQ(node_.dataplane.closed.size(), 1U);
}

TEST_F(ForwardLifeTest, TwoWhoChangeDifferentLimitsAtOnceBothGetTheirs) {
  const auto forward = made(R"({"guest_port": 3000})");
  const auto patch = [&](const char* body) {
    return Node::request_of("PATCH", path_of(forward), body, Node::kAdminKey);
  };
  node_.handle_at_once({patch(R"({"max_connections": 5})"), patch(R"({"max_bytes_per_second": 6000})"),
                        patch(R"({"metadata": {"a": "1"}})"), patch(R"({"metadata": {"b": "2"}})")});
  const auto now = now_of(forward);
  EXPECT_EQ(now.at("max_connections"), 5);
  EXPECT_EQ(now.at("max_bytes_per_second"), 6000);
  EXPECT_EQ(now.at("metadata").as_object().size(), 2U);
}

// --- Its end.

TEST_F(ForwardLifeTest, AForwardEndsWhenItsTimeHasCome) {
  const auto forward = made(R"({"guest_port": 3000, "ttl_seconds": 60})");
  const auto other = made(R"({"guest_port": 3001})");
  EXPECT_TRUE(forward.contains("expires_at"));
  EXPECT_FALSE(other.contains("expires_at"));
  pass(59s);
  EXPECT_THAT(listed(), ElementsAre(3000, 3001));
  pass(2s);
  EXPECT_THAT(listed(), ElementsAre(3001));
  EXPECT_EQ(node_.dataplane.reasons, std::vector{CloseHow::kForwardExpired});
  EXPECT_EQ(node_.dataplane.closed.front().second, ClosePolicy::kDrain);
  EXPECT_EQ(node_.control().ports().used(), 1U);
  node_.restart();
  EXPECT_THAT(listed(), ElementsAre(3001));
}

TEST_F(ForwardLifeTest, TheEndCanBePutOffAndTakenAway) {
  const auto forward = made(R"({"guest_port": 3000, "ttl_seconds": 60})");
  const auto other = made(R"({"guest_port": 3001, "ttl_seconds": 60})");
  changed(forward, R"({"ttl_seconds": 100})");
  EXPECT_FALSE(changed(other, R"({"expires_at": null})").contains("expires_at"));
  pass(70s);
  EXPECT_THAT(listed(), ElementsAre(3000, 3001));
  node_.restart();
  pass(40s);
  EXPECT_THAT(listed(), ElementsAre(3001));
}

TEST_F(ForwardLifeTest, OneWhoseTimeCameWhileTheDaemonWasAwayIsNotServedAgain) {
  const auto forward = made(R"({"guest_port": 3000, "ttl_seconds": 60})");
  node_.stop();
  node_.dataplane.opened.clear();
  node_.clock_set_by += 61s;
  node_.start();
  EXPECT_FALSE(is_open(forward));
  pass(0s);
  EXPECT_THAT(listed(), IsEmpty());
  EXPECT_EQ(node_.control().ports().used(), 0U);
}

TEST_F(ForwardLifeTest, OneWhoseTimeHasComeServesNobodyWhateverTheDiskDoes) {
  const auto forward = made(R"({"guest_port": 3000, "ttl_seconds": 60})");
  node_.lock_store();
  pass(61s);
  EXPECT_FALSE(is_open(forward));
  EXPECT_EQ(now_of(forward).at("state"), "expired");
  refused(forward, R"({"ttl_seconds": 100})", 404);
  pass(5s);
  EXPECT_FALSE(is_open(forward));
  node_.unlock_store();
  pass(5s);
  EXPECT_THAT(listed(), IsEmpty());
  EXPECT_EQ(node_.dataplane.closed.size(), 1U);
}

TEST_F(ForwardLifeTest, AnEndIsATimeToCome) {
  for (const char* wrong :
       {R"("expires_at": "2001-01-01T00:00:00Z")", R"("expires_at": "tomorrow")", R"("ttl_seconds": 0)",
        R"("ttl_seconds": 315360001)", R"("ttl_seconds": 60, "expires_at": "2999-01-01T00:00:00Z")"}) {
    EXPECT_EQ(
        node_.call("POST", kForwardsToLive, R"({"guest_port": 3000, )" + std::string(wrong) + "}").status,
        422U)
        << wrong;
  }
  EXPECT_EQ(node_.control().ports().used(), 0U);
}

// --- Metadata.

TEST_F(ForwardLifeTest, MetadataAreKeptShownAndPatched) {
  const auto forward = made(R"({"guest_port": 3000, "metadata": {"team": "a", "env": "dev=1,x"}})");
  EXPECT_EQ(forward.at("metadata"), boost::json::object({{"env", "dev=1,x"}, {"team", "a"}}));
  const auto now = changed(forward, R"({"metadata": {"team": null, "more": ""}})");
  EXPECT_EQ(now.at("metadata"), boost::json::object({{"env", "dev=1,x"}, {"more", ""}}));
  node_.restart();
  EXPECT_EQ(now_of(forward).at("metadata"), now.at("metadata"));
  EXPECT_EQ(changed(forward, R"({"metadata": null})").at("metadata"), now.at("metadata"));
}

TEST_F(ForwardLifeTest, MetadataHaveBounds) {
  std::string many;
  for (int i = 0; i < 33; ++i) many += (many.empty() ? "\"k" : ", \"k") + std::to_string(i) + R"(": "v")";
  const std::string long_value(257, 'v');
  const std::vector<std::string> wrong = {"{" + many + "}",
                                          R"({"": "v"})",
                                          R"({"a b": "v"})",
                                          R"({")" + std::string(64, 'k') + R"(": "v"})",
                                          R"({"k": ")" + long_value + R"("})",
                                          R"({"k": "a\nb"})",
                                          R"({"k": 1})",
                                          R"({"k": null})",
                                          R"([])",
                                          R"("k")"};
  for (const std::string& each : wrong) {
    const Response answer =
        node_.call("POST", kForwardsToLive, R"({"guest_port": 3000, "metadata": )" + each + "}");
    EXPECT_EQ(answer.status, 422U) << each;
    EXPECT_THAT(std::string(Node::json(answer).at("field").as_string()), HasSubstr("metadata"));
  }
  const auto forward = made(R"({"guest_port": 3000, "metadata": {)" + many.substr(0, many.rfind(',')) + "}}");
  refused(forward, R"({"metadata": {"one-more": "v"}})", 422);
  changed(forward, R"({"metadata": {"one-more": "v", "k0": null}})");
}

TEST_F(ForwardLifeTest, ListsAndBulkDeletionSelectByMetadata) {
  made(R"({"guest_port": 3000, "label": "x", "metadata": {"env": "dev", "team": "a"}})");
  made(R"({"guest_port": 3001, "metadata": {"env": "prod", "team": "a"}})");
  made(R"({"guest_port": 3002, "label": "x"})");
  for (const std::string path : {kForwardsToLive, "/port-forwards"}) {
    EXPECT_THAT(listed("?metadata=team", path), ElementsAre(3000, 3001));
    EXPECT_THAT(listed("?metadata=team%3Da,env%3Dprod", path), ElementsAre(3001));
    EXPECT_THAT(listed("?metadata=env%3D", path), IsEmpty());
    EXPECT_EQ(node_.call("GET", path + "?metadata=").status, 422U);
    EXPECT_EQ(node_.call("GET", path + "?metadata=a,,b").status, 422U);
    EXPECT_EQ(node_.call("GET", path + "?metadata=%3Dx").status, 422U);
  }
  const auto deleted = [&](const std::string& query, std::string_view key = Node::kAdminKey) {
    const Response answer = node_.call("DELETE", kForwardsToLive + query, "", key);
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return Node::json(answer).at("deleted").as_array().size();
  };
  EXPECT_EQ(node_.call("DELETE", kForwardsToLive, "", node_.tenant_key("bob")).status, 404U);
  EXPECT_EQ(deleted("?metadata=env%3Ddev&label=x"), 1U);
  EXPECT_EQ(deleted("?metadata=env%3Ddev&label=x"), 0U) << "a repeated call";
  EXPECT_THAT(listed(), ElementsAre(3001, 3002));
  EXPECT_EQ(deleted("?connections=reset", node_.tenant_key("alice")), 2U);
  EXPECT_EQ(node_.dataplane.closed.back().second, ClosePolicy::kReset);
  EXPECT_EQ(node_.control().ports().used(), 0U);
  node_.restart();
  EXPECT_THAT(listed(), IsEmpty());
}

TEST_F(ForwardLifeTest, ABulkDeletionThatTheDiskRefusesDeletesNothing) {
  made(R"({"guest_port": 3000})");
  made(R"({"guest_port": 3001})");
  node_.lock_store();
  EXPECT_EQ(node_.call("DELETE", kForwardsToLive).status, 503U);
  node_.unlock_store();
  EXPECT_THAT(listed(), ElementsAre(3000, 3001));
  EXPECT_EQ(node_.dataplane.opened.size(), 2U);
}

TEST_F(ForwardLifeTest, AnInstanceHasMetadataOfItsOwn) {
  const std::string body = R"({"guest_address": "198.19.0.2", "tap": "tap-vm-1", "owner": "alice")";
  const auto put = [&](const std::string& rest) {
    const Response answer = node_.call("PUT", "/instances/vm-1", body + rest + "}");
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return Node::json(answer).at("instance").as_object();
  };
  const auto session = put("").at("session_id");
  const auto with = put(R"(, "metadata": {"env": "dev"})");
  EXPECT_EQ(with.at("session_id"), session) << "it continues";
  EXPECT_EQ(with.at("metadata"), boost::json::object({{"env", "dev"}}));
  const auto instances = [&](const std::string& selector) {
    return Node::json(node_.call("GET", "/instances?metadata=" + selector)).at("instances").as_array().size();
  };
  EXPECT_EQ(instances("env%3Ddev"), 1U);
  EXPECT_EQ(instances("env%3Dprod"), 0U);
  EXPECT_EQ(node_.call("PATCH", "/instances/vm-1", R"({"metadata": {"env": "prod", "team": "a"}})").status,
            200U);
  node_.restart();
  EXPECT_EQ(instances("env%3Dprod,team"), 1U);
  EXPECT_EQ(node_.call("PATCH", "/instances/vm-1", R"({"metadata": {"a b": "x"}})").status, 422U);
  EXPECT_FALSE(put("").contains("metadata")) << "PUT says all of it";
}

// --- Rows of ports.

TEST_F(ForwardLifeTest, ARowOfPortsIsMadeInOneGo) {
  const Response answer = node_.call(
      "POST", std::string(kForwardsToLive) + ":batch",
      R"({"port_forwards": [{"guest_port": 3000}, {"guest_port": 8000, "label": "row", "host_ports": 3}]})");
  ASSERT_EQ(answer.status, 201U) << answer.body;
  const auto made = Node::json(answer).at("port_forwards").as_array();
  ASSERT_EQ(made.size(), 4U);
  for (std::size_t i = 1; i < 4; ++i) {
    EXPECT_EQ(made[i].at("guest_port"), 7999 + i);
    EXPECT_EQ(made[i].at("label"), "row");
    EXPECT_EQ(made[i].at("host_port"), made[1].at("host_port").as_int64() + static_cast<std::int64_t>(i) - 1);
  }
}

TEST_F(ForwardLifeTest, AWrongRowIsRefusedByTheEntryThatHasIt) {
  const auto refused_row = [&](const std::string& entry, unsigned status) {
    const Response answer = node_.call("POST", std::string(kForwardsToLive) + ":batch",
                                       R"({"port_forwards": [{"guest_port": 3000}, )" + entry + "]}");
    EXPECT_EQ(answer.status, status) << answer.body;
    return Node::json(answer);
  };
  EXPECT_EQ(refused_row(R"({"guest_port": 65534, "host_ports": 3})", 422).at("field"),
            "port_forwards[1].host_ports");
  EXPECT_EQ(refused_row(R"({"guest_port": 3000, "host_ports": 101})", 422).at("field"),
            "port_forwards[1].host_ports");
  EXPECT_EQ(refused_row(R"({"guest_port": 20, "host_ports": 3})", 403).at("field"),
            "port_forwards[1].guest_port")
      << "it has guest port 22";
  EXPECT_EQ(refused_row(R"({"guest_port": 3000, "host_ports": 100})", 409).at("code"), "quota_exceeded");
  EXPECT_EQ(node_.call("POST", kForwardsToLive, R"({"guest_port": 3000, "host_ports": 2})").status, 422U);
  EXPECT_EQ(node_.control().ports().used(), 0U);
}

}  // namespace
}  // namespace portway
