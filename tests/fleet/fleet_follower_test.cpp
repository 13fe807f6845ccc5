// A follower beside publishers, with a real etcd.

#include "fleet/fleet_follower.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tests/fleet/fleet_world.h"

namespace portway::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

class FleetFollowerTest : public FleetTest {
 protected:
  void TearDown() override {
    follower_.reset();
    FleetTest::TearDown();
  }

  void follow(FleetListener* listener = nullptr) {
    FollowerOptions options{.etcd = this->options(), .listener = listener};
    options.etcd.request_timeout = seconds(10);
    options.check_period = milliseconds(200);
    follower_ = FleetFollower::create(context_.get_executor(), std::move(options)).value();
  }
  /// Instances and forwards as the view has them, as keys and values in etcd.
  std::map<std::string, std::string> viewed() const {
    const FleetKeys keys("");
    std::map<std::string, std::string> out;
    for (const FleetViewInstance* instance : follower_->view().instances(std::nullopt, "", 10'000)) {
      out[keys.instance(instance->node, instance->id)] = instance->json;
      for (const auto& [id, forward] : instance->forwards)
        out[keys.forward(instance->node, instance->id, id)] = forward.json;
    }
    return out;
  }
  std::map<std::string, std::string> wanted_of_all() const {
    std::map<std::string, std::string> out;
    for (const auto& node : nodes_) out.merge(wanted(*node));
    return out;
  }
  void until_viewed() {
    until([&] { return viewed() == wanted_of_all(); }, "viewed");
  }

  std::unique_ptr<FleetFollower> follower_;
};

TEST_F(FleetFollowerTest, SeesWhatNodesPublishAndChange) {
  start_one();
  FakeNode& one = join_new("n1");
  FakeNode& two = join_new("n2");
  for (int i = 0; i < 150; ++i) {
    const std::string id = "vm-" + std::to_string(i);
    (i % 2 == 0 ? one : two).put(id);
    for (int k = 0; k < 5; ++k) (i % 2 == 0 ? one : two).forward(id, std::to_string(k));
  }
  follow();
  EXPECT_FALSE(follower_->stats().warm);
  EXPECT_TRUE(follower_->stats().stale);
  until_viewed();
  EXPECT_FALSE(follower_->stats().stale);
  EXPECT_EQ(follower_->view().forward_count(), 750U);
  until([&] { return follower_->view().nodes().size() == 2; }, "both nodes");
  one.remove("vm-0");
  two.put("vm-2");
  two.change("vm-1", "changed");
  until([&] { return one.lost.size() == 1; }, "vm-2 has moved");
  one.remove("vm-2");
  until_viewed();
  EXPECT_EQ(follower_->view().find_instance("vm-2")->node, "n2");
  bool gone = false;
  two.publisher().resign([&] { gone = true; });
  until([&] { return gone && !follower_->view().nodes().at("n2").alive; }, "n2 has gone");
  EXPECT_NE(follower_->view().find_instance("vm-1"), nullptr);  // what it had stays
}

TEST_F(FleetFollowerTest, IsStaleWhileEtcdIsAwayAndReadsWhatItHasMissed) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  follow();
  until_viewed();
  member.kill();
  until([&] { return follower_->stats().stale; }, "stale");
  EXPECT_THAT(follower_->stats().error, HasSubstr(member.url()));
  EXPECT_NE(follower_->view().find_instance("vm-a"), nullptr);
  const Timestamp true_at = follower_->stats().true_at;
  EXPECT_LE(true_at, now());
  node.put("vm-b");
  node.remove("vm-a");
  member.restart();
  until_viewed();
  until([&] { return !follower_->stats().stale && follower_->stats().true_at > true_at; }, "fresh");
  // It was compacted meanwhile.
  for (int i = 0; i < 10; ++i) put("other", std::to_string(i));
  member.control({"compact", std::to_string(revision())});
  member.kill();
  node.put("vm-c");
  member.restart();
  until_viewed();
  until([&] { return follower_->stats().listings >= 2; }, "listed again");
}

TEST_F(FleetFollowerTest, AnEtcdThatWasRestoredIsReadAgain) {
  EtcdMember& member = start_one();
  FakeNode& node = join_new("n1");
  node.put("vm-a");
  follow();
  until_viewed();
  const auto copy = directory_.path() / "copy";
  member.kill();
  std::filesystem::copy(directory_.path() / "member1", copy, std::filesystem::copy_options::recursive);
  member.restart();
  node.put("vm-b");
  for (int i = 0; i < 20; ++i) node.forward("vm-b", std::to_string(i));
  until_viewed();
  node.leave();
  member.kill();
  std::filesystem::remove_all(directory_.path() / "member1");
  std::filesystem::rename(copy, directory_.path() / "member1");
  member.restart();
  until([&] { return viewed() == stored("state/"); }, "as etcd is");
  EXPECT_EQ(follower_->view().find_instance("vm-b"), nullptr);
}

/// What it is told, as text.
class Told final : public FleetListener {
 public:
  void on_change(const EtcdEvent& event, const std::string& before) override {
    lines.push_back(event.kv.key + "=" + event.kv.value + (before.empty() ? "" : ", was " + before));
  }
  void on_relisted(std::int64_t revision) override { lines.push_back("listed " + std::to_string(revision)); }

  std::vector<std::string> lines;
};

TEST_F(FleetFollowerTest, ItsListenerHearsOfEachChange) {
  const std::string instance = "/portway/state/n1/instances/vm-a";
  const std::string before = R"({"owner":"alice"})";
  const std::string after = R"({"owner":"bob"})";
  start_one();
  const std::int64_t first = put(instance, before);
  Told told;
  follow(&told);
  until([&] { return told.lines.size() == 1; }, "the listing");
  put(instance, after);
  done(etcd().erase({.keys = EtcdKeys::one(instance)}));
  const std::int64_t last = put("/portway/profiles/large", "1");
  put("elsewhere");
  until([&] { return told.lines.size() == 4; }, "the changes");
  EXPECT_THAT(told.lines, testing::ElementsAre("listed " + std::to_string(first),
                                               instance + "=" + after + ", was " + before,
                                               instance + "=, was " + after, "/portway/profiles/large=1"));
  EXPECT_EQ(follower_->stats().revision, last);
}

TEST_F(FleetFollowerTest, IsWaitedForUntilItIsAtARevision) {
  EtcdMember& member = start_one();
  put("/portway/profiles/large", "1");
  follow();
  const std::int64_t revision = put("/portway/profiles/large", "2");
  EXPECT_TRUE(wait(follower_->wait_until_at(revision, seconds(60))));
  EXPECT_GE(follower_->stats().revision, revision);
  EXPECT_TRUE(wait(follower_->wait_until_at(revision, milliseconds(0))));
  EXPECT_FALSE(wait(follower_->wait_until_at(revision + 1, milliseconds(10))));
  // Whoever waits ends with it.
  std::optional<bool> reached;
  boost::asio::co_spawn(context_, follower_->wait_until_at(revision + 1, seconds(60)),
                        [&](const std::exception_ptr&, bool is_at) { reached = is_at; });
  context_.poll();
  EXPECT_FALSE(reached);
  follower_.reset();
  until([&] { return reached.has_value(); }, "the end");
  EXPECT_FALSE(*reached);
  member.kill();
}

}  // namespace
}  // namespace portway::test
