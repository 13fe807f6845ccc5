// The control plane with a real return path, in a network namespace whose taps are veth pairs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "tests/api/node.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::NetworkNamespace;
using test::Node;
using test::run_command;
using testing::HasSubstr;
using testing::Not;

const Principal kAdmin{.key_id = {}, .role = Role::kAdmin, .owner = "admin"};

class SourcePaths : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    network_ = std::make_unique<NetworkNamespace>();
    network_->ip("link add tap-vm-1 type veth peer name guest1");
    network_->ip("address add 198.19.0.1/24 dev tap-vm-1");
    network_->ip("link set guest1 up");
    network_->ip("link set tap-vm-1 up");
  }

  /// In the namespace, with a node whose return path is of that kind.
  void run(ReturnPath::Kind kind, const std::function<void(Node& node)>& test) const {
    network_->run([&] {
      const auto path = ReturnPath::start(kind).value();
      Node node("", path.get());
      test(node);
    });
  }

  std::string rules() const { return run_command(network_.get(), {"ip", "rule"}); }

  static ForwardStatus create(Node& node, std::uint16_t guest_port) {
    const ForwardSpec spec{.guest_port = guest_port, .label = ""};
    return node.control().create_forwards(kAdmin, "vm-1", {&spec, 1}).value().front();
  }

  std::unique_ptr<NetworkNamespace> network_;
};

// Stopped and registered again on the same tap within seconds: the clean-up of the first session's rule
// removed that of the second one, whose clients were reset from then on.
TEST_F(SourcePaths, ASessionKeepsItsRulesWhenTheOneBeforeItIsCleanedUp) {
  run(ReturnPath::Kind::kRules, [&](Node& node) {
    node.put("vm-1");
    create(node, 3000);
    EXPECT_THAT(rules(), HasSubstr("iif tap-vm-1 ipproto tcp sport 3000 lookup 5210"));
    node.control().stop_instance("vm-1").value();
    node.put("vm-1");
    const Forward forward = create(node, 3000).forward;
    node.control().retry();
    node.control().retry();
    EXPECT_THAT(rules(), HasSubstr("iif tap-vm-1 ipproto tcp sport 3000 lookup 5210"));
    EXPECT_EQ(node.dataplane.opened.at(forward.id).first.source, SourcePlan::kTransparent);
    node.control().stop_instance("vm-1").value();
    node.control().retry();
    EXPECT_THAT(rules(), Not(HasSubstr("5210")));
  });
}

}  // namespace
}  // namespace portway
