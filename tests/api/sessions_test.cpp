// Sessions and what becomes of their machines: the control plane on real taps, with a fake data plane.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "tests/api/node.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"
#include "tests/support/tap.h"

namespace portway {
namespace {

using test::Node;

class SessionsTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    network_.emplace();
    network_->run([this] { node_.emplace(); });
  }

  /// One that outlives its machines; there is none yet.
  void add_tap(const std::string& name) {
    network_->ip("tuntap add dev " + name + " mode tap");
    network_->ip("link set " + name + " up");
  }
  Response put(const std::string& id, const std::string& tap) {
    return node_->call("PUT", "/instances/" + id,
                       R"({"guest_address": "198.19.0.2", "tap": ")" + tap + R"(", "owner": "alice"})");
  }
  boost::json::object instance(const std::string& id) {
    return Node::json(node_->call("GET", "/instances/" + id)).at("instance").as_object();
  }
  void run_until(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition() && std::chrono::steady_clock::now() < deadline) {
      node_->context.run_one_for(std::chrono::milliseconds(100));
    }
    EXPECT_TRUE(condition());
  }
  void run_until_tap_is(const std::string& state, const std::string& id = "vm-1") {
    run_until([&] { return instance(id).at("tap_state").as_string() == state; });
  }
  /// As after a crash: what was not saved is not on disk.
  void restart() {
    network_->run([this] { node_->restart(); });
  }
  static std::string read(BodyStream& stream) { return stream.read().value(); }

  std::optional<test::NetworkNamespace> network_;
  std::optional<Node> node_;
};

// A rename ended the session (15 forwards were lost); the next interface with the old name inherited the
// rest.
TEST_F(SessionsTest, ASessionFollowsItsTapToAnotherName) {
  add_tap("tap0");
  const Fd machine = test::hold_tap(*network_, "tap0");
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);
  run_until_tap_is("up");
  const auto session = instance("vm-1").at("session_id");
  ASSERT_EQ(node_->call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  const int device = node_->dataplane.opened.begin()->second.first.device;
  const auto events = node_->events.subscribe({.key_id = {}, .role = Role::kAdmin, .owner = "admin"}, "");
  std::string told = read(*events);

  network_->ip("link set tap0 name tap9");
  run_until([&] {
    told += read(*events);
    return told.find(R"("tap":"tap0","name":"tap9")") != std::string::npos;
  });
  EXPECT_NE(told.find("event: instance.tap_renamed"), std::string::npos);
  EXPECT_EQ(put("vm-1", "tap0").status, 200U) << "the same registration again";
  const auto now = instance("vm-1");
  EXPECT_EQ(now.at("session_id"), session);
  EXPECT_EQ(now.at("tap"), "tap0");
  EXPECT_EQ(now.at("tap_state"), "up");
  ASSERT_EQ(node_->dataplane.opened.size(), 1U);
  EXPECT_EQ(node_->dataplane.opened.begin()->second.first.device, device);

  // What is called tap0 now is another machine's.
  add_tap("tap0");
  test::hold_tap(*network_, "tap0").reset();
  network_->ip("link del tap0");
  node_->control().retry();
  node_->context.poll();
  EXPECT_EQ(instance("vm-1").at("state"), "running");
  restart();
  EXPECT_EQ(instance("vm-1").at("session_id"), session);
  EXPECT_EQ(instance("vm-1").at("tap_state"), "up");
}

TEST_F(SessionsTest, ARenamedTapIsNobodyElses) {
  add_tap("tap0");
  const Fd machine = test::hold_tap(*network_, "tap0");
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);
  run_until_tap_is("up");
  network_->ip("link set tap0 name tap9");

  const Response same_interface = put("vm-2", "tap9");
  EXPECT_EQ(same_interface.status, 409U);
  EXPECT_EQ(Node::code(same_interface), "tap_in_use");
  EXPECT_EQ(put("vm-2", "tap0").status, 201U) << "a name that no interface has by now";
  EXPECT_EQ(put("vm-3", "tap0").status, 409U) << "and that another one waits for";
  EXPECT_EQ(instance("vm-2").at("tap_state"), "missing");

  add_tap("tap0");
  const Fd other = test::hold_tap(*network_, "tap0");
  run_until_tap_is("up", "vm-2");
  EXPECT_EQ(instance("vm-1").at("tap_state"), "up");
  restart();
  EXPECT_EQ(instance("vm-1").at("state"), "running");
  EXPECT_EQ(instance("vm-2").at("state"), "running");
  EXPECT_NE(node_->control().registry().find_instance("vm-1")->tap_index,
            node_->control().registry().find_instance("vm-2")->tap_index);
}

}  // namespace
}  // namespace portway
