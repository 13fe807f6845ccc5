// Sessions on real links and processes: what ends them, and what does not.
#include "lifecycle/session_watch.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/network.h"
#include "tests/support/process.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::NetworkNamespace;

class SessionWatchTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    network_.emplace();
    network_->run([this] { watch_ = SessionWatch::start(context_).value(); });
    watch_->set_callbacks(
        {.on_armed = [this](const std::string& id, std::int32_t) { told_.push_back(id + " armed"); },
         .on_end = [this](const std::string& id,
                          SessionEnd why) { told_.push_back(id + " " + std::string(to_string(why))); }});
  }

  void add_tap() {
    network_->ip("link add tap0 type veth peer name guest0");
    network_->ip("link set tap0 up");
    network_->ip("link set guest0 up");
  }
  static Instance instance(const std::string& id) {
    Instance made;
    made.id = id;
    made.tap = "tap0";
    return made;
  }
  void run_until_told(const std::string& what) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    const auto told = [&] { return std::ranges::find(told_, what) != told_.end(); };
    while (!told() && std::chrono::steady_clock::now() < deadline) {
      context_.run_one_for(std::chrono::milliseconds(100));
    }
    EXPECT_TRUE(told()) << "never told: " << what;
  }
  /// Reads what the kernel has told so far.
  void run_until_tap_is(TapState state) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (watch_->tap_state(instance("")) != state && std::chrono::steady_clock::now() < deadline) {
      context_.run_one_for(std::chrono::milliseconds(100));
    }
    EXPECT_EQ(to_string(watch_->tap_state(instance(""))), to_string(state));
  }

  std::optional<NetworkNamespace> network_;
  boost::asio::io_context context_;
  std::unique_ptr<SessionWatch> watch_;
  std::vector<std::string> told_;
};

TEST_F(SessionWatchTest, EndsWhenTheCarrierIsLost) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  EXPECT_GT(vm.tap_index, 0);
  network_->ip("link set guest0 down");
  run_until_told("vm carrier_lost");
}

TEST_F(SessionWatchTest, EndsWhenTheTapIsDeleted) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  network_->ip("link del tap0");
  run_until_tap_is(TapState::kMissing);
  ASSERT_EQ(told_.size(), 1U);  // once, whichever message came first
  EXPECT_TRUE(told_[0] == "vm tap_deleted" || told_[0] == "vm carrier_lost") << told_[0];
}

TEST_F(SessionWatchTest, AGuestMayComeLaterThanItsRegistration) {
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  EXPECT_EQ(vm.tap_index, 0);
  network_->ip("link add tap0 type veth peer name guest0");
  network_->ip("link set tap0 up");
  run_until_tap_is(TapState::kNoCarrier);
  EXPECT_TRUE(told_.empty());  // nothing was lost yet
  network_->ip("link set guest0 up");
  run_until_told("vm armed");
  network_->ip("link set guest0 down");
  run_until_told("vm carrier_lost");
}

TEST_F(SessionWatchTest, ATapMadeAnewUnderTheSameNameIsAnotherMachines) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  watch_->forget("vm");  // as when the daemon was down meanwhile
  network_->ip("link del tap0");
  run_until_tap_is(TapState::kMissing);
  add_tap();
  run_until_tap_is(TapState::kUp);
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kTapDeleted);
}

TEST_F(SessionWatchTest, ACarrierThatIsGoneWhenTheDaemonComesBackEndsTheSession) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  watch_->forget("vm");
  network_->ip("link set guest0 down");
  run_until_tap_is(TapState::kNoCarrier);
  EXPECT_TRUE(told_.empty());
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kCarrierLost);
}

TEST_F(SessionWatchTest, EndsWhenTheProcessOfTheVmmIsGone) {
  test::Process vmm({.command = {"sleep", "1000"}});
  Instance vm = instance("vm");
  vm.vmm_pid = vmm.pid();
  ASSERT_FALSE(watch_->watch(vm));
  EXPECT_GT(vm.vmm_started, 0U);
  vmm.signal(SIGKILL);
  vmm.wait(std::chrono::seconds(10));
  run_until_told("vm vmm_exited");
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kVmmExited);
}

TEST_F(SessionWatchTest, APidThatIsUsedAgainIsAnotherMachines) {
  test::Process vmm({.command = {"sleep", "1000"}});
  Instance vm = instance("vm");
  vm.vmm_pid = vmm.pid();
  vm.vmm_started = 1;  // what had this pid before began long ago
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kVmmExited);
}

TEST_F(SessionWatchTest, DestroyedWithNewsUnreadItSaysNothing) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  network_->ip("link del tap0");
  watch_.reset();
  context_.poll();
  EXPECT_TRUE(told_.empty());
}

// Whoever waits for something else polls one descriptor and misses nothing.
TEST_F(SessionWatchTest, EverythingItWaitsForIsBehindOneDescriptor) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  test::Process vmm({.command = {"sleep", "1000"}});
  Instance vm = instance("vm");
  Instance other = instance("other");
  other.tap = "tap1";
  other.vmm_pid = vmm.pid();
  ASSERT_FALSE(watch_->watch(vm));
  ASSERT_FALSE(watch_->watch(other));
  const auto dispatch_until_told = [this](const std::string& what) {
    while (std::ranges::find(told_, what) == told_.end()) {
      pollfd readable{.fd = watch_->descriptor(), .events = POLLIN, .revents = 0};
      ASSERT_EQ(::poll(&readable, 1, 10'000), 1);
      watch_->dispatch();
    }
  };
  vmm.signal(SIGKILL);
  dispatch_until_told("other vmm_exited");
  network_->ip("link set guest0 down");
  dispatch_until_told("vm carrier_lost");
}

TEST_F(SessionWatchTest, OnlyTheSessionsBehindTheLostTapEnd) {
  add_tap();
  network_->ip("link add tap1 type veth peer name guest1");
  network_->ip("link set tap1 up");
  network_->ip("link set guest1 up");
  run_until_tap_is(TapState::kUp);
  Instance other = instance("other");
  other.tap = "tap1";
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(other));
  ASSERT_FALSE(watch_->watch(vm));
  network_->ip("link set guest0 down");
  run_until_told("vm carrier_lost");
  for (const std::string& line : told_) EXPECT_FALSE(line.starts_with("other c")) << line;
}

}  // namespace
}  // namespace portway
