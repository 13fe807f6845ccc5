#include "control/registry.h"

#include <gtest/gtest.h>

#include <vector>

namespace portway {
namespace {

Instance make_instance(const std::string& id, const std::string& owner = "acme") {
  Instance instance;
  instance.id = id;
  instance.owner = owner;
  return instance;
}

Forward make_forward(const std::string& instance_id, std::uint16_t guest_port) {
  Forward forward;
  forward.id = make_uuid();
  forward.instance_id = instance_id;
  forward.guest_port = guest_port;
  return forward;
}

std::vector<std::string> ids(const std::vector<const Instance*>& instances) {
  std::vector<std::string> out;
  for (const Instance* instance : instances) out.push_back(instance->id);
  return out;
}

std::vector<int> guest_ports(const std::vector<const Forward*>& forwards) {
  std::vector<int> out;
  for (const Forward* forward : forwards) out.push_back(forward->guest_port);
  return out;
}

Instance running_behind(const std::string& id, const std::string& tap, std::int32_t tap_index = 0) {
  Instance instance = make_instance(id);
  instance.tap = tap;
  instance.tap_index = tap_index;
  return instance;
}

using Ids = std::vector<std::string>;
using Ports = std::vector<int>;

TEST(Registry, FindsWhatWasAddedAndNothingElse) {
  Registry registry;
  registry.put_instance(make_instance("vm-1"));
  const ForwardId id = registry.add_forward(make_forward("vm-1", 3000)).id;
  ASSERT_NE(registry.find_instance("vm-1"), nullptr);
  EXPECT_EQ(registry.find_instance("vm-2"), nullptr);
  ASSERT_NE(registry.find_forward(id), nullptr);
  EXPECT_EQ(registry.find_forward(id)->guest_port, 3000);
  EXPECT_EQ(registry.find_forward(make_uuid()), nullptr);
}

TEST(Registry, ListsForwardsInOrderOfCreation) {
  Registry registry;
  registry.put_instance(make_instance("vm-1"));
  registry.put_instance(make_instance("vm-2"));
  for (const std::uint16_t port : {std::uint16_t{9}, std::uint16_t{1}, std::uint16_t{5}}) {
    registry.add_forward(make_forward("vm-1", port));
    registry.add_forward(make_forward("vm-2", static_cast<std::uint16_t>(port + 100)));
  }
  EXPECT_EQ(guest_ports(registry.forwards("vm-1")), (Ports{9, 1, 5}));
  EXPECT_EQ(guest_ports(registry.forwards("vm-2")), (Ports{109, 101, 105}));
  EXPECT_TRUE(registry.forwards("vm-3").empty());
  EXPECT_EQ(registry.forward_count("vm-1"), 3U);
  EXPECT_EQ(registry.forward_count("vm-3"), 0U);
  EXPECT_EQ(registry.forward_count(), 6U);
}

TEST(Registry, PagesContinueAfterAnIdThatMayBeGone) {
  Registry registry;
  registry.put_instance(make_instance("vm-1"));
  for (std::uint16_t port = 1; port <= 5; ++port) registry.add_forward(make_forward("vm-1", port));
  const auto page = registry.forwards("vm-1", {}, 2);
  EXPECT_EQ(guest_ports(page), (Ports{1, 2}));
  const ForwardId last = page.back()->id;
  registry.remove_forward(last);
  EXPECT_EQ(guest_ports(registry.forwards("vm-1", last, 2)), (Ports{3, 4}));
  EXPECT_EQ(guest_ports(registry.forwards("vm-1", last)), (Ports{3, 4, 5}));
}

TEST(Registry, ListsInstancesOfOneOwnerOrOfAllPageByPage) {
  Registry registry;
  for (const char* id : {"d", "a", "c", "b"})
    registry.put_instance(make_instance(id, *id == 'b' ? "globex" : "acme"));
  EXPECT_EQ(ids(registry.instances()), (Ids{"a", "b", "c", "d"}));
  EXPECT_EQ(ids(registry.instances("acme")), (Ids{"a", "c", "d"}));
  EXPECT_EQ(ids(registry.instances("globex")), (Ids{"b"}));
  EXPECT_TRUE(registry.instances("initech").empty());
  EXPECT_EQ(ids(registry.instances("acme", "a", 1)), (Ids{"c"}));
  EXPECT_EQ(ids(registry.instances(std::nullopt, "bb", 5)), (Ids{"c", "d"}));
}

TEST(Registry, ReplacingAnInstanceKeepsItsForwards) {
  Registry registry;
  registry.put_instance(make_instance("vm-1"));
  const ForwardId id = registry.add_forward(make_forward("vm-1", 3000)).id;
  Instance stopped = make_instance("vm-1");
  stopped.state = InstanceState::kStopped;
  EXPECT_EQ(registry.put_instance(stopped).state, InstanceState::kStopped);
  EXPECT_EQ(registry.instance_count(), 1U);
  EXPECT_NE(registry.find_forward(id), nullptr);
}

TEST(Registry, RemovingReturnsWhatWasThereOnce) {
  Registry registry;
  registry.put_instance(make_instance("vm-1"));
  const ForwardId id = registry.add_forward(make_forward("vm-1", 3000)).id;
  const auto removed = registry.remove_forward(id);
  ASSERT_TRUE(removed);
  EXPECT_EQ(removed->guest_port, 3000);
  EXPECT_FALSE(registry.remove_forward(id));
  EXPECT_EQ(registry.forward_count(), 0U);
}

TEST(Registry, AnInstanceTakesItsForwardsWithIt) {
  Registry registry;
  registry.put_instance(make_instance("vm-1"));
  registry.put_instance(make_instance("vm-2"));
  const ForwardId gone = registry.add_forward(make_forward("vm-1", 1)).id;
  registry.add_forward(make_forward("vm-1", 2));
  const ForwardId kept = registry.add_forward(make_forward("vm-2", 3)).id;
  const auto removed = registry.remove_instance("vm-1");
  ASSERT_EQ(removed.size(), 2U);
  EXPECT_EQ(removed[0].guest_port, 1);
  EXPECT_EQ(removed[1].guest_port, 2);
  EXPECT_EQ(registry.find_forward(gone), nullptr);
  EXPECT_NE(registry.find_forward(kept), nullptr);
  EXPECT_TRUE(registry.remove_instance("vm-1").empty());
}

TEST(Registry, ASessionEndsWithAllItsForwardsAndTheInstanceStays) {
  Registry registry;
  registry.put_instance(make_instance("vm-1"));
  registry.add_forward(make_forward("vm-1", 1));
  registry.add_forward(make_forward("vm-1", 2));
  EXPECT_EQ(registry.remove_forwards("vm-1").size(), 2U);
  EXPECT_TRUE(registry.remove_forwards("vm-1").empty());
  EXPECT_TRUE(registry.remove_forwards("vm-2").empty());
  EXPECT_NE(registry.find_instance("vm-1"), nullptr);
  EXPECT_EQ(registry.forward_count(), 0U);
}

TEST(Registry, WalksOverAllForwardsAndContinuesWhereItStopped) {
  Registry registry;
  for (const char* id : {"vm-1", "vm-2", "vm-3"}) registry.put_instance(make_instance(id));
  registry.add_forward(make_forward("vm-1", 1));
  registry.add_forward(make_forward("vm-3", 3));
  registry.add_forward(make_forward("vm-1", 2));
  ForwardPlace place;
  const auto next = [&] {
    std::uint16_t port = 0;
    registry.forwards_after(place, [&](const Forward& forward) {
      place = {forward.instance_id, forward.id};
      port = forward.guest_port;
      return false;
    });
    return port;
  };
  EXPECT_EQ(next(), 1);
  EXPECT_EQ(next(), 2);
  registry.remove_instance("vm-1");
  EXPECT_EQ(next(), 3) << "also where the place is gone";
  EXPECT_EQ(next(), 0);
}

TEST(Registry, TensOfThousandsOfForwardsAreNoTrouble) {
  Registry registry;
  std::vector<ForwardId> forwards;
  for (int i = 0; i < 100; ++i) {
    const std::string id = "vm-" + std::to_string(i);
    registry.put_instance(make_instance(id));
    for (std::uint16_t port = 1; port <= 500; ++port)
      forwards.push_back(registry.add_forward(make_forward(id, port)).id);
  }
  EXPECT_EQ(registry.forward_count(), 50'000U);
  for (const ForwardId& id : forwards) ASSERT_NE(registry.find_forward(id), nullptr);
  for (const ForwardId& id : forwards) ASSERT_TRUE(registry.remove_forward(id));
  EXPECT_EQ(registry.forward_count(), 0U);
}

TEST(Registry, KnowsTheTapsOfInstancesByWhatTheirSessionsAreArmedWith) {
  Registry registry;
  registry.put_instance(running_behind("vm-1", "tap1"));
  EXPECT_TRUE(registry.has_tap(7, "tap1"));
  EXPECT_FALSE(registry.has_tap(7, "tap2"));
  registry.put_instance(running_behind("vm-1", "tap1", 7));
  EXPECT_TRUE(registry.has_tap(7, "renamed"));
  EXPECT_FALSE(registry.has_tap(8, "tap1")) << "another device of that name";
  // A session that begins on a tap before the previous one has ended.
  registry.put_instance(running_behind("vm-2", "tap1", 7));
  Instance stopped = running_behind("vm-1", "tap1", 7);
  stopped.state = InstanceState::kStopped;
  registry.put_instance(stopped);
  EXPECT_TRUE(registry.has_tap(7, "tap1"));
  registry.put_instance(stopped);
  registry.remove_instance("vm-1");
  EXPECT_TRUE(registry.has_tap(7, "tap1"));
  registry.remove_instance("vm-2");
  EXPECT_FALSE(registry.has_tap(7, "tap1"));
  // The machine of an ended session may keep running.
  stopped.id = "vm-3";
  registry.put_instance(stopped);
  EXPECT_TRUE(registry.has_tap(7, "tap1"));
  registry.remove_instance("vm-3");
  EXPECT_FALSE(registry.has_tap(7, "tap1"));
}

}  // namespace
}  // namespace portway
