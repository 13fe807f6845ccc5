// The control plane with a real return path, in a network namespace whose taps are veth pairs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/control/node.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"
#include "tests/support/tcx.h"

namespace portway {
namespace {

using test::create_forwards;
using test::NetworkNamespace;
using test::Node;
using test::run_command;
using test::take_all_tcx;
using testing::AllOf;
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

  static ForwardStatus create(Node& node, std::uint16_t guest_port, SourceMode mode = SourceMode::kAuto) {
    const ForwardSpec spec{.guest_port = guest_port, .label = "", .source_mode = mode};
    return create_forwards(node, kAdmin, "vm-1", {&spec, 1}).value().front();
  }

  static SourcePlan served(Node& node, const Forward& forward) {
    return node.dataplane.opened.at(forward.id).first.source.plan;
  }
  static ForwardStatus status(Node& node, const Forward& forward) {
    return node.control().find_forward(kAdmin, "vm-1", to_string(forward.id)).value();
  }
  static boost::json::object instance(Node& node) {
    return Node::json(node.call("GET", "/instances/vm-1")).at("instance").as_object();
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
    node.run(node.control().stop_instance("vm-1")).value();
    node.put("vm-1");
    const Forward forward = create(node, 3000).forward;
    node.control().retry();
    node.control().retry();
    EXPECT_THAT(rules(), HasSubstr("iif tap-vm-1 ipproto tcp sport 3000 lookup 5210"));
    EXPECT_EQ(node.dataplane.opened.at(forward.id).first.source, SourcePlan::kTransparent);
    node.run(node.control().stop_instance("vm-1")).value();
    node.control().retry();
    EXPECT_THAT(rules(), Not(HasSubstr("5210")));
  });
}

// It was once removed for good, and only the log reported it.
TEST_F(SourcePaths, ALostReturnPathIsReportedAndUsedAgainWhenItIsBack) {
  for (const auto kind : {ReturnPath::Kind::kProgram, ReturnPath::Kind::kRules}) {
    run(kind, [&](Node& node) {
      node.put("vm-1");
      const Forward forward = create(node, 3000).forward;
      const Forward plain = create(node, 3001, SourceMode::kPlain).forward;
      const auto events = node.follow(kAdmin);
      node.control().retry();
      EXPECT_EQ(served(node, forward), SourcePlan::kTransparent);
      EXPECT_EQ(node.control().instances_without_return_path(), 0U);

      network_->ip("rule add pref 77 iif tap-vm-1 blackhole");
      node.control().retry();
      EXPECT_EQ(served(node, forward), SourcePlan::kNoReturnPath);
      EXPECT_EQ(served(node, plain), SourcePlan::kPlain);
      EXPECT_EQ(status(node, forward).source, SourcePlan::kNoReturnPath);
      EXPECT_EQ(instance(node).at("source_mode"), "plain");
      EXPECT_THAT(std::string(instance(node).at("source_mode_reason").as_string()), HasSubstr("77"));
      EXPECT_EQ(node.control().instances_without_return_path(), 1U);
      EXPECT_THAT(events->read().value(), AllOf(HasSubstr("event: instance.source_mode_changed"),
                                                HasSubstr(R"("source_mode":"plain")"), HasSubstr("77")));
      const Forward later = create(node, 3002).forward;
      EXPECT_EQ(served(node, later), SourcePlan::kNoReturnPath);

      network_->ip("rule del pref 77");
      node.control().retry();
      for (const Forward& each : {forward, later}) {
        EXPECT_EQ(served(node, each), SourcePlan::kTransparent);
        EXPECT_EQ(status(node, each).source, SourcePlan::kTransparent);
      }
      EXPECT_EQ(node.control().instances_without_return_path(), 0U);
      EXPECT_THAT(events->read().value(), AllOf(HasSubstr("event: instance.source_mode_changed"),
                                                HasSubstr(R"("source_mode":"transparent")")));
      node.control().retry();
      EXPECT_THAT(events->read().value(), Not(HasSubstr("source_mode_changed")));
    });
  }
}

TEST_F(SourcePaths, OfTwoGuestAddressesOneMayLoseItsReturnPathAndTheOtherKeepsIt) {
  network_->ip("address add fd00:19::1/64 nodad dev tap-vm-1");
  for (const auto kind : {ReturnPath::Kind::kProgram, ReturnPath::Kind::kRules}) {
    run(kind, [&](Node& node) {
      const Response put = node.call(
          "PUT", "/instances/vm-1",
          R"({"guest_addresses": ["198.19.0.2", "fd00:19::2"], "tap": "tap-vm-1", "owner": "alice"})");
      ASSERT_LT(put.status, 300U) << put.body;
      const Forward forward = create(node, 3000).forward;
      const auto source = [&](const Forward& each) { return node.dataplane.opened.at(each.id).first.source; };
      EXPECT_EQ(source(forward), SourcePlan::kTransparent);
      const auto events = node.follow(kAdmin);
      network_->ip("-6 rule add pref 77 iif tap-vm-1 blackhole");
      node.control().retry();
      const ForwardSource one_only(SourcePlan::kTransparent, SourcePlan::kNoReturnPath, false);
      EXPECT_EQ(source(forward), one_only);
      EXPECT_EQ(source(create(node, 3001).forward), one_only);
      EXPECT_EQ(instance(node).at("source_mode"), "plain") << "not of all clients";
      EXPECT_THAT(std::string(instance(node).at("source_mode_reason").as_string()), HasSubstr("fd00:19::2"));
      EXPECT_EQ(node.control().instances_without_return_path(), 1U);
      EXPECT_THAT(events->read().value(), HasSubstr("event: instance.source_mode_changed"));
      network_->ip("-6 rule del pref 77");
      node.control().retry();
      EXPECT_EQ(source(forward), SourcePlan::kTransparent);
      EXPECT_EQ(instance(node).at("source_mode"), "transparent");
    });
  }
}

TEST_F(SourcePaths, AnObstacleFromTheStartIsReportedAfterTheSessionBegan) {
  run(ReturnPath::Kind::kProgram, [&](Node& node) {
    network_->ip("rule add pref 77 iif tap-vm-1 blackhole");
    const auto events = node.follow(kAdmin);
    node.put("vm-1");
    const std::string told = events->read().value();
    EXPECT_LT(told.find("instance.started"), told.find("instance.source_mode_changed"));
    EXPECT_THAT(told, HasSubstr("77"));
    const Forward forward = create(node, 3000).forward;
    EXPECT_EQ(served(node, forward), SourcePlan::kNoReturnPath);
    network_->ip("rule del pref 77");
    node.control().retry();
    EXPECT_EQ(served(node, forward), SourcePlan::kTransparent);
    network_->ip("rule add pref 77 iif tap-vm-1 blackhole");
    node.control().retry();
    node.run(node.control().stop_instance("vm-1")).value();
    EXPECT_EQ(node.control().instances_without_return_path(), 0U);
  });
}

// Its source_mode said transparent all the same.
TEST_F(SourcePaths, AForwardForWhichNoRuleIsLeftSaysSoAndGetsTheNextOne) {
  network_->run([&] {
    const auto path = ReturnPath::start(ReturnPath::Kind::kRules).value();
    Node node("[profiles.default]\nmax_forwarded_ports = 1000\n", path.get());
    node.put("vm-1");
    std::vector<Forward> forwards;
    for (std::size_t i = 0; i <= ReturnPath::kPortsMax; ++i) {
      forwards.push_back(create(node, static_cast<std::uint16_t>(3000 + i)).forward);
    }
    EXPECT_EQ(served(node, forwards.front()), SourcePlan::kTransparent);
    EXPECT_EQ(served(node, forwards.back()), SourcePlan::kNoReturnPath);
    EXPECT_EQ(status(node, forwards.back()).source, SourcePlan::kNoReturnPath);
    node.run(
            node.control().delete_forward(kAdmin, "vm-1", to_string(forwards.front().id), ClosePolicy::kKeep))
        .value();
    node.control().retry();
    EXPECT_EQ(served(node, forwards.back()), SourcePlan::kTransparent);
    EXPECT_EQ(status(node, forwards.back()).source, SourcePlan::kTransparent);
  });
}

TEST_F(SourcePaths, TheSourceGuardAloneIsNoReturnPathAndReportsNoSourceMode) {
  const auto taken = take_all_tcx(*network_, "tap-vm-1");  // a filter can be taken away
  run(ReturnPath::Kind::kGuardOnly, [&](Node& node) {
    const auto events = node.follow(kAdmin);
    node.put("vm-1");
    EXPECT_EQ(served(node, create(node, 3000).forward), SourcePlan::kNoReturnPath);
    run_command(network_.get(), {"tc", "qdisc", "del", "dev", "tap-vm-1", "clsact"});
    node.control().retry();
    EXPECT_THAT(run_command(network_.get(), {"tc", "filter", "show", "dev", "tap-vm-1", "ingress"}),
                HasSubstr("portway_steer"));
    EXPECT_THAT(events->read().value(), Not(HasSubstr("source_mode_changed")));
    EXPECT_EQ(node.control().instances_without_return_path(), 0U);
    const ForwardSpec spec{.guest_port = 3001, .label = "", .source_mode = SourceMode::kTransparent};
    EXPECT_FALSE(create_forwards(node, kAdmin, "vm-1", {&spec, 1}));
  });
}

}  // namespace
}  // namespace portway
