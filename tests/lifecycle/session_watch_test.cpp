// Sessions on real links and processes: what ends them, and what does not.
#include "lifecycle/session_watch.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "tests/support/network.h"
#include "tests/support/process.h"
#include "tests/support/requirements.h"
#include "tests/support/tap.h"

namespace portway {
namespace {

using test::NetworkNamespace;
using testing::AllOf;
using testing::HasSubstr;

class SessionWatchTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    network_.emplace();
    network_->run([this] { watch_ = SessionWatch::start(context_).value(); });
    watch_->set_callbacks(
        {.on_armed = [this](const std::string& id, const TapIdentity&) { told_.push_back(id + " armed"); },
         .on_idle_tap = [this](const std::string& id,
                               const TapIdentity& tap) { idle_.insert_or_assign(id, tap); },
         .on_renamed = [this](const std::string& id,
                              const std::string& name) { told_.push_back(id + " is behind " + name); },
         .on_device = [this](const std::string& id) { told_.push_back(id + " has another device"); },
         .on_end = [this](const std::string& id,
                          SessionEnd why) { told_.push_back(id + " " + std::string(to_string(why))); }});
  }

  void add_tap() {
    network_->ip("link add tap0 type veth peer name guest0");
    network_->ip("link set tap0 up");
    network_->ip("link set guest0 up");
  }
  /// A tap that outlives its machines; it has none yet.
  void add_persistent_tap(const std::string& name = "tap0") {
    network_->ip("tuntap add dev " + name + " mode tap");
    network_->ip("link set " + name + " up");
    read_all();
  }
  static Instance instance(const std::string& id, const std::string& tap = "tap0") {
    Instance made;
    made.id = id;
    made.tap = tap;
    return made;
  }
  /// Processes what the kernel has reported so far.
  void read_all() {
    Instance any = instance("any");
    EXPECT_TRUE(watch_->identify(any));
    watch_->dispatch();
  }
  /// Causes more messages than the netlink socket holds: what comes next is not reported.
  void flood() {
    std::string lines;
    for (int i = 0; i < 600; ++i) lines += fmt::format("link add many{} type veth peer name peer{}\n", i, i);
    network_->ip_batch(lines);
  }
  void run_until_told(const std::string& what) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    const auto told = [&] { return std::ranges::find(told_, what) != told_.end(); };
    while (!told() && std::chrono::steady_clock::now() < deadline) {
      context_.run_one_for(std::chrono::milliseconds(100));
    }
    EXPECT_TRUE(told()) << "never reported: " << what;
  }
  /// Reads what the kernel has reported so far.
  void run_until_tap_is(TapState state) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (watch_->tap_state(instance("vm")) != state && std::chrono::steady_clock::now() < deadline) {
      context_.run_one_for(std::chrono::milliseconds(100));
    }
    EXPECT_EQ(to_string(watch_->tap_state(instance("vm"))), to_string(state));
  }

  std::optional<NetworkNamespace> network_;
  boost::asio::io_context context_;
  std::unique_ptr<SessionWatch> watch_;
  std::vector<std::string> told_;
  std::map<std::string, TapIdentity> idle_;
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

// While other links change, the kernel reports a carrier up to a second late.
TEST_F(SessionWatchTest, ATapThatIsAskedForHasItsSessionArmedAtOnce) {
  add_tap();
  network_->ip("link set guest0 down");
  network_->ip("link add other0 type veth peer name otherpeer0");
  network_->ip("link set other0 up");
  run_until_tap_is(TapState::kNoCarrier);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  ASSERT_EQ(vm.tap_index, 0);
  for (const char* state : {"up", "down", "up"}) network_->ip("link set otherpeer0 " + std::string(state));
  network_->ip("link set guest0 up");
  watch_->refresh("vm");
  EXPECT_EQ(told_, std::vector<std::string>{"vm armed"});
}

TEST_F(SessionWatchTest, ATapMadeAgainUnderTheSameNameIsAnotherMachines) {
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
  vm.vmm_started = 1;  // the earlier process with this pid began long ago
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kVmmExited);
}

// The tap looked the same before and after, so a new machine passed for the old one.
TEST_F(SessionWatchTest, AMachineThatTookAnothersPlaceWhileNobodyLookedIsAnotherOne) {
  add_persistent_tap();
  Fd machine = test::hold_tap(*network_, "tap0");
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  ASSERT_TRUE(vm.tap_carrier_downs);
  watch_->forget("vm");  // as when the daemon was down meanwhile
  machine.reset();
  machine = test::hold_tap(*network_, "tap0");
  read_all();
  run_until_tap_is(TapState::kUp);
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kCarrierLost);
}

TEST_F(SessionWatchTest, ACarrierThatWasLostAmongLostMessagesEndsTheSession) {
  add_persistent_tap();
  Fd machine = test::hold_tap(*network_, "tap0");
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  flood();
  machine.reset();
  machine = test::hold_tap(*network_, "tap0");
  run_until_told("vm carrier_lost");
}

// The kernel reports a veth's carrier late, and then only the latest state.
TEST_F(SessionWatchTest, TwoFlipsInOneBatchOfMessagesEndTheSession) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  network_->ip_batch("link set guest0 down\nlink set guest0 up\nlink set guest0 down\nlink set guest0 up\n");
  run_until_told("vm carrier_lost");
}

TEST_F(SessionWatchTest, ASessionFromBeforeCarriersWereCountedIsCountedFromNowOn) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  const auto downs = vm.tap_carrier_downs;
  vm.tap_carrier_downs = std::nullopt;  // as an earlier version stored it
  EXPECT_FALSE(watch_->watch(vm));
  EXPECT_EQ(vm.tap_carrier_downs, downs);
}

// The arming never reached the disk: did it have a machine, or did it never have one?
TEST_F(SessionWatchTest, AMachineThatCameAndWentUnseenIsDistinguishedFromOneThatNeverCame) {
  add_persistent_tap();
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  EXPECT_GT(vm.idle_tap.index, 0);
  EXPECT_EQ(vm.tap_index, 0);
  watch_->forget("vm");

  Instance never = vm;
  Fd machine = test::hold_tap(*network_, "tap0");
  read_all();
  run_until_tap_is(TapState::kUp);
  EXPECT_FALSE(watch_->watch(never));
  EXPECT_GT(never.tap_index, 0) << "the machine that it waited for";
  watch_->forget("vm");

  machine.reset();
  read_all();
  Instance gone = vm;
  EXPECT_EQ(watch_->watch(gone), SessionEnd::kCarrierLost);
  network_->ip("link set tap0 name tap9 down");  // its name does not matter
  read_all();
  EXPECT_EQ(watch_->watch(gone), SessionEnd::kCarrierLost);
  network_->ip("link set tap9 name tap0 up");
  machine = test::hold_tap(*network_, "tap0");
  read_all();
  run_until_tap_is(TapState::kUp);
  EXPECT_EQ(watch_->watch(gone), SessionEnd::kCarrierLost);
}

TEST_F(SessionWatchTest, ATapThatIsStillBeingMadeHasNoMachine) {
  network_->ip("tuntap add dev tap0 mode tap");
  read_all();
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  EXPECT_EQ(vm.idle_tap, TapIdentity{});
  for (int i = 0; i < 3; ++i) test::hold_tap(*network_, "tap0").reset();  // to set its owner, its queues, ...
  network_->ip("link set tap0 up");
  read_all();
  EXPECT_GT(idle_["vm"].index, 0);
  const Fd machine = test::hold_tap(*network_, "tap0");
  run_until_told("vm armed");
  read_all();
  EXPECT_EQ(told_, std::vector<std::string>{"vm armed"});
}

TEST_F(SessionWatchTest, ATapThatIsMadeAgainBeforeItsMachineCameIsWaitedForAgain) {
  add_persistent_tap();
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  network_->ip("link del tap0");
  read_all();
  EXPECT_EQ(idle_["vm"], TapIdentity{});
  add_persistent_tap();
  EXPECT_GT(idle_["vm"].index, 0);
  EXPECT_NE(idle_["vm"].index, vm.idle_tap.index);
  EXPECT_TRUE(told_.empty());
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kTapDeleted) << "nobody can say that it had no machine meanwhile";
}

// A rename ended the session with its forwards; the next interface with the old name inherited what was left.
TEST_F(SessionWatchTest, ATapThatIsRenamedIsTheSameOne) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  ASSERT_FALSE(watch_->watch(vm));
  network_->ip("link property add dev tap0 altname ignored0");
  network_->ip("link set tap0 name tap9");
  run_until_told("vm is behind tap9");
  EXPECT_EQ(watch_->tap_state(vm), TapState::kUp);

  network_->ip("link add tap0 type veth peer name other0");
  network_->ip("link set tap0 up");
  network_->ip("link set other0 up");
  network_->ip("link set other0 down");
  network_->ip("link del tap0");
  read_all();
  EXPECT_EQ(told_, std::vector<std::string>{"vm is behind tap9"});
  EXPECT_EQ(watch_->tap_state(vm), TapState::kUp);

  watch_->forget("vm");  // a restart also uses the index
  EXPECT_FALSE(watch_->watch(vm));
  network_->ip("link set guest0 down");
  run_until_told("vm carrier_lost");
}

TEST_F(SessionWatchTest, TwoSessionsAreNeverBehindOneInterface) {
  add_tap();
  run_until_tap_is(TapState::kUp);
  Instance vm = instance("vm");
  Instance other = instance("other", "tap1");
  ASSERT_FALSE(watch_->watch(vm));
  ASSERT_FALSE(watch_->watch(other));
  network_->ip("link set tap0 name tap1");
  run_until_told("vm is behind tap1");
  EXPECT_EQ(watch_->tap_state(other), TapState::kMissing);
  EXPECT_EQ(watch_->interface_of(vm), watch_->interface_of(other)) << "where a registration would be refused";
  watch_->forget("other");
  EXPECT_FALSE(watch_->watch(other));
  EXPECT_EQ(other.tap_index, 0) << "at a restart, too";
  network_->ip("link set guest0 down");
  run_until_told("vm carrier_lost");
  for (const std::string& line : told_) EXPECT_FALSE(line.starts_with("other")) << line;
}

// What a crash would undo must not be reported before it is on disk.
// It stayed without its machine until something else happened to the tap.
TEST_F(SessionWatchTest, WhoWaitsForATapGetsItWhenTheSessionBehindItEnds) {
  test::Process vmm({.command = {"sleep", "1000"}});
  for (const bool by_itself : {true, false}) {
    told_.clear();
    add_persistent_tap();
    const Fd machine = test::hold_tap(*network_, "tap0");
    run_until_tap_is(TapState::kUp);
    Instance first = instance("first");
    if (by_itself) {
      first.vmm_pid = vmm.pid();
      ASSERT_TRUE(watch_->identify(first));
    }
    ASSERT_FALSE(watch_->watch(first));
    ASSERT_GT(first.tap_index, 0);
    Instance next = instance("next");
    ASSERT_FALSE(watch_->watch(next));
    EXPECT_EQ(next.tap_index, 0);
    EXPECT_EQ(watch_->tap_state(next), TapState::kMissing);
    read_all();
    EXPECT_TRUE(told_.empty());

    if (by_itself) {
      vmm.signal(SIGKILL);
      run_until_told("first vmm_exited");
    } else {
      watch_->forget("first");
      ASSERT_FALSE(watch_->watch(first)) << "its next session comes first";
      read_all();
      EXPECT_TRUE(told_.empty());
      watch_->forget("first");
    }
    run_until_told("next armed");
    watch_->forget("next");
    network_->ip("link del tap0");
    read_all();
  }
}

TEST_F(SessionWatchTest, KnowsWhichEndsWouldBeFoundAgain) {
  add_persistent_tap();
  Instance waiting = instance("vm");
  ASSERT_TRUE(watch_->identify(waiting));
  Fd machine = test::hold_tap(*network_, "tap0");
  run_until_tap_is(TapState::kUp);
  Instance armed = instance("vm");
  ASSERT_TRUE(watch_->identify(armed));
  const Instance unknown = instance("vm");
  EXPECT_FALSE(watch_->stays_over(waiting));
  EXPECT_FALSE(watch_->stays_over(armed));

  network_->ip("link set tap0 down");
  run_until_tap_is(TapState::kNoCarrier);
  EXPECT_FALSE(watch_->stays_over(armed)) << "it can be set up again, and the machine still holds it";
  machine.reset();
  network_->ip("link set tap0 up");
  read_all();
  EXPECT_TRUE(watch_->stays_over(armed));
  EXPECT_TRUE(watch_->stays_over(waiting));
  EXPECT_FALSE(watch_->stays_over(unknown));
  machine = test::hold_tap(*network_, "tap0");
  run_until_tap_is(TapState::kUp);
  EXPECT_TRUE(watch_->stays_over(armed));
  network_->ip("link del tap0");
  add_persistent_tap();
  EXPECT_TRUE(watch_->stays_over(armed));
  EXPECT_TRUE(watch_->stays_over(waiting));
  EXPECT_FALSE(watch_->stays_over(unknown));

  test::Process vmm({.command = {"sleep", "1000"}});
  Instance with_process = instance("vm");
  with_process.vmm_pid = vmm.pid();
  ASSERT_TRUE(watch_->identify(with_process));
  EXPECT_FALSE(watch_->stays_over(with_process));
  vmm.signal(SIGKILL);
  vmm.wait(std::chrono::seconds(10));
  EXPECT_TRUE(watch_->stays_over(with_process));
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

// A caller that waits for something else polls one descriptor and misses nothing.
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

TEST_F(SessionWatchTest, ANewSessionsMachineIsDistinguishedFromLaterOnes) {
  add_persistent_tap();
  test::Process vmm({.command = {"sleep", "1000"}});
  Instance vm = instance("vm");
  vm.vmm_pid = vmm.pid();
  ASSERT_TRUE(watch_->identify(vm));
  EXPECT_GT(vm.vmm_started, 0U);
  EXPECT_GT(vm.idle_tap.index, 0);
  Instance later = vm;
  const Fd machine = test::hold_tap(*network_, "tap0");
  vmm.signal(SIGKILL);
  vmm.wait(std::chrono::seconds(10));
  EXPECT_EQ(watch_->watch(vm), SessionEnd::kVmmExited);
  const auto refused = watch_->identify(later);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidRequest);
  EXPECT_EQ(refused.error().field, "vmm_pid");
}

// Sessions ended because the daemon was short of descriptors, and their forwards were deleted for good.
TEST_F(SessionWatchTest, AProcessThatCannotBeSeenKeepsItsSessionAndIsAskedForUntilItCan) {
  test::Process vmm({.command = {"sleep", "1000"}});
  Instance vm = instance("vm");
  vm.vmm_pid = vmm.pid();
  ASSERT_TRUE(watch_->identify(vm));
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none{.rlim_cur = 3, .rlim_max = before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &none);
  Instance later = vm;
  const auto refused = watch_->identify(later);
  EXPECT_FALSE(watch_->watch(vm));
  const std::size_t unseen = watch_->processes_unseen();
  ::setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_EQ(unseen, 1U);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted) << "a later process could pass for this one";

  while (watch_->processes_unseen() != 0) ASSERT_EQ(context_.run_one_for(std::chrono::seconds(10)), 1U);
  EXPECT_TRUE(told_.empty());
  vmm.signal(SIGKILL);
  run_until_told("vm vmm_exited");
}

TEST_F(SessionWatchTest, TheEndOfAProcessThatCannotBeSeenIsFoundByAsking) {
  test::Process vmm({.command = {"sleep", "1000"}});
  Instance vm = instance("vm");
  vm.vmm_pid = vmm.pid();
  ASSERT_TRUE(watch_->identify(vm));
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  const rlimit none{.rlim_cur = 3, .rlim_max = before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &none);
  EXPECT_FALSE(watch_->watch(vm));
  vmm.signal(SIGKILL);
  vmm.wait(std::chrono::seconds(10));
  while (told_.empty() && context_.run_one_for(std::chrono::seconds(10)) == 1) {
  }
  ::setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_EQ(told_, std::vector<std::string>{"vm vmm_exited"});
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

// A bridge takes all packets that come in by its ports: a socket bound to a port's device gets no answer.
TEST_F(SessionWatchTest, AnInterfaceThatCannotBeATapSaysWhyAndWhatToDo) {
  add_tap();
  read_all();
  EXPECT_EQ(watch_->tap_fault(instance("vm-1")), "");
  EXPECT_EQ(watch_->tap_fault(instance("vm-1", "missing")), "");
  EXPECT_THAT(watch_->tap_fault(instance("vm-1", "lo")), HasSubstr("loopback"));

  network_->ip("link add br0 type bridge");
  network_->ip("link set br0 up");
  network_->ip("link set tap0 master br0");
  read_all();
  EXPECT_THAT(watch_->tap_fault(instance("vm-1")), AllOf(HasSubstr("tap0 is a port of bridge br0"),
                                                         HasSubstr("nomaster"), HasSubstr("the device br0")));
  EXPECT_EQ(watch_->tap_fault(instance("vm-1", "br0")), "");
  Instance through_br0 = instance("vm-1");
  through_br0.device = "br0";
  EXPECT_EQ(watch_->tap_fault(through_br0), "");
  through_br0.device = "br1";
  EXPECT_THAT(watch_->tap_fault(through_br0), HasSubstr("no interface br1"));
  through_br0.device = "none";
  EXPECT_EQ(watch_->tap_fault(through_br0), "");
  network_->ip("link set tap0 nomaster");
  read_all();
  EXPECT_EQ(watch_->tap_fault(instance("vm-1")), "");
}

// The operator's bridges go by their names: two guests share one, and each learns of its changes.
TEST_F(SessionWatchTest, ADeviceIsFoundByItsNameWhateverHappensToTheInterface) {
  add_tap();
  add_persistent_tap("tap1");
  network_->ip("link add br0 type bridge");
  read_all();
  Instance one = instance("one");
  Instance two = instance("two", "tap1");
  one.device = two.device = "br0";
  ASSERT_FALSE(watch_->watch(one));
  ASSERT_FALSE(watch_->watch(two));
  const std::int32_t first = watch_->device_of(one).index;
  EXPECT_GT(first, 0);
  const auto both_told = [this] {
    run_until_told("one has another device");
    run_until_told("two has another device");
    told_.clear();
  };
  told_.clear();

  network_->ip("link set br0 name br1");
  both_told();
  EXPECT_EQ(watch_->device_of(one).index, 0);
  network_->ip("link set br1 name br0");
  both_told();
  EXPECT_EQ(watch_->device_of(one).index, first);
  network_->ip("link del br0");
  both_told();
  network_->ip("link add br0 type bridge");
  both_told();
  EXPECT_NE(watch_->device_of(one).index, first);
  EXPECT_NE(watch_->device_of(one).index, 0);

  watch_->forget("one");
  network_->ip("link del br0");
  run_until_told("two has another device");
  EXPECT_EQ(std::ranges::count(told_, "one has another device"), 0);
}

}  // namespace
}  // namespace portway
