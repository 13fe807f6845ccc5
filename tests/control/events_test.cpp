// The events as their subscribers get them. As server-sent events: tests/api/event_json_test.cpp.
#include "control/events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
