// Publishers, with a real etcd.

#include "fleet/publisher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/fleet/fleet_world.h"

namespace portway::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using testing::HasSubstr;
using Lost = std::vector<std::pair<std::string, FleetNode::Loss>>;

TEST_F(FleetTest, PublishesWhatANodeHasAndWhatChanges) {
  start_one();
  FakeNode& node = add_node("n1");
  node.put("vm-a");
  const ForwardId first = node.forward("vm-a", "one");
  node.put("vm-b");
  join(node);
  until_published(node);
  const auto record = parse_registered_node(stored("nodes/n1").begin()->second);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->record, node.record());
  EXPECT_EQ(claim_of("vm-a"), (Claim{.node = "n1",
                                     .session_id = node.machines().at("vm-a").session,
                                     .began = time_of(node.machines().at("vm-a").session)}));
  EXPECT_TRUE(node.publisher().stats().registered);

  node.change_forward("vm-a", first, "another");
  node.forward("vm-b", "two");
  node.change("vm-b", "changed");
  until_published(node);
  node.remove_forward("vm-a", first);
  node.stop("vm-b");
  until_published(node);
  node.change_record([](NodeRecord& changed) { changed.draining = true; });
  until([&] { return parse_registered_node(stored("nodes/n1").begin()->second)->record.draining; },
        "draining");

  node.remove("vm-a");
  until_published(node);
  until([&] { return claim_of("vm-a")->ended; }, "vm-a's claim ends");
  EXPECT_FALSE(claim_of("vm-b")->ended);
  EXPECT_TRUE(node.faults.empty());
  EXPECT_TRUE(node.lost.empty());
}

TEST_F(FleetTest, WhoResignsIsGoneAtOnceAndWhatItHasStays) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  until_published(node);
  bool done = false;
  node.publisher().resign([&] { done = true; });
  until([&] { return done; }, "resigned");
  EXPECT_TRUE(stored("nodes/").empty());
  EXPECT_EQ(stored("state/n1/"), wanted(node));
  // Whoever waits for it is told as well if there is no etcd, or nothing to say.
  PublisherOptions options = publisher_options();
  options.etcd.request_timeout = seconds(1);
  join(node, options);
  until([&] { return node.publisher().stats().registered; }, "registered");
  member.kill();
  done = false;
  node.publisher().resign([&] { done = true; });
  until([&] { return done; }, "resigned without etcd");
  join(node, options);
  done = false;
  node.publisher().resign([&] { done = true; });
  until([&] { return done; }, "resigned before it was registered");
}

TEST_F(FleetTest, ARestartWritesOnlyTheNodesRecord) {
  start_one();
  FakeNode& node = join_new("n1");
  for (int i = 0; i < 60; ++i) {
    const std::string id = "vm-" + std::to_string(i);
    node.put(id);
    node.forward(id, "one");
    node.forward(id, std::string(2000, 'x'));
  }
  until_published(node);
  node.leave();
  const std::int64_t before = revision();
  join(node);
  until([&] { return node.publisher().stats().listings >= 1 && node.publisher().stats().pending == 0; },
        "idle");
  EXPECT_EQ(revision(), before + 1);  // its record, on the new lease
  until_published(node);
}

TEST_F(FleetTest, AnInstanceMayHaveMoreForwardsThanATransaction) {
  start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  for (int i = 0; i < 350; ++i) node.forward("vm-a", std::to_string(i));
  node.put("vm-b");
  node.forward("vm-b");
  until_published(node);
  node.put("vm-a");  // another session
  node.forward("vm-a");
  until_published(node);
  node.remove("vm-a");
  until_published(node);
}

// --- etcd is away, or has forgotten.

TEST_F(FleetTest, WhatChangesWhileEtcdIsAwayIsPublishedAfterwards) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  node.put("vm-b");
  const ForwardId gone = node.forward("vm-b", "gone");
  until_published(node);
  member.kill();
  node.remove("vm-a");
  node.remove_forward("vm-b", gone);
  node.forward("vm-b", "new");
  for (int i = 0; i < 300; ++i) node.change("vm-b", std::to_string(i));
  node.put("vm-c");
  until([&] { return node.faults.contains(FleetFault::kEtcd); }, "the fault is reported");
  EXPECT_THAT(node.faults[FleetFault::kEtcd], HasSubstr(member.url()));
  EXPECT_LT(node.publisher().stats().pending, 10U);  // once each
  member.restart();
  until_published(node);
  until([&] { return node.faults.empty(); }, "the fault is over");
  EXPECT_TRUE(claim_of("vm-a")->ended);
}

TEST_F(FleetTest, AnEtcdThatNeverAnswersIsReportedAndWaitedFor) {
  EtcdMember& member = start_one();
  FakeNode& node = add_node("n1");
  PublisherOptions options = publisher_options();
  options.etcd.request_timeout = milliseconds(500);
  options.etcd.silence_max = milliseconds(500);
  join(node, options);
  node.put("vm-a");
  until_published(node);
  member.stop();
  node.put("vm-b");
  until([&] { return node.faults.contains(FleetFault::kEtcd); }, "the fault is reported");
  member.resume();
  until_published(node);
  until([&] { return node.faults.empty(); }, "the fault is over");
}

TEST_F(FleetTest, RegistersAgainIfItsLeaseIsLost) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  until_published(node);
  const auto kv = done(etcd().range({.keys = EtcdKeys::one("/portway/nodes/n1")})).kvs.at(0);
  done(etcd().revoke(kv.lease));
  until([&] { return !stored("nodes/n1").empty() && node.publisher().stats().registrations >= 2; },
        "registered");
  // Its record may go while the lease stays.
  node.leave();
  PublisherOptions options = publisher_options();
  options.check_period = milliseconds(100);
  join(node, options);
  until([&] { return node.publisher().stats().registered; }, "registered");
  member.control({"del", "/portway/nodes/n1"});
  until([&] { return node.publisher().stats().registrations >= 2; }, "registered again");
  EXPECT_FALSE(stored("nodes/n1").empty());
}

TEST_F(FleetTest, WhatSomebodyElseChangesIsWrittenAgain) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  node.forward("vm-a", "one");
  until_published(node);
  const auto keys = stored("state/n1/");
  for (const auto& [key, value] : keys) member.control({"put", "/portway/" + key, "nonsense"});
  until_published(node);
  for (const auto& [key, value] : keys) member.control({"del", "/portway/" + key});
  until_published(node);
  member.control({"put", "/portway/state/n1/instances/unknown", "x"});
  member.control({"put", "/portway/state/n1/forwards/vm-a/" + to_string(make_uuid()), "x"});
  until_published(node);
  member.control({"put", "/portway/claims/vm-a", "nonsense"});
  node.change("vm-a", "changed");
  until([&] { return claim_of("vm-a").has_value(); }, "the claim is one again");
  until_published(node);
  EXPECT_TRUE(node.lost.empty());
  // Not a key of this program's: it is left alone.
  member.control({"put", "/portway/state/n1/other", "x"});
  node.change("vm-a", "again");
  until(
      [&] {
        return stored("state/n1/instances/") ==
               std::map<std::string, std::string>{{"state/n1/instances/vm-a", node.instance_json("vm-a")}};
      },
      "published");
  EXPECT_EQ(stored("state/n1/other").size(), 1U);
}

TEST_F(FleetTest, ReadsEverythingAgainIfChangesWereCompacted) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  until_published(node);
  for (int i = 0; i < 10; ++i) put("other", std::to_string(i));
  member.control({"compact", std::to_string(revision())});
  member.kill();
  node.put("vm-b");
  member.restart();
  until_published(node);
  until([&] { return node.publisher().stats().listings >= 2; }, "listed again");
}

TEST_F(FleetTest, PublishesEverythingAgainIfEtcdWasRestoredOrReplaced) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  node.put("vm-b");
  until_published(node);
  const auto copy = directory_.path() / "copy";
  member.kill();
  std::filesystem::copy(directory_.path() / "member1", copy, std::filesystem::copy_options::recursive);
  member.restart();
  for (int i = 0; i < 20; ++i) node.forward("vm-a", std::to_string(i));
  node.remove("vm-b");
  node.put("vm-c");
  until_published(node);
  until([&] { return claim_of("vm-b")->ended; }, "vm-b's claim ends");
  // An older etcd, in which vm-b lives.
  member.kill();
  std::filesystem::remove_all(directory_.path() / "member1");
  std::filesystem::rename(copy, directory_.path() / "member1");
  member.restart();
  node.forward("vm-c", "new");
  until_published(node);
  until([&] { return !claim_of("vm-b"); }, "vm-b's claim goes");
  // An empty one.
  member.kill();
  std::filesystem::remove_all(directory_.path() / "member1");
  member.restart();
  until_published(node);
  EXPECT_EQ(claim_of("vm-c")->node, "n1");
  EXPECT_TRUE(node.lost.empty());
}

TEST_F(FleetTest, AnotherClusterIsAFaultUntilThePublisherIsMadeAgain) {
  EtcdMember& one = start_one();
  EtcdMember& two = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  until_published(node);
  one.kill();
  until(
      [&] {
        return node.faults.contains(FleetFault::kEtcd) &&
               node.faults[FleetFault::kEtcd].find("SIGHUP") != std::string::npos;
      },
      "the fault is reported");
  EXPECT_EQ(two.control({"get", "--prefix", "/portway/"}), "");
  node.leave();
  etcd_.reset();
  PublisherOptions options = publisher_options();
  options.etcd.endpoints = {two.url()};
  join(node, options);
  until(
      [&] {
        return two.control({"get", "--prefix", "/portway/state/"}) != "";
      },
      "published to the other one");
}

// --- Two nodes.

TEST_F(FleetTest, TheSecondNodeOfAnIdWaitsUntilTheFirstHasGone) {
  lease_ttl_ = seconds(5);
  start_one();
  FakeNode& first = join_new("n1");
  first.put("vm-a");
  until_published(first);
  FakeNode& second = add_node("n1");
  PublisherOptions options = publisher_options();
  options.identity = "another machine";
  second.put("vm-b");
  join(second, options);
  until([&] { return second.faults.contains(FleetFault::kNodeId); }, "the fault is reported");
  EXPECT_THAT(second.faults[FleetFault::kNodeId], HasSubstr("fleet.node_id"));
  first.put("vm-c");
  until_published(first);
  EXPECT_FALSE(second.publisher().stats().registered);
  first.leave();
  until_published(second);
  until([&] { return second.faults.empty(); }, "the fault is over");
  // The first one finds out that its id is taken.
  join(first);
  until([&] { return first.faults.contains(FleetFault::kNodeId); }, "the fault is reported");
  // Its restart, with the same identity, is not another node.
  second.leave();
  join(second, options);
  until([&] { return second.publisher().stats().registered; }, "registered at once");
}

TEST_F(FleetTest, AnInstanceThatIsRegisteredElsewhereEndsOnTheFirstNode) {
  start_one();
  FakeNode& first = join_new("n1");
  FakeNode& second = join_new("n2");
  first.put("vm-a");
  first.forward("vm-a", "one");
  first.put("vm-b");
  until_published(first);
  second.put("vm-a");
  second.forward("vm-a", "two");
  until_published(second);
  until([&] { return first.lost == Lost{{"vm-a", FleetNode::Loss::kMoved}}; }, "the first one is told");
  EXPECT_TRUE(stored("state/n1/instances/vm-a").empty());
  EXPECT_TRUE(stored("state/n1/forwards/vm-a/").empty());
  EXPECT_EQ(claim_of("vm-a")->node, "n2");
  // And back again: a newer session.
  first.put("vm-a");
  until_published(first);
  until([&] { return second.lost == Lost{{"vm-a", FleetNode::Loss::kMoved}}; }, "the second one is told");
  EXPECT_EQ(claim_of("vm-a")->node, "n1");
  EXPECT_EQ(first.lost.size(), 1U);
  // The one that has stopped may delete it: that is not the other one's deletion.
  second.remove("vm-a");
  second.put("vm-z");
  until_published(second);
  EXPECT_EQ(claim_of("vm-a")->node, "n1");
  EXPECT_FALSE(claim_of("vm-a")->ended);
}

TEST_F(FleetTest, ANodeThatWasAwayDoesNotBringBackWhatHasMovedOrWasDeleted) {
  start_one();
  FakeNode& first = join_new("n1");
  FakeNode& second = join_new("n2");
  for (const char* id : {"vm-a", "vm-b", "vm-c", "vm-d"}) first.put(id);
  until_published(first);
  first.leave();
  second.put("vm-a");
  second.put("vm-b");
  second.put("vm-c");
  until_published(second);
  second.remove("vm-b");
  second.stop("vm-c");
  until([&] { return claim_of("vm-b")->ended; }, "vm-b's claim ends");
  first.put("vm-c");  // split off, it begins a newer session
  first.remove("vm-d");
  join(first);
  until([&] { return first.lost.size() == 2; }, "the first one is told");
  EXPECT_EQ(first.lost, (Lost{{"vm-a", FleetNode::Loss::kMoved}, {"vm-b", FleetNode::Loss::kDeleted}}));
  until([&] { return claim_of("vm-c")->node == "n1" && !claim_of("vm-d"); }, "the newer session has vm-c");
  EXPECT_EQ(claim_of("vm-a")->node, "n2");
  EXPECT_TRUE(claim_of("vm-b")->ended);
  EXPECT_TRUE(stored("state/n1/instances/vm-a").empty());
  EXPECT_TRUE(stored("state/n1/instances/vm-b").empty());
  EXPECT_TRUE(stored("state/n2/instances/vm-c").empty());
  // Deleted is not for ever: it may be registered again.
  first.put("vm-b");
  until([&] { return claim_of("vm-b")->node == "n1" && !claim_of("vm-b")->ended; }, "vm-b lives again");
}

TEST_F(FleetTest, WhichSessionIsNewerIsDecidedByEtcdsClock) {
  start_one();
  FakeNode& first = join_new("n1");
  // A date shows no more than seconds.
  first.put("vm-a", session_at(now() - seconds(10)));
  until_published(first);
  FakeNode& second = add_node("n2");
  second.clock_ahead = -minutes(10);
  second.put("vm-a", session_at(second.time()));
  second.put("vm-b", session_at(second.time()));
  join(second);
  until_published(second);
  EXPECT_THAT(second.faults[FleetFault::kClock], HasSubstr("600 s behind"));
  EXPECT_EQ(claim_of("vm-a")->node, "n2");
  // A clock in the future does not keep others away.
  FakeNode& third = add_node("n3");
  third.clock_ahead = minutes(10);
  third.put("vm-c", session_at(third.time() - seconds(10)));
  join(third);
  until_published(third);
  first.put("vm-c");
  until([&] { return claim_of("vm-c")->node == "n1"; }, "the newer session has vm-c");
  until([&] { return third.lost.size() == 1; }, "the third one is told");
  third.clock_ahead = minutes(0);
  until([&] { return third.faults.empty(); }, "the clock was set");
}

TEST_F(FleetTest, ANodeMayGetAnotherIdButNotATwin) {
  lease_ttl_ = seconds(5);
  start_one();
  FakeNode& old_name = join_new("n1");
  old_name.put("vm-a");
  old_name.forward("vm-a", "one");
  old_name.put("vm-b");
  until_published(old_name);
  FakeNode& copy = add_node("n2");
  copy.put("vm-a", old_name.machines().at("vm-a").session);
  copy.put("vm-c");
  join(copy);
  until([&] { return copy.faults.contains(FleetFault::kTwin); }, "the fault is reported");
  EXPECT_THAT(copy.faults[FleetFault::kTwin], HasSubstr("vm-a"));
  until([&] { return stored("state/n2/instances/").size() == 1; }, "the rest is published");
  EXPECT_EQ(claim_of("vm-a")->node, "n1");
  EXPECT_TRUE(copy.lost.empty());
  // There is only one of them: it was given another id.
  old_name.leave();
  until_published(copy);
  EXPECT_EQ(claim_of("vm-a")->node, "n2");
  until([&] { return copy.faults.empty(); }, "the fault is over");
  EXPECT_TRUE(stored("state/n1/instances/vm-a").empty());
  EXPECT_TRUE(stored("state/n1/forwards/vm-a/").empty());
}

TEST_F(FleetTest, WhoHadAnIdByMistakeTakesNothingFromItsOwner) {
  lease_ttl_ = seconds(5);
  start_one();
  FakeNode& owner = join_new("n1");
  owner.put("vm-a");
  owner.forward("vm-a", "one");
  until_published(owner);
  // It is cut off for longer than its lease, and another machine has its id.
  owner.leave();
  FakeNode& other = add_node("n1");
  PublisherOptions options = publisher_options();
  options.identity = "another machine";
  other.put("vm-b");
  join(other, options);
  until_published(other);
  other.leave();
  join(owner);
  until_published(owner);
  EXPECT_TRUE(owner.lost.empty());
  EXPECT_EQ(claim_of("vm-a")->node, "n1");
}

TEST_F(FleetTest, ASessionOfTheFutureDoesNotComeBackOnceItHasMoved) {
  start_one();
  FakeNode& first = add_node("n1");
  first.clock_ahead = minutes(60);
  first.put("vm-a", session_at(first.time() - seconds(10)));
  join(first);
  until_published(first);
  first.clock_ahead = minutes(0);  // set by NTP
  FakeNode& second = join_new("n2");
  second.put("vm-a");
  until_published(second);
  until([&] { return first.lost.size() == 1; }, "the first one is told");
  first.publisher().on_anything();
  first.put("vm-b");
  until_published(first);
  EXPECT_EQ(claim_of("vm-a")->node, "n2");
  // Nor after a restart: it may not even know that it has moved.
  const Uuid session = first.machines().at("vm-a").session;
  first.leave();
  first.put("vm-a", session);
  join(first);
  until([&] { return first.lost.size() == 2; }, "the first one is told again");
  EXPECT_EQ(claim_of("vm-a")->node, "n2");
  EXPECT_TRUE(second.lost.empty());
}

TEST_F(FleetTest, WhatHasMovedAwayIsNotClaimedAgainWhenNobodyHasIt) {
  EtcdMember& member = start_one();
  FakeNode& first = join_new("n1");
  FakeNode& second = join_new("n2");
  first.put("vm-a");
  until_published(first);
  second.put("vm-a");
  until([&] { return first.lost.size() == 1; }, "the first one is told");
  second.remove("vm-a");
  until([&] { return claim_of("vm-a")->ended; }, "its claim ends");
  member.control({"del", "/portway/claims/vm-a"});  // a day has passed
  first.leave();
  join(first);
  first.put("vm-b");
  until_published(first);
  EXPECT_FALSE(claim_of("vm-a"));
  EXPECT_TRUE(stored("state/n1/instances/vm-a").empty());
}

TEST_F(FleetTest, ARestoredEtcdThatHasComeFurtherIsNoticed) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  until_published(node);
  const auto copy = directory_.path() / "copy";
  member.kill();
  std::filesystem::copy(directory_.path() / "member1", copy, std::filesystem::copy_options::recursive);
  member.restart();
  node.forward("vm-a", "lost with the disk");
  until_published(node);
  member.kill();
  std::filesystem::remove_all(directory_.path() / "member1");
  std::filesystem::rename(copy, directory_.path() / "member1");
  member.restart();
  for (int i = 0; i < 30; ++i) member.control({"put", "other", "x"});  // before the node is back
  until_published(node);
}

TEST_F(FleetTest, ATwinOfManyForwardsIsTriedNoMoreOftenThanOneOfFew) {
  lease_ttl_ = seconds(5);
  start_one();
  FakeNode& one = join_new("n1");
  one.put("vm-a");
  until_published(one);
  FakeNode& copy = add_node("n2");
  copy.put("vm-a", one.machines().at("vm-a").session);
  for (int i = 0; i < 250; ++i) copy.forward("vm-a", std::to_string(i));
  join(copy);
  until([&] { return copy.faults.contains(FleetFault::kTwin) && copy.publisher().stats().pending == 0; },
        "it waits");
  const std::uint64_t before = copy.publisher().stats().writes;
  const auto later = std::chrono::steady_clock::now() + seconds(4);
  until([&] { return std::chrono::steady_clock::now() > later; }, "time passes");
  EXPECT_LE(copy.publisher().stats().writes - before, 10U);  // with each keep-alive
  one.leave();
  until_published(copy);
}

TEST_F(FleetTest, HostileValuesEndNothing) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  until_published(node);
  const Claim future{.node = "n9", .session_id = make_uuid(), .began = now() + std::chrono::hours(24 * 365)};
  for (const std::string& value : {to_json(future), std::string(1'000'000, 'x')}) {
    put("/portway/claims/vm-a", value);
    node.change("vm-a", std::to_string(value.size()));
    until([&] { return claim_of("vm-a") && claim_of("vm-a")->node == "n1"; }, "the claim is its own again");
    until_published(node);
  }
  // More than an answer may have.
  for (int i = 0; i < 8; ++i) {
    put("/portway/state/n1/instances/vm-" + std::to_string(i), std::string(1'400'000, 'x'));
    put("/portway/claims/vm-x" + std::to_string(i), std::string(1'400'000, 'x'));
  }
  node.leave();
  for (int i = 0; i < 8; ++i) node.put("vm-x" + std::to_string(i));
  join(node);
  until([&] { return node.publisher().stats().listings > 0 && node.publisher().stats().pending == 0; },
        "all is well");
  EXPECT_EQ(stored("state/n1/"), wanted(node));
  EXPECT_TRUE(node.lost.empty());
  until([&] { return node.faults.empty(); }, "no fault stays");
  member.control({"del", "--prefix", "/portway/claims/"});
}

TEST_F(FleetTest, WhatNodesDoAtRandomEndsAsEtcdSays) {
  EtcdMember& member = start_one();
  for (const char* id : {"n1", "n2", "n3"}) join_new(id);
  const unsigned seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const auto below = [&](unsigned n) { return static_cast<unsigned>(random() % n); };
  for (int step = 0; step < 300; ++step) {
    FakeNode& node = *nodes_[below(3)];
    const std::string id = "vm-" + std::to_string(below(6));
    const bool has = node.machines().contains(id);
    const bool runs = has && node.machines().at(id).running;
    switch (below(8)) {
      case 0:
        node.put(id);
        break;
      case 1:
        if (has) node.remove(id);
        break;
      case 2:
        if (runs) node.stop(id);
        break;
      case 3:
      case 4:
        if (runs) node.forward(id, std::to_string(step));
        break;
      case 5:
        if (runs && !node.machines().at(id).forwards.empty()) {
          node.remove_forward(id, node.machines().at(id).forwards.begin()->first);
        }
        break;
      case 6:
        if (below(10) == 0) {
          node.leave();
          join(node);
        } else if (below(40) == 0) {
          member.kill();
          member.restart();
        }
        break;
      default:
        context_.restart();
        for (unsigned n = below(20); n > 0; --n) context_.run_one_for(milliseconds(5));
    }
  }
  // Each instance runs on one node at most, which is the one with the claim, and all of that node is in etcd.
  until(
      [&] {
        for (const auto& node : nodes_) {
          if (node->publisher().stats().pending != 0) return false;
        }
        std::map<std::string, std::string> expected;
        for (int i = 0; i < 6; ++i) {
          const std::string id = "vm-" + std::to_string(i);
          const auto claim = claim_of(id);
          for (const auto& node : nodes_) {
            if (!node->machines().contains(id)) continue;
            const bool is_holder = claim && !claim->ended && claim->node == node->id() &&
                                   claim->session_id == node->machines().at(id).session;
            if (is_holder) {
              for (const auto& [key, value] : wanted(*node)) {
                if (key.find("/" + id) != std::string::npos) expected[key] = value;
              }
            } else if (node->machines().at(id).running) {
              return false;
            }
          }
        }
        return stored("state/") == expected;
      },
      "etcd and the nodes agree");
}

}  // namespace
}  // namespace portway::test
