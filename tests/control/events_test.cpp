// The stream of events, as its reader gets it.
#include "control/events.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace portway {
namespace {

const Principal kAdmin{.key_id = {}, .role = Role::kAdmin, .owner = "admin"};
const Principal kAlice{.key_id = {}, .role = Role::kTenant, .owner = "alice"};

struct Event {
  std::string id;
  std::string type;
};

/// The events that a stream has now.
std::vector<Event> events(BodyStream& stream) {
  std::vector<Event> found;
  Event next;
  const std::string text = stream.read().value();
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("id: ")) next.id = line.substr(4);
    if (line.starts_with("event: ")) next.type = line.substr(7);
    if (line.empty() && !next.type.empty()) found.push_back(std::exchange(next, {}));
  }
  return found;
}

std::string types(BodyStream& stream) {
  std::string all;
  for (const Event& event : events(stream)) all += (all.empty() ? "" : " ") + event.type;
  return all;
}

TEST(EventHub, TellsWhatHappensFromNowOnAndWakesItsReaders) {
  EventHub hub;
  hub.publish("before", "alice", {});
  const auto stream = hub.subscribe(kAdmin, "");
  int woken = 0;
  stream->on_ready([&woken] { ++woken; });
  EXPECT_EQ(types(*stream), "");
  hub.publish("one", "alice", {{"a", 1}});
  hub.publish("two", "bob", {});
  EXPECT_EQ(woken, 2);
  EXPECT_EQ(types(*stream), "one two");
  EXPECT_EQ(stream->read(), "");
  EXPECT_EQ(stream->heartbeat(), ":\n\n");  // a comment that keeps the connection
}

TEST(EventHub, ATenantSeesItsOwnOnly) {
  EventHub hub;
  const auto stream = hub.subscribe(kAlice, "");
  hub.publish("one", "alice", {});
  hub.publish("two", "bob", {});
  hub.publish("three", "alice", {});
  EXPECT_EQ(types(*stream), "one three");
  hub.publish("four", "bob", {});
  EXPECT_EQ(stream->read(), "");  // not even that there was one
}

TEST(EventHub, AReaderGoesOnAfterTheLastEventItSaw) {
  EventHub hub;
  auto stream = hub.subscribe(kAdmin, "");
  hub.publish("one", "alice", {});
  hub.publish("two", "alice", {});
  const std::string last = events(*stream).front().id;
  stream.reset();
  hub.publish("three", "alice", {});
  EXPECT_EQ(types(*hub.subscribe(kAdmin, last)), "two three");
}

TEST(EventHub, AReaderThatWasAwayTooLongIsToldSo) {
  EventHub hub;
  const auto stream = hub.subscribe(kAdmin, "");
  hub.publish("one", "alice", {});
  const std::string last = events(*stream).front().id;
  for (std::size_t i = 0; i <= EventHub::kKept; ++i) hub.publish("more", "alice", {});
  const auto late = hub.subscribe(kAdmin, last);
  const auto first = events(*late);
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first.front().type, "reset");
  // It goes on from there.
  hub.publish("next", "alice", {});
  EXPECT_EQ(types(*hub.subscribe(kAdmin, first.front().id)), "next");
  // And so is one that was here, and slow.
  const std::string all = stream->read().value();
  EXPECT_NE(all.find("event: reset"), std::string::npos);
}

TEST(EventHub, AnIdOfAnotherRunOrNoneAtAllIsAReset) {
  EventHub before;
  EventHub hub;
  const auto stream = before.subscribe(kAdmin, "");
  before.publish("one", "alice", {});
  const std::string last = events(*stream).front().id;
  for (const std::string& id : {last, std::string("17"), last + "x", std::string("-")}) {
    EXPECT_EQ(types(*hub.subscribe(kAdmin, id)), "reset") << id;
  }
}

TEST(EventHub, AStreamThatIsGoneIsWokenNoMore) {
  EventHub hub;
  auto stream = hub.subscribe(kAdmin, "");
  int woken = 0;
  stream->on_ready([&woken] { ++woken; });
  stream.reset();
  hub.publish("one", "alice", {});
  EXPECT_EQ(woken, 0);
}

}  // namespace
}  // namespace portway
