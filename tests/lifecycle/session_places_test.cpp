// SessionWatch with taps and guests in network namespaces of their own: real ones, with names as `ip netns`
// makes them.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>
#include <boost/asio/io_context.hpp>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lifecycle/session_watch.h"
#include "tests/support/network.h"
#include "tests/support/process.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::NetworkNamespace;
using test::Process;
using testing::HasSubstr;

std::size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

class SessionPlacesTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(test::why_no_namespaces());
    std::string path = std::filesystem::temp_directory_path() / "portway-places-XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
    directories_ = {path};
    node_.emplace();
    start_watch();
  }
  void TearDown() override {
    watch_.reset();
    for (auto& [name, netns] : spaces_) remove_name(name);
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  void start_watch() {
    watch_.reset();
    node_->run([this] { watch_ = SessionWatch::start(context_, directories_).value(); });
    watch_->set_callbacks(
        {.on_armed = [this](const std::string& id, const TapIdentity&) { told_.push_back(id + " armed"); },
         .on_idle_tap = [](const std::string&, const TapIdentity&) {},
         .on_renamed = [this](const std::string& id,
                              const std::string& name) { told_.push_back(id + " is behind " + name); },
         .on_device = [this](const std::string& id) { told_.push_back(id + " has another device"); },
         .on_end =
             [this](const std::string& id, SessionEnd why) {
               told_.push_back(id + " " + std::string(to_string(why)));
               const auto ended = known_.find(id);
               if (ended == known_.end()) return;
               const auto netns = watch_->netns_of(ended->second);
               still_held_ = netns && *netns;
             }});
  }

  std::string path(const std::string& name) const { return directory_ / name; }
  void remove_name(const std::string& name) {
    ::umount2(path(name).c_str(), MNT_DETACH);
    ::unlink(path(name).c_str());
  }
  /// A namespace with this name, and in it a tap0 with a carrier.
  NetworkNamespace& add_space(const std::string& name) {
    NetworkNamespace& netns = spaces_.try_emplace(name).first->second;
    netns.ip("link add tap0 type veth peer name guest0");
    netns.ip("link set tap0 up");
    netns.ip("link set guest0 up");
    netns.mount_at(path(name));
    return netns;
  }
  Instance instance(const std::string& id, const std::string& netns) const {
    Instance made;
    made.id = id;
    made.tap = "tap0";
    made.netns = path(netns);
    return made;
  }
  /// A new session, as Control begins it. It becomes armed, as soon as the kernel reports the carrier.
  Instance begin(const std::string& id, const std::string& netns) {
    Instance made = instance(id, netns);
    const auto held = watch_->identify(made);
    EXPECT_TRUE(held) << (held ? "" : held.error().detail);
    EXPECT_EQ(watch_->watch(made), std::nullopt);
    if (made.tap_index == 0) run_until_told(id + " armed");
    if (made.tap_index == 0) made.tap_index = watch_->interface_of(made).index;
    return made;
  }
  bool was_told(const std::string& what) const { return std::ranges::find(told_, what) != told_.end(); }
  void run_until_told(const std::string& what) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!was_told(what) && std::chrono::steady_clock::now() < deadline) {
      context_.run_one_for(std::chrono::milliseconds(100));
    }
    EXPECT_TRUE(was_told(what)) << "never reported: " << what;
  }

  std::filesystem::path directory_;
  std::vector<std::string> directories_;
  std::optional<NetworkNamespace> node_;
  std::map<std::string, NetworkNamespace> spaces_;
  boost::asio::io_context context_;
  std::unique_ptr<SessionWatch> watch_;
  std::vector<std::string> told_;
  std::map<std::string, Instance> known_;  // of which the end is looked at
  bool still_held_ = false;                // the namespace of the last one of these, when its end was told
};

TEST_F(SessionPlacesTest, TapsWithOneNameAndIndexInTwoNamespacesAreTwo) {
  NetworkNamespace& first = add_space("a");
  NetworkNamespace& second = add_space("b");
  const Instance a = begin("a", "a");
  const Instance b = begin("b", "b");
  EXPECT_EQ(a.tap_index, b.tap_index) << "of what use is the test otherwise?";
  EXPECT_NE(watch_->interface_of(a), watch_->interface_of(b));
  first.ip("link set tap0 name tap9");
  run_until_told("a is behind tap9");
  first.ip("link set guest0 down");
  run_until_told("a carrier_lost");
  EXPECT_EQ(watch_->tap_state(b), TapState::kUp);
  second.ip("link del tap0");
  run_until_told("b carrier_lost");
}

TEST_F(SessionPlacesTest, ATapThatMovesToAnotherNamespaceIsGone) {
  NetworkNamespace& first = add_space("a");
  NetworkNamespace& second = add_space("b");
  second.ip("link del tap0");
  begin("a", "a");
  first.ip("link set tap0 netns " + second.path());
  run_until_told("a carrier_lost");
}

TEST_F(SessionPlacesTest, ASessionEndsWhenThePathLeadsToItsNamespaceNoMore) {
  add_space("deleted");
  add_space("unmounted");
  add_space("covered");
  add_space("stays");
  for (const char* name : {"deleted", "unmounted", "covered", "stays"}) begin(name, name);
  remove_name("deleted");
  run_until_told("deleted netns_gone");
  ::umount2(path("unmounted").c_str(), MNT_DETACH);
  run_until_told("unmounted netns_gone");
  spaces_.at("stays").mount_at(path("covered"));
  run_until_told("covered netns_gone");
  EXPECT_FALSE(was_told("stays netns_gone"));
  ::umount2(path("covered").c_str(), MNT_DETACH);
}

// Nobody reports it: whoever registers the instance anew looks, and so does Control every few seconds.
TEST_F(SessionPlacesTest, ASessionEndsWhenADirectoryAboveThePathIsRenamed) {
  std::filesystem::create_directories(directory_ / "above" / "it");
  for (const char* name : {"above/it/a", "above/it/b", "stays"}) {
    add_space(name);
    begin(name, name);
  }
  watch_->look_at_names();
  EXPECT_FALSE(was_told("above/it/a netns_gone"));
  std::filesystem::rename(directory_ / "above", directory_ / "elsewhere");
  watch_->refresh("above/it/a");
  EXPECT_TRUE(was_told("above/it/a netns_gone"));
  watch_->look_at_names();
  EXPECT_TRUE(was_told("above/it/b netns_gone"));
  EXPECT_FALSE(was_told("stays netns_gone"));
  std::filesystem::rename(directory_ / "elsewhere", directory_ / "above");
}

// Whoever ends what is in the namespace needs it.
TEST_F(SessionPlacesTest, WhoeverIsToldOfAnEndStillHasTheNamespaceWhateverEndedIt) {
  NetworkNamespace& dies = add_space("dies");
  add_space("deleted");
  for (const char* name : {"dies", "deleted"}) known_.emplace(name, begin(name, name));
  dies.ip("link set guest0 down");
  run_until_told("dies carrier_lost");
  EXPECT_TRUE(still_held_);
  still_held_ = false;
  remove_name("deleted");
  run_until_told("deleted netns_gone");
  EXPECT_TRUE(still_held_);
  EXPECT_EQ(watch_->namespaces(), 0U) << "and not for longer";
}

TEST_F(SessionPlacesTest, AnEndIsNoticedWhileTheCallerWaitsForSomethingElse) {
  add_space("a");
  begin("a", "a");
  remove_name("a");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (told_.empty() && std::chrono::steady_clock::now() < deadline) {
    watch_->dispatch_within(std::chrono::milliseconds(100));
  }
  EXPECT_TRUE(was_told("a netns_gone"));
}

TEST_F(SessionPlacesTest, ASessionIsFoundAgainAfterARestart) {
  add_space("same");
  add_space("other");
  add_space("gone");
  Instance same = begin("same", "same");
  Instance other = begin("other", "other");
  Instance gone = begin("gone", "gone");
  watch_.reset();
  remove_name("gone");
  remove_name("other");
  spaces_.at("same").mount_at(path("other"));
  start_watch();
  EXPECT_EQ(watch_->watch(same), std::nullopt);
  EXPECT_EQ(watch_->tap_state(same), TapState::kUp);
  EXPECT_TRUE(watch_->netns_of(same));
  EXPECT_EQ(watch_->watch(other), SessionEnd::kNetnsGone);
  EXPECT_EQ(watch_->watch(gone), SessionEnd::kNetnsGone);
}

TEST_F(SessionPlacesTest, WhatCannotBeOpenedAfterARestartIsNotGone) {
  NetworkNamespace& space = add_space("a");
  Instance a = begin("a", "a");
  watch_.reset();
  directories_ = {"/run/elsewhere"};  // the configuration has changed
  start_watch();
  EXPECT_EQ(watch_->watch(a), std::nullopt);
  const auto netns = watch_->netns_of(a);
  ASSERT_FALSE(netns);
  EXPECT_THAT(netns.error().detail, HasSubstr("netns_directories"));
  EXPECT_THAT(watch_->tap_fault(a), HasSubstr("netns_directories"));
  EXPECT_FALSE(watch_->stays_over(a));
  directories_ = {directory_};
  run_until_told("a has another device");
  EXPECT_TRUE(watch_->netns_of(a));
  EXPECT_EQ(watch_->tap_state(a), TapState::kUp);
  space.ip("link set guest0 down");
  run_until_told("a carrier_lost");
}

TEST_F(SessionPlacesTest, SessionsOfOneNamespaceShareADescriptorAndNothingIsLeft) {
  add_space("a");
  Instance warm_up = begin("a", "a");  // what is made once
  watch_->forget("a");
  const std::size_t before = open_descriptors();
  const Instance one = begin("one", "a");
  EXPECT_EQ(open_descriptors(), before + 1);
  spaces_.at("a").ip("link add tap1 type veth peer name guest1");
  spaces_.at("a").ip("link set tap1 up");
  spaces_.at("a").ip("link set guest1 up");
  Instance two = instance("two", "a");
  two.tap = "tap1";
  ASSERT_TRUE(watch_->identify(two));
  EXPECT_EQ(watch_->watch(two), std::nullopt);
  EXPECT_EQ(open_descriptors(), before + 1);
  watch_->forget("one");
  EXPECT_EQ(open_descriptors(), before + 1);
  watch_->forget("two");
  EXPECT_EQ(open_descriptors(), before);
  Instance refused = instance("no", "missing");
  EXPECT_FALSE(watch_->identify(refused));
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(SessionPlacesTest, AProcessAloneMayBeWatched) {
  NetworkNamespace& space = add_space("a");
  Process vmm({.command = {"sh", "-c", "echo ready; exec sleep 1000"}, .network = &space});
  ASSERT_TRUE(vmm.wait_for_output("ready", std::chrono::seconds(30)));
  Instance vm = instance("vm", "a");
  vm.tap.clear();
  vm.netns = kNetnsOfVmm;
  vm.device = "tap0";
  vm.vmm_pid = vmm.pid();
  const auto held = watch_->identify(vm);
  ASSERT_TRUE(held) << held.error().detail;
  EXPECT_EQ(watch_->watch(vm), std::nullopt);
  EXPECT_EQ(watch_->tap_state(vm), TapState::kNone);
  EXPECT_NE(watch_->device_of(vm).index, 0);
  space.ip("link del tap0");
  run_until_told("vm has another device");
  EXPECT_EQ(watch_->device_of(vm).index, 0);
  vmm.signal(SIGKILL);
  run_until_told("vm vmm_exited");
}

}  // namespace
}  // namespace portway
