// Check and capture over the API. What they find: tests/api/check_test.cpp and capture_test.cpp.

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

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

}  // namespace
}  // namespace portway
