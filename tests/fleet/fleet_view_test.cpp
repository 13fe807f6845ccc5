#include "fleet/fleet_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace portway::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class FleetViewTest : public testing::Test {
 protected:
  void claim(const std::string& instance, const std::string& node, bool ended = false) {
    view_.put(keys_.claim(instance),
              to_json(Claim{.node = node, .session_id = make_uuid(), .began = now(), .ended = ended}));
  }
  void publish(const std::string& node, const std::string& instance, const std::string& owner = "alice") {
    view_.put(keys_.instance(node, instance),
              R"({"id":")" + instance + R"(","owner":")" + owner + R"(","on":")" + node + R"("})");
  }
  ForwardId forward(const std::string& node, const std::string& instance) {
    const ForwardId id = make_uuid();
    view_.put(keys_.forward(node, instance, id), R"({"id":")" + to_string(id) + R"("})");
    return id;
  }
  void live(const std::string& node) {
    view_.put(keys_.node(node),
              to_json(RegisteredNode{.record = {.address = "https://" + node}, .identity = "x"}));
  }
  std::vector<std::string> ids(std::optional<std::string_view> owner = std::nullopt,
                               std::string_view after = "", std::size_t limit = 100) const {
    std::vector<std::string> out;
    for (const FleetViewInstance* instance : view_.instances(owner, after, limit))
      out.push_back(instance->id);
    return out;
  }

  const FleetKeys keys_{"/portway/"};
  FleetView view_{keys_};
};

TEST_F(FleetViewTest, ShowsAnInstanceOfTheNodeThatHasTheClaim) {
  publish("n1", "vm-a");
  const ForwardId first = forward("n1", "vm-a");
  EXPECT_EQ(view_.find_instance("vm-a")->node, "n1");  // nobody else has it
  publish("n2", "vm-a", "bob");
  EXPECT_EQ(view_.find_instance("vm-a"), nullptr);
  claim("vm-a", "n2");
  EXPECT_EQ(view_.find_instance("vm-a")->node, "n2");
  EXPECT_EQ(view_.forward_count(), 0U);
  EXPECT_THAT(ids("bob"), ElementsAre("vm-a"));
  EXPECT_THAT(ids("alice"), IsEmpty());
  claim("vm-a", "n1");
  ASSERT_NE(view_.find_instance("vm-a"), nullptr);
  EXPECT_TRUE(view_.find_instance("vm-a")->forwards.contains(first));
  EXPECT_EQ(view_.nodes().at("n1").instances, 1U);
  EXPECT_EQ(view_.nodes().at("n2").instances, 0U);
  claim("vm-a", "n1", true);
  EXPECT_EQ(view_.find_instance("vm-a"), nullptr);
  EXPECT_EQ(view_.instance_count(), 0U);
  view_.erase(keys_.claim("vm-a"));
  view_.erase(keys_.instance("n2", "vm-a"));
  EXPECT_EQ(view_.find_instance("vm-a")->node, "n1");
  view_.erase(keys_.forward("n1", "vm-a", first));
  EXPECT_EQ(view_.forward_count(), 0U);
  view_.erase(keys_.instance("n1", "vm-a"));
  EXPECT_TRUE(view_.nodes().empty());
}

TEST_F(FleetViewTest, ANodeStaysKnownWhileThereIsSomethingOfIt) {
  live("n1");
  EXPECT_TRUE(view_.nodes().at("n1").alive);
  claim("vm-a", "n1");
  publish("n1", "vm-a");
  view_.erase(keys_.node("n1"));
  EXPECT_FALSE(view_.nodes().at("n1").alive);
  EXPECT_EQ(view_.nodes().at("n1").registered->record.address, "https://n1");
  EXPECT_NE(view_.find_instance("vm-a"), nullptr);
  view_.erase(keys_.instance("n1", "vm-a"));
  EXPECT_TRUE(view_.nodes().empty());
}

TEST_F(FleetViewTest, ListsByIdInPagesAndByOwner) {
  for (const char* id : {"vm-c", "vm-a", "vm-b", "vm-d"})
    publish("n1", id, id == std::string("vm-b") ? "bob" : "alice");
  EXPECT_THAT(ids(std::nullopt, "", 2), ElementsAre("vm-a", "vm-b"));
  EXPECT_THAT(ids(std::nullopt, "vm-b", 2), ElementsAre("vm-c", "vm-d"));
  EXPECT_THAT(ids("alice", "vm-a", 1), ElementsAre("vm-c"));
  EXPECT_THAT(ids("nobody"), IsEmpty());
  publish("n1", "vm-a", "bob");  // another owner
  EXPECT_THAT(ids("bob"), ElementsAre("vm-a", "vm-b"));
}

TEST_F(FleetViewTest, BecomesWhatWasListedAndKnowsItsLostNodes) {
  live("n1");
  live("n2");
  for (const char* id : {"vm-a", "vm-b"}) {
    claim(id, "n1");
    publish("n1", id);
    forward("n1", id);
  }
  view_.put(keys_.claim("vm-c"), "nonsense");
  FleetView listed(keys_);
  const auto put = [&](const std::string& key, const std::string& value) { listed.put(key, value); };
  put(keys_.claim("vm-a"), to_json(Claim{.node = "n1", .session_id = make_uuid(), .began = now()}));
  put(keys_.instance("n1", "vm-a"), R"({"id":"vm-a","owner":"bob"})");
  EXPECT_EQ(view_.instance_count(), 2U);
  view_.become(std::move(listed));
  EXPECT_THAT(ids(), ElementsAre("vm-a"));
  EXPECT_THAT(ids("bob"), ElementsAre("vm-a"));
  EXPECT_EQ(view_.forward_count(), 0U);
  EXPECT_EQ(view_.bad_values(), 0U);
  ASSERT_EQ(view_.nodes().size(), 1U);
  EXPECT_FALSE(view_.nodes().at("n1").alive);
  EXPECT_EQ(view_.nodes().at("n1").registered->record.address, "https://n1");  // as it was last
  const ForwardId id = forward("n1", "vm-a");
  EXPECT_TRUE(view_.find_instance("vm-a")->forwards.contains(id));
  view_.erase(keys_.instance("n1", "vm-a"));
  EXPECT_EQ(view_.forward_count(), 0U);
}

// The session that was before may have been another owner's, and its forwards go from etcd in their time.
TEST_F(FleetViewTest, ForwardsOfAnotherSessionAreNotShown) {
  const auto publish_session = [&](const std::string& owner, const std::string& session) {
    view_.put(keys_.instance("n1", "vm-a"),
              R"({"owner":")" + owner + R"(","session_id":")" + session + R"("})");
  };
  const auto put_forward = [&](const ForwardId& id, const std::string& session) {
    view_.put(keys_.forward("n1", "vm-a", id), R"({"host_port":20001,"session_id":")" + session + R"("})");
  };
  const ForwardId first = make_uuid();
  const ForwardId second = make_uuid();
  claim("vm-a", "n1");
  publish_session("alice", "s1");
  put_forward(first, "s1");
  EXPECT_EQ(view_.forward_count(), 1U);
  publish_session("bob", "s2");
  EXPECT_EQ(view_.forward_count(), 0U);
  EXPECT_THAT(view_.find_instance("vm-a")->forwards, IsEmpty());
  put_forward(first, "s1");  // as it was
  put_forward(second, "s2");
  EXPECT_EQ(view_.forward_count(), 1U);
  EXPECT_EQ(view_.forwards_by_host_port().begin()->first.id, second);
  view_.erase(keys_.forward("n1", "vm-a", first));
  EXPECT_EQ(view_.forward_count(), 1U);
  // A forward that comes before its instance's record is seen with it.
  const ForwardId third = make_uuid();
  put_forward(third, "s3");
  EXPECT_EQ(view_.forward_count(), 1U);
  publish_session("bob", "s3");
  EXPECT_EQ(view_.forwards_by_creation().begin()->first.id, third);
  EXPECT_EQ(view_.forward_count(), 1U);
  view_.erase(keys_.forward("n1", "vm-a", second));
  view_.erase(keys_.forward("n1", "vm-a", third));
  view_.erase(keys_.instance("n1", "vm-a"));
  EXPECT_THAT(view_.nodes(), IsEmpty());
}

TEST_F(FleetViewTest, AHugeValueIsNotUnderstood) {
  claim("vm-a", "n1");
  publish("n1", "vm-a", std::string(FleetView::kValueMax, 'a'));
  EXPECT_EQ(view_.find_instance("vm-a"), nullptr);
  EXPECT_EQ(view_.bad_values(), 1U);
}

TEST_F(FleetViewTest, AValueThatIsNotUnderstoodIsAsIfItWereNotThere) {
  live("n1");
  claim("vm-a", "n1");
  publish("n1", "vm-a");
  const ForwardId id = forward("n1", "vm-a");
  for (const std::string bad :
       {"", "nonsense", "[]", "{", "{\"owner\": 7}", "{\"id\": \"x\"}", "\xff", "null"}) {
    view_.put(keys_.instance("n1", "vm-a"), bad);
    EXPECT_EQ(view_.find_instance("vm-a"), nullptr) << bad;
    EXPECT_EQ(view_.bad_values(), 1U);
    publish("n1", "vm-a");
    EXPECT_EQ(view_.find_instance("vm-a")->forwards.size(), 1U);
    EXPECT_EQ(view_.bad_values(), 0U);
  }
  view_.put(keys_.forward("n1", "vm-a", id), "nonsense");
  EXPECT_EQ(view_.forward_count(), 0U);
  view_.put(keys_.node("n1"), "{}");
  EXPECT_FALSE(view_.nodes().at("n1").alive);
  view_.put(keys_.claim("vm-a"), "{}");
  EXPECT_EQ(view_.find_instance("vm-a")->node, "n1");  // nobody else has it
  EXPECT_EQ(view_.bad_values(), 3U);
  view_.erase(keys_.claim("vm-a"));
  EXPECT_EQ(view_.bad_values(), 2U);
  // Not keys of the fleet.
  for (const char* key :
       {"/portway/", "/portway/nodes/", "/portway/nodes/a/b", "/portway/claims/ä", "/other/nodes/n1",
        "/portway/state/n1", "/portway/state/n1/instances/", "/portway/state/n1/forwards/vm-a/1"}) {
    view_.put(key, "{}");
    view_.erase(key);
  }
  EXPECT_EQ(view_.bad_values(), 2U);
}

/// All forwards of the instances that are shown, in the order of `forwards`.
std::vector<std::string> listed(const FleetView::Forwards& forwards) {
  std::vector<std::string> out;
  for (const auto& [place, instance] : forwards) {
    const FleetViewForward& forward = instance->forwards.at(place.id);
    out.push_back(instance->id + ":" + forward.label + ":" + std::to_string(forward.host_port));
  }
  return out;
}

TEST_F(FleetViewTest, ListsForwardsByTheirCreationAndByTheirHostPort) {
  const ForwardId first = make_uuid();
  const ForwardId second = make_uuid();
  const auto put = [&](const std::string& node, const std::string& instance, const ForwardId& id,
                       const std::string& label, int port) {
    view_.put(keys_.forward(node, instance, id),
              R"({"label":")" + label + R"(","guest_port":80,"state":"listening","metadata":{"a":"b"},)" +
                  R"("host_port":)" + std::to_string(port) + "}");
  };
  put("n1", "vm-a", first, "first", 900);
  EXPECT_THAT(listed(view_.forwards_by_creation()), IsEmpty()) << "its instance is not known yet";
  publish("n1", "vm-a");
  publish("n2", "vm-b", "bob");
  put("n2", "vm-b", second, "second", 300);
  EXPECT_THAT(listed(view_.forwards_by_creation()), ElementsAre("vm-a:first:900", "vm-b:second:300"));
  EXPECT_THAT(listed(view_.forwards_by_host_port()), ElementsAre("vm-b:second:300", "vm-a:first:900"));
  const FleetViewForward& shown = view_.find_instance("vm-b")->forwards.at(second);
  EXPECT_EQ(shown.guest_port, 80);
  EXPECT_EQ(shown.state, "listening");
  EXPECT_EQ(shown.metadata, (Metadata{{"a", "b"}}));

  put("n2", "vm-b", second, "renamed", 950);
  EXPECT_THAT(listed(view_.forwards_by_host_port()), ElementsAre("vm-a:first:900", "vm-b:renamed:950"));
  claim("vm-a", "n2");  // which has not published it
  EXPECT_THAT(listed(view_.forwards_by_creation()), ElementsAre("vm-b:renamed:950"));
  claim("vm-a", "n1");
  view_.erase(keys_.forward("n2", "vm-b", second));
  EXPECT_THAT(listed(view_.forwards_by_creation()), ElementsAre("vm-a:first:900"));
  EXPECT_THAT(listed(view_.forwards_by_host_port()), ElementsAre("vm-a:first:900"));
  view_.erase(keys_.instance("n1", "vm-a"));
  EXPECT_THAT(listed(view_.forwards_by_creation()), IsEmpty());
}

TEST_F(FleetViewTest, AForwardsIdThatIsTakenStaysWithItsInstance) {
  publish("n1", "vm-a");
  const ForwardId id = forward("n1", "vm-a");
  publish("n2", "vm-b", "bob");
  view_.put(keys_.forward("n2", "vm-b", id), R"({"label":"of another"})");
  EXPECT_THAT(listed(view_.forwards_by_creation()), ElementsAre("vm-a::0"));
  view_.erase(keys_.forward("n2", "vm-b", id));
  EXPECT_THAT(listed(view_.forwards_by_creation()), ElementsAre("vm-a::0"));
}

TEST_F(FleetViewTest, AForwardOfAnotherNodeAloneMakesAnUnclaimedInstanceAmbiguous) {
  publish("n1", "vm-a");
  const ForwardId stray = forward("n2", "vm-a");
  EXPECT_EQ(view_.find_instance("vm-a"), nullptr);
  view_.erase(keys_.forward("n2", "vm-a", stray));
  EXPECT_NE(view_.find_instance("vm-a"), nullptr);
}

}  // namespace
}  // namespace portway::test
