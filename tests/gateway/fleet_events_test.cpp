#include "gateway/fleet_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/run.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

class FleetEventsTest : public testing::Test {
 protected:
  FleetEventsTest() {
    events_.follow(view_);
    events_.on_relisted(1);
  }

  /// In a revision of its own, unless `same_revision`.
  void put(const std::string& key, const std::string& value, bool same_revision = false) {
    change({.key = key, .value = value, .mod_revision = same_revision ? revision_ : ++revision_});
  }
  void erase(const std::string& key) {
    const EtcdEvent event{.type = EtcdEvent::Type::kDelete, .kv = {.key = key, .mod_revision = ++revision_}};
    const std::string before = view_.value(key);
    view_.erase(key);
    events_.on_change(event, before);
  }
  void publish(const std::string& node, const std::string& instance, const std::string& owner = "alice",
               const std::string& session = "s1", bool same_revision = false,
               const std::string& state = "running") {
    put(keys_.instance(node, instance),
        R"({"id":")" + instance + R"(","owner":")" + owner + R"(","session_id":")" + session +
            R"(","state":")" + state + R"("})",
        same_revision);
  }
  std::string claim(const std::string& node) {
    return to_json(Claim{.node = node, .session_id = make_uuid(), .began = now()});
  }

  static Principal admin() { return {.role = Role::kAdmin, .owner = "ops"}; }
  static Principal tenant(const std::string& owner) { return {.owner = owner}; }

  /// What a reader has now: "ID TYPE".
  std::vector<std::string> read(SseSource& source) {
    std::vector<std::string> out;
    while (const auto item = source.next()) out.push_back(short_form(item->text));
    return out;
  }
  std::vector<std::string> read_after(const std::string& id, const Principal& caller = admin()) {
    return read(*events_.subscribe(caller, id));
  }

  boost::asio::io_context context_{1};
  const FleetKeys keys_{"/portway/"};
  FleetView view_{keys_};
  FleetEvents events_{context_, "/portway/"};
  std::int64_t revision_ = 1;

 private:
  void change(EtcdKeyValue kv) {
    const std::string before = view_.value(kv.key);
    view_.put(kv.key, kv.value);
    events_.on_change({.kv = std::move(kv)}, before);
  }
  static std::string short_form(const std::string& text) {
    const auto line = [&](const std::string& name) {
      const auto begin = text.find(name) + name.size();
      return text.substr(begin, text.find('\n', begin) - begin);
    };
    return line("id: ") + " " + line("event: ");
  }
};

TEST_F(FleetEventsTest, TellsWhatHappensInTheOrderOfEtcd) {
  auto reader = events_.subscribe(admin(), "");
  const std::string forward = keys_.forward("n1", "vm-a", make_uuid());
  put(keys_.node("n1"), to_json(RegisteredNode{.record = {.address = "https://n1"}, .identity = "x"}));
  publish("n1", "vm-a");
  put(forward, R"({"guest_port":80,"state":"active"})");
  put(forward, R"({"guest_port":80,"state":"active","label":"a"})");
  put(forward, R"({"guest_port":80,"state":"unavailable","label":"a"})");
  erase(forward);
  publish("n1", "vm-a", "alice", "s2");
  put(keys_.node("n1"),
      to_json(RegisteredNode{.record = {.address = "https://n1", .draining = true}, .identity = "x"}));
  erase(keys_.instance("n1", "vm-a"));
  erase(keys_.node("n1"));
  EXPECT_THAT(read(*reader),
              ElementsAre("2.1 node.up", "3.1 instance.started", "4.1 forward.created", "5.1 forward.updated",
                          "6.1 forward.state_changed", "7.1 forward.deleted", "8.1 instance.started",
                          "9.1 node.draining", "10.1 instance.deleted", "11.1 node.lost"));
  EXPECT_EQ(events_.last_id(), "11.1");
  EXPECT_EQ(reader->position(), "11.1");
}

TEST_F(FleetEventsTest, NumbersTheChangesOfARevision) {
  publish("n1", "vm-a");
  publish("n1", "vm-b", "alice", "s1", true);
  put("/portway/unknown", "x", true);
  publish("n1", "vm-c", "alice", "s1", true);
  EXPECT_THAT(read_after("2.1"), ElementsAre("2.2 instance.started", "2.4 instance.started"));
  EXPECT_THAT(read_after("2.3"), ElementsAre("2.4 instance.started"));
  EXPECT_THAT(read_after("2.0"), testing::SizeIs(3));
}

TEST_F(FleetEventsTest, TenantsSeeTheirOwn) {
  publish("n1", "vm-a", "alice");
  publish("n1", "vm-b", "bob");
  put(keys_.node("n1"), to_json(RegisteredNode{.record = {.address = "https://n1"}, .identity = "x"}));
  EXPECT_THAT(read_after("2.0", tenant("alice")), ElementsAre("2.1 instance.started"));
  EXPECT_THAT(read_after("2.0", tenant("bob")), ElementsAre("3.1 instance.started"));
  Principal of_one = tenant("alice");
  of_one.instance_id = "vm-z";
  EXPECT_THAT(read_after("2.0", of_one), IsEmpty());
  EXPECT_THAT(read_after("2.0"), testing::SizeIs(3));
}

TEST_F(FleetEventsTest, WhatWasAnotherOwnersIsNotTold) {
  const std::string forward = keys_.forward("n1", "vm-a", make_uuid());
  publish("n1", "vm-a", "alice", "s1");
  put(forward, R"({"guest_port":80,"label":"of alice","session_id":"s1"})");
  auto alice = events_.subscribe(tenant("alice"), "");
  auto bob = events_.subscribe(tenant("bob"), "");
  publish("n1", "vm-a", "bob", "s2");
  erase(forward);
  const std::string own = keys_.forward("n1", "vm-a", make_uuid());
  put(own, R"({"guest_port":81})");
  erase(own);
  EXPECT_THAT(read(*alice), ElementsAre("4.1 instance.deleted"));
  EXPECT_THAT(read(*bob), ElementsAre("4.2 instance.started", "6.1 forward.created", "7.1 forward.deleted"));
}

TEST_F(FleetEventsTest, WhatIsWrittenTwiceIsToldOnce) {
  const std::string forward = keys_.forward("n1", "vm-a", make_uuid());
  auto reader = events_.subscribe(tenant("alice"), "");
  for (int i = 0; i < 2; ++i) publish("n1", "vm-a");
  for (int i = 0; i < 2; ++i) put(forward, R"({"guest_port":80})");
  EXPECT_THAT(read(*reader), ElementsAre("2.1 instance.started", "4.1 forward.created"));
  EXPECT_EQ(events_.last_id(), "5.1");
}

TEST_F(FleetEventsTest, ForwardsThatEndWithTheirSessionHaveNoEvents) {
  const std::string forward = keys_.forward("n1", "vm-a", make_uuid());
  publish("n1", "vm-a");
  put(forward, R"({"guest_port":80,"session_id":"s1"})");
  auto reader = events_.subscribe(tenant("alice"), "");
  publish("n1", "vm-a", "alice", "s1", false, "stopped");
  erase(forward);
  EXPECT_THAT(read(*reader), ElementsAre("4.1 instance.stopped"));
}

TEST_F(FleetEventsTest, ANewOwnerOfTheSameSessionIsToldOfItsForwards) {
  const ForwardId id = make_uuid();
  publish("n1", "vm-a", "alice", "s1");
  put(keys_.forward("n1", "vm-a", id), R"({"guest_port":80,"session_id":"s1"})");
  put(keys_.forward("n1", "vm-a", make_uuid()), R"({"guest_port":81,"session_id":"s1"})");
  auto alice = events_.subscribe(tenant("alice"), "");
  auto bob = events_.subscribe(tenant("bob"), "");
  publish("n1", "vm-a", "bob", "s1");
  const auto lost = alice->next();
  ASSERT_TRUE(lost);
  EXPECT_THAT(lost->text, AllOf(HasSubstr("instance.updated"), HasSubstr(R"("lost":true)")));
  EXPECT_THAT(read(*alice), IsEmpty());
  EXPECT_THAT(read(*bob), ElementsAre("5.2 instance.updated", "5.3 forward.updated", "5.4 forward.updated"));
  EXPECT_THAT(read_after("5.2", tenant("bob")), testing::SizeIs(2));  // each has an id of its own
  EXPECT_EQ(events_.last_id(), "5.4");
  publish("n1", "vm-b", "bob", "s9", true);
  EXPECT_THAT(read_after("5.4"), ElementsAre("5.5 instance.started"));
}

TEST_F(FleetEventsTest, AnIdOfBeforeARestoreIsNeverContinued) {
  publish("n1", "vm-a");
  revision_ = 100;
  publish("n1", "vm-b");
  const std::string before = events_.last_id();
  revision_ = 50;
  events_.on_relisted(revision_);
  revision_ = 150;
  publish("n1", "vm-c");
  EXPECT_THAT(read_after(before), ElementsAre(HasSubstr(" reset")));
  EXPECT_THAT(read_after(events_.last_id()), IsEmpty());
}

TEST_F(FleetEventsTest, WakesAReaderOnlyForWhatItMaySee) {
  auto reader = events_.subscribe(tenant("alice"), "");
  int woken = 0;
  reader->on_event([&] { ++woken; });
  EXPECT_THAT(read(*reader), IsEmpty());
  publish("n1", "vm-b", "bob");
  EXPECT_EQ(woken, 0);
  publish("n1", "vm-a", "alice");
  publish("n1", "vm-a", "alice", "s2");
  EXPECT_EQ(woken, 1);
  EXPECT_THAT(read(*reader), testing::SizeIs(2));
  events_.on_relisted(50);
  EXPECT_EQ(woken, 2);
  EXPECT_THAT(read(*reader), ElementsAre(AllOf(StartsWith("50."), HasSubstr(" reset"))));
  reader.reset();
  publish("n1", "vm-c", "alice");
  EXPECT_EQ(woken, 2);
}

TEST_F(FleetEventsTest, WhatIsNotKnownIsAGap) {
  publish("n1", "vm-a");
  for (const char* id :
       {"1.1", "0.0", "3.1", "x", "2", "2.", "2.1x", "-2.1", "2.-1", "99999999999999999999.1"})
    EXPECT_THAT(read_after(id), ElementsAre("2.1 reset")) << id;
  EXPECT_THAT(read_after("2.1"), IsEmpty());
  EXPECT_THAT(read_after("2.4294967295"), IsEmpty());  // a gateway that has listed at this revision says so
  EXPECT_THAT(read_after("1.4294967295"), ElementsAre("2.1 instance.started"));
}

TEST_F(FleetEventsTest, KeepsTheLastOnes) {
  auto slow = events_.subscribe(admin(), "");
  for (std::size_t i = 0; i <= FleetEvents::kKept; ++i)
    publish("n1", "vm-a", "alice", "s" + std::to_string(i));
  EXPECT_THAT(read(*slow), ElementsAre(HasSubstr(" reset")));  // the first one went
  EXPECT_EQ(read_after("2.1").size(), FleetEvents::kKept);
  EXPECT_THAT(read_after("2.0"), ElementsAre(HasSubstr(" reset")));
  // Ids of a history that was restored away stay unknown, however much follows.
  events_.on_relisted(revision_);
  const auto before = std::to_string(revision_) + ".1";
  revision_ = 50;
  events_.on_relisted(revision_);
  for (std::size_t i = 0; i < FleetEvents::kKept + 9; ++i)
    publish("n1", "vm-a", "alice", "s" + std::to_string(i));
  EXPECT_LT(revision_, 1000 + static_cast<std::int64_t>(FleetEvents::kKept));
  EXPECT_THAT(read_after(before), ElementsAre(HasSubstr(" reset")));
  // Few large ones take the place of many.
  const std::string much(FleetView::kValueMax - 1000, 'x');
  constexpr int kMany = FleetEvents::kBytesKept / FleetView::kValueMax;
  for (int i = 0; i < kMany; ++i) publish("n1", "vm-a", "alice", much + std::to_string(i));
  EXPECT_THAT(read_after(std::to_string(revision_ - kMany) + ".1"), ElementsAre(HasSubstr(" reset")));
  EXPECT_THAT(read_after(std::to_string(revision_ - 1) + ".1"), testing::SizeIs(1));
}

TEST_F(FleetEventsTest, AnInstanceThatMovesStartsOnItsNewNode) {
  put(keys_.claim("vm-a"), claim("n1"));
  publish("n1", "vm-a");
  publish("n2", "vm-a", "alice", "s2");
  auto reader = events_.subscribe(tenant("alice"), "");
  put(keys_.claim("vm-a"), claim("n2"));
  erase(keys_.instance("n1", "vm-a"));
  EXPECT_THAT(read(*reader), ElementsAre("5.1 instance.started"));
}

TEST_F(FleetEventsTest, WaitsForAnEventOfAnotherGateway) {
  bool done = false;
  const auto wait = [&](std::string id, std::chrono::milliseconds most) -> boost::asio::awaitable<void> {
    co_await events_.wait_until_at(std::move(id), std::chrono::steady_clock::now() + most);
    done = true;
  };
  publish("n1", "vm-a");
  for (const char* id : {"2.1", "1.1", "nonsense"}) {
    done = false;
    boost::asio::co_spawn(context_, wait(id, std::chrono::hours(1)), boost::asio::detached);
    context_.restart();
    context_.poll();
    EXPECT_TRUE(done) << id;
  }
  done = false;
  boost::asio::co_spawn(context_, wait("4.1", std::chrono::hours(1)), boost::asio::detached);
  for (const bool is_there : {false, false, true}) {
    context_.restart();
    context_.poll();
    EXPECT_FALSE(done);
    publish("n1", "vm-a", "alice", is_there ? "s3" : "s2");
    context_.restart();
    context_.poll();
    if (done) break;
  }
  EXPECT_TRUE(done);
  EXPECT_EQ(events_.last_id(), "4.1");
  done = false;
  boost::asio::co_spawn(context_, wait("9.1", std::chrono::milliseconds(1)), boost::asio::detached);
  context_.restart();
  context_.run();
  EXPECT_TRUE(done);
}

}  // namespace
}  // namespace portway::test
