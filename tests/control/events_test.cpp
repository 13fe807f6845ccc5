// The events as their subscribers get them. As server-sent events: tests/api/event_json_test.cpp.
#include "control/events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace portway {
namespace {

const Principal kAdmin{.key_id = {}, .role = Role::kAdmin, .owner = "admin"};
const Principal kAlice{.key_id = {}, .role = Role::kTenant, .owner = "alice"};

/// Publishes an event about the instance `id`.
void publish(EventHub& hub, const std::string& id, const std::string& owner) {
  hub.publish(
      {.time = {}, .instance_id = id, .session_id = {}, .owner = owner, .kind = event::InstanceStarted()});
}

/// What a subscription has now: the instances of its events, "gap" for a gap, and the ids.
struct Items {
  std::string about;
  std::vector<std::string> ids;
};

Items items(EventSubscription& subscription) {
  Items found;
  while (const auto item = subscription.next()) {
    if (!found.about.empty()) found.about += ' ';
    found.about += item->event != nullptr ? item->event->instance_id : "gap";
    found.ids.push_back(item->id);
  }
  return found;
}

std::string about(EventSubscription& subscription) {
  return items(subscription).about;
}

TEST(EventHub, DeliversWhatHappensFromNowOnAndWakesItsSubscribers) {
  EventHub hub;
  publish(hub, "before", "alice");
  const auto stream = hub.subscribe(kAdmin, "");
  int woken = 0;
  stream->on_event([&woken] { ++woken; });
  EXPECT_EQ(about(*stream), "");
  publish(hub, "one", "alice");
  publish(hub, "two", "bob");
  EXPECT_EQ(woken, 2);
  EXPECT_EQ(about(*stream), "one two");
  EXPECT_FALSE(stream->next());
}

TEST(EventHub, ATenantSeesOnlyItsOwn) {
  EventHub hub;
  const auto stream = hub.subscribe(kAlice, "");
  publish(hub, "one", "alice");
  publish(hub, "two", "bob");
  publish(hub, "three", "alice");
  EXPECT_EQ(about(*stream), "one three");
  publish(hub, "four", "bob");
  EXPECT_FALSE(stream->next()) << "not even that there was one";
}

TEST(EventHub, ASubscriberContinuesAfterTheLastEventItSaw) {
  EventHub hub;
  auto stream = hub.subscribe(kAdmin, "");
  publish(hub, "one", "alice");
  publish(hub, "two", "alice");
  const std::string last = items(*stream).ids.front();
  stream.reset();
  publish(hub, "three", "alice");
  EXPECT_EQ(about(*hub.subscribe(kAdmin, last)), "two three");
}

TEST(EventHub, ASubscriberThatWasAwayTooLongGetsAGap) {
  EventHub hub;
  const auto stream = hub.subscribe(kAdmin, "");
  publish(hub, "one", "alice");
  const std::string last = items(*stream).ids.front();
  for (std::size_t i = 0; i <= EventHub::kKept; ++i) publish(hub, "more", "alice");
  const auto late = hub.subscribe(kAdmin, last);
  const Items first = items(*late);
  ASSERT_EQ(first.ids.size(), 1U);
  EXPECT_EQ(first.about, "gap");
  // It continues from there.
  publish(hub, "next", "alice");
  EXPECT_EQ(about(*hub.subscribe(kAdmin, first.ids.front())), "next");
  // So does one that was here, and slow.
  EXPECT_THAT(about(*stream), testing::HasSubstr("gap"));
}

TEST(EventHub, AnIdOfAnotherRunOrNoneAtAllIsAGap) {
  EventHub before;
  EventHub hub;
  const auto stream = before.subscribe(kAdmin, "");
  publish(before, "one", "alice");
  const std::string last = items(*stream).ids.front();
  for (const std::string& id : {last, std::string("17"), last + "x", std::string("-")}) {
    EXPECT_EQ(about(*hub.subscribe(kAdmin, id)), "gap") << id;
  }
}

EventGap gap_of(EventSubscription& subscription) {
  const auto item = subscription.next();
  EXPECT_TRUE(item && item->event == nullptr);
  return item ? item->gap : EventGap::kNotKept;
}

TEST(EventHub, AGapSaysWhy) {
  EventHub before;
  EventHub hub;
  const std::string start = hub.last_id();
  for (std::size_t i = 0; i <= EventHub::kKept; ++i) publish(hub, "vm", "alice");
  EXPECT_EQ(gap_of(*hub.subscribe(kAdmin, start)), EventGap::kNotKept);
  EXPECT_EQ(gap_of(*hub.subscribe(kAdmin, before.last_id())), EventGap::kRestarted);
  const std::string run = start.substr(0, start.find('-'));
  for (const std::string& id : {std::string("x"), run, run + "-", run + "-99999", run + "-1 ", run + "--1",
                                run + "-99999999999999999999999", std::string(5000, '1')}) {
    EXPECT_EQ(gap_of(*hub.subscribe(kAdmin, id)), EventGap::kUnknownId) << id;
  }
}

TEST(EventHub, TheIdOfNowIsWhereASubscriberWithoutAnIdBegins) {
  EventHub hub;
  const std::string start = hub.last_id();
  EXPECT_EQ(hub.subscribe(kAlice, "")->position(), start);
  publish(hub, "one", "alice");
  EXPECT_EQ(about(*hub.subscribe(kAlice, start)), "one");
  const std::string after = hub.last_id();
  publish(hub, "two", "bob");
  publish(hub, "three", "alice");
  EXPECT_EQ(about(*hub.subscribe(kAlice, after)), "three");
  EXPECT_EQ(about(*hub.subscribe(kAdmin, after)), "two three");
  EXPECT_EQ(about(*hub.subscribe(kAlice, hub.last_id())), "");
}

void refuse(EventHub& hub, const std::string& owner) {
  hub.publish({.time = {},
               .instance_id = "refused",
               .session_id = {},
               .owner = owner,
               .kind = event::ConnectionRefused{}});
}

TEST(EventHub, AFloodOfRefusedClientsPushesOutNoChangeAndIsNoGap) {
  EventHub hub;
  const std::string start = hub.last_id();
  publish(hub, "one", "alice");
  publish(hub, "two", "bob");
  for (std::size_t i = 0; i < 3 * EventHub::kRefusalsKept; ++i) refuse(hub, "alice");
  publish(hub, "three", "alice");
  const Items of_alice = items(*hub.subscribe(kAlice, start));
  EXPECT_TRUE(of_alice.about.starts_with("one refused")) << of_alice.about.substr(0, 40);
  EXPECT_TRUE(of_alice.about.ends_with("refused three"));
  EXPECT_EQ(of_alice.ids.size(), 2 + EventHub::kRefusalsKept);
  EXPECT_TRUE(about(*hub.subscribe(kAdmin, start)).starts_with("one two refused"));
}

TEST(EventHub, AFloodOfOneTenantPushesOutOnlyItsOwn) {
  EventHub hub;
  const std::string start = hub.last_id();
  publish(hub, "one", "alice");
  const auto slow = hub.subscribe(kAlice, start);
  for (std::size_t i = 0; i < 3 * EventHub::kKept; ++i) publish(hub, "flood", "bob");
  publish(hub, "two", "alice");
  EXPECT_EQ(about(*slow), "one two");
  EXPECT_EQ(about(*hub.subscribe(kAlice, start)), "one two");
  // Those who see bob's learn what they have missed, once.
  const Principal bob{.key_id = {}, .role = Role::kTenant, .owner = "bob"};
  EXPECT_EQ(about(*hub.subscribe(bob, start)), "gap");
  const auto admin = hub.subscribe(kAdmin, start);
  EXPECT_EQ(about(*admin), "gap");
  publish(hub, "three", "alice");
  EXPECT_EQ(about(*admin), "three");
}

TEST(EventHub, WhoeverHasMostGivesWay) {
  EventHub hub;
  const std::string start = hub.last_id();
  for (std::size_t i = 0; i < EventHub::kKept / 2; ++i) publish(hub, "a", "alice");
  for (std::size_t i = 0; i < EventHub::kKept; ++i) publish(hub, "b", "bob");
  EXPECT_EQ(items(*hub.subscribe(kAlice, start)).ids.size(), EventHub::kKept / 2);
  const std::string half = hub.last_id();
  for (std::size_t i = 0; i < EventHub::kKept; ++i) publish(hub, "c", "owner-" + std::to_string(i));
  EXPECT_EQ(gap_of(*hub.subscribe(kAlice, start)), EventGap::kNotKept);
  EXPECT_EQ(about(*hub.subscribe(kAlice, half)), "") << "it has seen all of its own";
}

TEST(EventHub, LargeEventsAreFewer) {
  EventHub hub;
  const std::string start = hub.last_id();
  auto large = std::make_shared<ForwardStatus>();
  for (int i = 0; i < 32; ++i) large->forward.metadata["key-" + std::to_string(i)] = std::string(256, 'x');
  for (std::size_t i = 0; i < EventHub::kKept; ++i) {
    hub.publish({.time = {},
                 .instance_id = "large",
                 .session_id = {},
                 .owner = "alice",
                 .kind = event::ForwardUpdated{},
                 .forward = large});
  }
  EXPECT_EQ(gap_of(*hub.subscribe(kAlice, start)), EventGap::kNotKept);
}

TEST(EventHub, OnlyThoseAreWokenWhoSeeTheEvent) {
  EventHub hub;
  Principal one_instance = kAlice;
  one_instance.instance_id = "one";
  const auto of_alice = hub.subscribe(kAlice, "");
  const auto of_one = hub.subscribe(one_instance, "");
  int alice_woken = 0;
  int one_woken = 0;
  of_alice->on_event([&] { ++alice_woken; });
  of_one->on_event([&] { ++one_woken; });
  publish(hub, "other", "bob");
  publish(hub, "two", "alice");
  publish(hub, "one", "alice");
  EXPECT_EQ(alice_woken, 2);
  EXPECT_EQ(one_woken, 1);
  EXPECT_EQ(about(*of_one), "one");
}

TEST(EventHub, ASubscriberThatIsGoneIsWokenNoMore) {
  EventHub hub;
  auto stream = hub.subscribe(kAdmin, "");
  int woken = 0;
  stream->on_event([&woken] { ++woken; });
  stream.reset();
  publish(hub, "one", "alice");
  EXPECT_EQ(woken, 0);
}

}  // namespace
}  // namespace portway
