// Sessions and what becomes of their machines: the control plane on real taps, with a fake data plane.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <optional>
#include <string>

#include "tests/control/node.h"
#include "tests/support/network.h"
#include "tests/support/process.h"
#include "tests/support/requirements.h"
#include "tests/support/tap.h"

namespace portway {
namespace {

using test::Node;

class SessionsTest : public testing::Test {
 public:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    network_.emplace();
    network_->run([this] { node_.emplace(); });
  }

  /// A tap that outlives its machines; it has none yet.
  void add_tap(const std::string& name) {
    network_->ip("tuntap add dev " + name + " mode tap");
    network_->ip("link set " + name + " up");
  }
  Response put(const std::string& id, const std::string& tap, pid_t vmm_pid = 0) {
    boost::json::object body{{"guest_address", "198.19.0.2"}, {"tap", tap}, {"owner", "alice"}};
    if (vmm_pid != 0) body["vmm_pid"] = vmm_pid;
    return node_->call("PUT", "/instances/" + id, boost::json::serialize(body));
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
  void restart() {
    network_->run([this] { node_->restart(); });
  }
  /// What was not saved is not on disk.
  void crash() {
    node_->stop();
    node_->unlock_store();
    node_->dataplane.opened.clear();
    node_->dataplane.on_end_session = [] {};
    network_->run([this] { node_->start(); });
  }
  static std::string read(BodyStream& stream) { return stream.read().value(); }

  std::optional<test::NetworkNamespace> network_;
  std::optional<Node> node_;
  Fd machine;  // holds tap0 while there is one
  std::optional<test::Process> vmm;
};

// A rename ended the session (15 forwards were lost); the next interface with the old name inherited the
// rest.
TEST_F(SessionsTest, ASessionFollowsItsTapToAnotherName) {
  add_tap("tap0");
  machine = test::hold_tap(*network_, "tap0");
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);
  run_until_tap_is("up");
  const auto session = instance("vm-1").at("session_id");
  ASSERT_EQ(node_->call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  const int device = node_->dataplane.opened.begin()->second.first.device;
  const auto events = node_->follow({.key_id = {}, .role = Role::kAdmin, .owner = "admin"});
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

  // The end was reported to the orchestrator.
  EXPECT_EQ(put("vm-1", "tap9").status, 200U);
  EXPECT_EQ(instance("vm-1").at("session_id"), session);
  EXPECT_EQ(instance("vm-1").at("tap"), "tap9");
  ASSERT_EQ(node_->dataplane.opened.size(), 1U);

  // The new tap0 belongs to another machine.
  add_tap("tap0");
  test::hold_tap(*network_, "tap0").reset();
  network_->ip("link del tap0");
  node_->control().retry();
  node_->context.poll();
  EXPECT_EQ(instance("vm-1").at("state"), "running");
  restart();
  EXPECT_EQ(instance("vm-1").at("session_id"), session);
  EXPECT_EQ(instance("vm-1").at("tap_state"), "up");
  add_tap("tap0");
  const Fd other = test::hold_tap(*network_, "tap0");
  EXPECT_EQ(put("vm-1", "tap0").status, 200U);
  EXPECT_NE(instance("vm-1").at("session_id"), session)
      << "another machine, whatever the one before was called";
}

TEST_F(SessionsTest, ARenamedTapIsNobodyElses) {
  add_tap("tap0");
  machine = test::hold_tap(*network_, "tap0");
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);
  run_until_tap_is("up");
  network_->ip("link set tap0 name tap9");

  const Response same_interface = put("vm-2", "tap9");
  EXPECT_EQ(same_interface.status, 409U);
  EXPECT_EQ(Node::code(same_interface), "tap_in_use");
  EXPECT_EQ(put("vm-2", "tap0").status, 201U) << "a name that no interface has any more";
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

// --- Ends that the disk does not take: they are cut at once, and a crash does not undo what was reported.

/// What ends a session, and how somebody else takes the tap afterwards.
struct End {
  const char* name;
  const char* reason;
  bool armed_before_it_was_stored;  // else it was registered while its tap waited for a machine
  void (*end)(SessionsTest& test);
  void (*next_machine)(SessionsTest& test);
};
void PrintTo(const End& end, std::ostream* out) {
  *out << end.name;
}

class EndsTest : public SessionsTest, public testing::WithParamInterface<End> {};

INSTANTIATE_TEST_SUITE_P(
    Ends, EndsTest,
    testing::Values(End{"CarrierLost", "carrier_lost", true, [](SessionsTest& test) { test.machine.reset(); },
                        [](SessionsTest&) {}},
                    End{"CarrierLostOfAMachineThatCameLater", "carrier_lost", false,
                        [](SessionsTest& test) { test.machine.reset(); }, [](SessionsTest&) {}},
                    End{"TapDeleted", "tap_deleted", true,
                        [](SessionsTest& test) { test.network_->ip("link del tap0"); },
                        [](SessionsTest& test) {
                          test.machine.reset();
                          test.add_tap("tap0");
                        }},
                    End{"TapDeletedOfAMachineThatCameLater", "tap_deleted", false,
                        [](SessionsTest& test) { test.network_->ip("link del tap0"); },
                        [](SessionsTest& test) {
                          test.machine.reset();
                          test.add_tap("tap0");
                        }},
                    End{"VmmExited", "vmm_exited", true,
                        [](SessionsTest& test) {
                          test.vmm->signal(SIGKILL);
                          test.vmm->wait(std::chrono::seconds(10));
                        },
                        [](SessionsTest& test) { test.machine.reset(); }}),
    [](const auto& end) { return end.param.name; });

// Disk full, carrier lost, reported stopped; tap up again, kill -9, start: it ran, and its port led to
// whatever machine was behind the tap by then.
TEST_P(EndsTest, WhatWasReportedAsStoppedIsStoppedAfterACrash) {
  const End& how = GetParam();
  add_tap("tap0");
  vmm.emplace(test::SpawnOptions{.command = {"sleep", "1000"}});
  if (how.armed_before_it_was_stored) machine = test::hold_tap(*network_, "tap0");
  ASSERT_EQ(put("vm-1", "tap0", vmm->pid()).status, 201U);
  node_->settle();
  ASSERT_EQ(node_->call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  const auto events = node_->follow({.key_id = {}, .role = Role::kAdmin, .owner = "admin"});

  node_->lock_store();
  if (!how.armed_before_it_was_stored) machine = test::hold_tap(*network_, "tap0");
  run_until_tap_is("up");
  how.end(*this);
  run_until([&] { return node_->dataplane.opened.empty(); });
  // When a tap is deleted, the kernel first reports that it is down, which a crash would undo.
  run_until([&] {
    node_->control().retry();
    return instance("vm-1").at("state") == "stopped";
  });
  const auto told = instance("vm-1");
  const std::string reason(told.at("reason").as_string());
  EXPECT_TRUE(reason == how.reason || reason == "carrier_lost") << reason;
  EXPECT_NE(read(*events).find("event: instance.stopped"), std::string::npos);

  how.next_machine(*this);
  machine = test::hold_tap(*network_, "tap0");
  crash();
  EXPECT_EQ(instance("vm-1").at("state"), "stopped");
  EXPECT_TRUE(node_->dataplane.opened.empty());
}

// What the kernel's state would not show after a crash is not reported before it is on disk.
TEST_F(SessionsTest, AnEndThatACrashWouldUndoIsCutAtOnceAndReportedOnceItIsOnDisk) {
  add_tap("tap0");
  machine = test::hold_tap(*network_, "tap0");
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);
  run_until_tap_is("up");
  node_->settle();
  ASSERT_EQ(node_->call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  const auto events = node_->follow({.key_id = {}, .role = Role::kAdmin, .owner = "admin"});
  node_->lock_store();
  network_->ip("link set tap0 down");  // the machine holds it still
  run_until([&] { return node_->dataplane.opened.empty(); });
  EXPECT_EQ(instance("vm-1").at("state"), "ending");
  EXPECT_EQ(instance("vm-1").at("reason"), "carrier_lost");
  EXPECT_EQ(read(*events).find("instance.stopped"), std::string::npos);
  EXPECT_EQ(node_->call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3001})").status, 409U);
  node_->unlock_store();
  node_->control().retry();
  node_->settle();
  EXPECT_EQ(instance("vm-1").at("state"), "stopped");
  EXPECT_NE(read(*events).find("event: instance.stopped"), std::string::npos);
  crash();
  EXPECT_EQ(instance("vm-1").at("state"), "stopped");
}

TEST_F(SessionsTest, TheEndOfAMachineThatWasNeverStoredIsReportedOnceItIsOnDisk) {
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);  // before there is a tap
  node_->settle();
  node_->lock_store();
  add_tap("tap0");
  machine = test::hold_tap(*network_, "tap0");
  run_until_tap_is("up");
  machine.reset();
  run_until([&] { return instance("vm-1").at("state") == "ending"; });
  crash();
  EXPECT_EQ(instance("vm-1").at("state"), "running") << "and nothing else was reported";
}

TEST_F(SessionsTest, TheEndOfAMachineThatCameBeforeTheDaemonIsReportedOnceItIsOnDisk) {
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);  // before there is a tap
  node_->settle();
  node_->stop();
  add_tap("tap0");
  machine = test::hold_tap(*network_, "tap0");
  network_->run([this] { node_->start(); });
  node_->lock_store();
  EXPECT_EQ(instance("vm-1").at("tap_state"), "up");
  network_->ip("link del tap0");
  run_until_tap_is("missing");
  node_->control().retry();
  EXPECT_EQ(instance("vm-1").at("state"), "ending");
  machine.reset();
  crash();
  EXPECT_EQ(instance("vm-1").at("state"), "running") << "and nothing else was reported";
}

// However late the kernel reports the lost carrier.
TEST_F(SessionsTest, TheNextMachineOfATapHasASessionOfItsOwnAtOnce) {
  network_->ip("link add tap0 type veth peer name guest0");
  network_->ip("link set tap0 up");
  network_->ip("link set guest0 up");
  ASSERT_EQ(put("vm-1", "tap0").status, 201U);
  run_until_tap_is("up");
  for (int round = 0; round < 5; ++round) {
    const auto before = instance("vm-1").at("session_id");
    network_->ip("link set guest0 down");
    network_->ip("link set guest0 up");
    ASSERT_EQ(put("vm-1", "tap0").status, 200U);
    const auto session = instance("vm-1").at("session_id");
    EXPECT_NE(session, before);
    run_until_tap_is("up");
    EXPECT_EQ(instance("vm-1").at("session_id"), session);
  }
}

// --- Machines that are gone while a change waits for the disk: their end is noticed and cut meanwhile.

class WhileTheDiskTest : public SessionsTest {
 protected:
  void SetUp() override {
    SessionsTest::SetUp();
    if (!network_) return;
    add_tap("tap0");
    machine = test::hold_tap(*network_, "tap0");
    ASSERT_EQ(put("vm-1", "tap0").status, 201U);
    run_until_tap_is("up");
    node_->settle();
    const Response made = node_->call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})");
    ASSERT_EQ(made.status, 201U);
    forward_ = Node::json(made).at("port_forward").at("id").as_string();
    port_ = Node::json(made).at("port_forward").at("host_port").to_number<std::uint16_t>();
    // A disk that continues only once the data plane has cut the session.
    node_->lock_store();
    node_->dataplane.on_end_session = [this] { node_->unlock_store(); };
    node_->while_the_disk_is_waited_for([this] {
      machine.reset();
      node_->dispatch_events();
    });
  }
  std::string path() const { return "/instances/vm-1/port-forwards/" + forward_; }
  void expect_stopped_and_nothing_left() {
    EXPECT_EQ(instance("vm-1").at("state"), "stopped");
    EXPECT_EQ(instance("vm-1").at("reason"), "carrier_lost");
    EXPECT_TRUE(node_->dataplane.opened.empty());
    node_->settle();
    EXPECT_EQ(node_->control().ports().used(), 0U);
    EXPECT_EQ(node_->control().forwards_failed(), 0U);
    crash();
    EXPECT_EQ(instance("vm-1").at("state"), "stopped");
    EXPECT_EQ(instance("vm-1").at("reason"), "carrier_lost");
    EXPECT_EQ(node_->control().registry().forward_count(), 0U);
  }

  std::string forward_;
  std::uint16_t port_ = 0;
};

TEST_F(WhileTheDiskTest, ForwardsThatAreMadeThenAreNotPublished) {
  const Response made = node_->call("POST", "/instances/vm-1/port-forwards:batch",
                                    R"({"port_forwards": [{"guest_port": 3001}, {"guest_port": 3002}]})");
  EXPECT_EQ(made.status, 409U);
  EXPECT_EQ(Node::code(made), "instance_not_running");
  EXPECT_EQ(node_->control().ports().used(), 3U) << "the store has them until it gets the change";
  expect_stopped_and_nothing_left();
}

TEST_F(WhileTheDiskTest, AForwardThatIsChangedThenIsGone) {
  const Response changed = node_->call("PATCH", path(), R"({"label": "other"})");
  EXPECT_EQ(changed.status, 404U);
  expect_stopped_and_nothing_left();
}

TEST_F(WhileTheDiskTest, AForwardThatIsDeletedThenIsDeleted) {
  EXPECT_EQ(node_->call("DELETE", path()).status, 204U);
  expect_stopped_and_nothing_left();
}

TEST_F(WhileTheDiskTest, AnInstanceThatIsStoppedThenIsStopped) {
  EXPECT_EQ(node_->call("POST", "/instances/vm-1/stop").status, 200U);
  expect_stopped_and_nothing_left();
}

TEST_F(WhileTheDiskTest, AStopThatIsOnDiskIsReportedWhateverElseHasEndedTheSession) {
  node_->while_the_disk_is_waited_for([this] {
    network_->ip("link set tap0 down");
    node_->dispatch_events();
  });
  const Response stopped = node_->call("POST", "/instances/vm-1/stop");
  EXPECT_EQ(stopped.status, 200U);
  EXPECT_EQ(Node::json(stopped).at("instance").at("state"), "stopped");
  expect_stopped_and_nothing_left();
}

TEST_F(WhileTheDiskTest, AnInstanceThatIsDeletedThenIsDeleted) {
  EXPECT_EQ(node_->call("DELETE", "/instances/vm-1").status, 204U);
  EXPECT_EQ(node_->call("GET", "/instances/vm-1").status, 404U);
  EXPECT_EQ(node_->control().ports().used(), 0U);
  node_->settle();
  crash();
  EXPECT_EQ(node_->call("GET", "/instances/vm-1").status, 404U);
}

TEST_F(WhileTheDiskTest, ANewSessionThatBeginsThenHasTheNextMachine) {
  const std::string old(instance("vm-1").at("session_id").as_string());
  const auto events = node_->follow({.key_id = {}, .role = Role::kAdmin, .owner = "admin"});
  EXPECT_EQ(put("vm-1", "tap9").status, 200U);
  EXPECT_EQ(instance("vm-1").at("state"), "running");
  EXPECT_NE(instance("vm-1").at("session_id").as_string(), old);
  const std::string told = read(*events);
  EXPECT_NE(told.find(R"("reason":"carrier_lost")"), std::string::npos);
  EXPECT_EQ(told.find(R"("reason":"replaced")"), std::string::npos) << "it had ended before";
  EXPECT_EQ(node_->control().ports().used(), 0U);
  node_->settle();
  crash();
  EXPECT_EQ(instance("vm-1").at("state"), "running");
  EXPECT_EQ(node_->control().registry().forward_count(), 0U);
}

TEST_F(WhileTheDiskTest, ASessionThatIsChangedInPlaceThenIsTheNextMachines) {
  const std::string old(instance("vm-1").at("session_id").as_string());
  const Response changed = node_->call("PUT", "/instances/vm-1",
                                       R"({"guest_address": "198.19.0.2", "tap": "tap0", "owner": "bob"})");
  EXPECT_EQ(changed.status, 200U);
  EXPECT_EQ(instance("vm-1").at("state"), "running");
  EXPECT_EQ(instance("vm-1").at("owner"), "bob");
  EXPECT_NE(instance("vm-1").at("session_id").as_string(), old);
  EXPECT_TRUE(node_->dataplane.opened.empty());
  EXPECT_EQ(node_->control().ports().used(), 0U);
}

TEST_F(SessionsTest, AMachineThatIsGoneBeforeItsRegistrationIsOnDiskHasASessionThatIsOver) {
  add_tap("tap0");
  machine = test::hold_tap(*network_, "tap0");
  node_->context.poll();
  node_->while_the_disk_is_waited_for([this] {
    machine.reset();
    machine = test::hold_tap(*network_, "tap0");
    node_->dispatch_events();
  });
  const Response made = put("vm-1", "tap0");
  EXPECT_EQ(made.status, 201U);
  EXPECT_EQ(Node::json(made).at("instance").at("state"), "stopped") << made.body;
  node_->settle();
  crash();
  EXPECT_EQ(instance("vm-1").at("state"), "stopped");
}

}  // namespace
}  // namespace portway
