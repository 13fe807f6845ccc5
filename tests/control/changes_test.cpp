// Changes that are under way at once: what each of them promises must hold whatever the others do.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <cstdint>
#include <exception>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "control/change_locks.h"
#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

constexpr std::string_view kForwards = "/instances/vm-1/port-forwards";

std::vector<unsigned> statuses(const std::vector<Response>& responses) {
  std::vector<unsigned> all;
  for (const Response& each : responses) all.push_back(each.status);
  return all;
}

std::vector<Response> post_at_once(Node& node, std::size_t times, const std::string& body,
                                   const std::string& idempotency_key = "") {
  std::vector<Request> requests;
  for (std::size_t i = 0; i < times; ++i) {
    requests.push_back(Node::request_of("POST", std::string(kForwards), body, Node::kAdminKey));
    if (!idempotency_key.empty()) requests.back().headers["idempotency-key"] = idempotency_key;
  }
  return node.handle_at_once(requests);
}

TEST(Changes, AQuotaHoldsForWhatIsCreatedAtOnce) {
  Node node("[profiles.default]\nmax_forwarded_ports = 3\n");
  node.put("vm-1");
  const auto made = post_at_once(node, 8, R"({"guest_port": 3000})");
  EXPECT_EQ(std::ranges::count(statuses(made), 201U), 3);
  EXPECT_EQ(node.control().registry().forward_count(), 3U);
  EXPECT_EQ(node.control().ports().used(), 3U);
  node.restart();
  EXPECT_EQ(node.control().registry().forward_count(), 3U);
}

TEST(Changes, AnOwnersQuotaHoldsForWhatIsCreatedAtOnceOfSeveralInstances) {
  Node node("[owners]\nmax_forwards = 3\n");
  node.put("vm-1");
  node.put("vm-2");
  node.put("vm-3", "bob");
  const auto set = [](const std::string& instance, std::uint16_t port) {
    return Node::request_of(
        "PUT", "/instances/" + instance + "/port-forwards",
        fmt::format(R"({{"port_forwards": [{{"guest_port": {}}}, {{"guest_port": {}}}]}})", port, port + 1),
        Node::kAdminKey);
  };
  const auto both = node.handle_at_once({set("vm-1", 3000), set("vm-2", 3000)});
  EXPECT_THAT(statuses(both), UnorderedElementsAre(200U, 409U));
  const Response& refused = both[both[0].status == 409U ? 0 : 1];
  EXPECT_EQ(Node::code(refused), "quota_exceeded");
  EXPECT_THAT(std::string(Node::json(refused).at("detail").as_string()),
              AllOf(HasSubstr("alice"), HasSubstr("owners.max_forwards")));
  EXPECT_EQ(Node::json(refused).at("limit"), 3);
  const std::string done = both[0].status == 409U ? "vm-2" : "vm-1";
  const std::string other = both[0].status == 409U ? "vm-1" : "vm-2";
  // What a set replaces makes room for what it has instead.
  EXPECT_EQ(node.handle(set(done, 4000)).status, 200U);
  EXPECT_EQ(node.call("POST", "/instances/" + other + "/port-forwards", R"({"guest_port": 3000})").status,
            201U);
  EXPECT_EQ(node.call("POST", "/instances/" + other + "/port-forwards", R"({"guest_port": 3001})",
                      node.tenant_key())
                .status,
            409U);
  EXPECT_EQ(node.call("POST", "/instances/vm-3/port-forwards", R"({"guest_port": 3000})").status, 201U);
  node.restart();
  EXPECT_EQ(node.call("POST", "/instances/" + other + "/port-forwards", R"({"guest_port": 3001})").status,
            409U);
}

TEST(Changes, AnOwnersConnectionsFollowTheOwnerAndTheConfiguration) {
  Node node("[owners]\nmax_connections = 100\n");
  node.put("vm-1");
  ASSERT_EQ(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})").status, 201U);
  EXPECT_EQ(node.dataplane.owner_connections_max, 100U);
  EXPECT_EQ(node.dataplane.opened.begin()->second.first.owner, "alice");
  ASSERT_EQ(node.call("PATCH", "/instances/vm-1", R"({"owner": "bob"})").status, 200U);
  EXPECT_EQ(node.dataplane.opened.begin()->second.first.owner, "bob");
  node.config().owners.max_connections = 50;
  node.control().apply_config();
  EXPECT_EQ(node.dataplane.owner_connections_max, 50U);
}

TEST(Changes, ARequestThatIsRepeatedBeforeItsAnswerGetsTheSameAnswer) {
  Node node;
  node.put("vm-1");
  const auto made = post_at_once(node, 4, R"({"guest_port": 3000})", "once");
  std::set<std::string> ids;
  for (const Response& each : made) {
    ASSERT_EQ(each.status, 201U) << each.body;
    ids.insert(Node::forward_id(each));
  }
  EXPECT_EQ(ids.size(), 1U);
  EXPECT_EQ(node.control().registry().forward_count(), 1U);
}

TEST(Changes, OneHostPortIsNotGivenTwice) {
  Node node;
  node.put("vm-1");
  auto made = statuses(post_at_once(node, 2, R"({"guest_port": 3000, "host_port": 31000})"));
  std::ranges::sort(made);
  EXPECT_THAT(made, ElementsAre(201U, 409U));
}

TEST(Changes, TwoChangesOfOneForwardAreBothMade) {
  Node node;
  node.put("vm-1");
  const std::string path =
      std::string(kForwards) + "/" +
      Node::forward_id(node.call("POST", std::string(kForwards), R"({"guest_port": 3000})"));
  std::string upper = path;
  std::ranges::transform(upper, upper.begin(), [](char c) { return 'a' <= c && c <= 'f' ? c - 32 : c; });
  upper.replace(0, kForwards.size(), kForwards);
  const auto changed =
      node.handle_at_once({Node::request_of("PATCH", path, R"({"label": "web"})", Node::kAdminKey),
                           Node::request_of("PATCH", upper, R"({"max_connections": 7})", Node::kAdminKey)});
  EXPECT_THAT(statuses(changed), ElementsAre(200U, 200U)) << changed[1].body;
  node.restart();
  const auto forward = Node::json(node.call("GET", path)).at("port_forward").as_object();
  EXPECT_EQ(forward.at("label"), "web");
  EXPECT_EQ(forward.at("max_connections"), 7);
}

TEST(Changes, AForwardThatIsDeletedTwiceIsFoundOnce) {
  Node node;
  node.put("vm-1");
  const std::string path =
      std::string(kForwards) + "/" +
      Node::forward_id(node.call("POST", std::string(kForwards), R"({"guest_port": 3000})"));
  const auto deleted = node.handle_at_once({Node::request_of("DELETE", path, "", Node::kAdminKey),
                                            Node::request_of("DELETE", path, "", Node::kAdminKey)});
  EXPECT_THAT(statuses(deleted), ElementsAre(204U, 404U));
  EXPECT_EQ(node.control().ports().used(), 0U);
}

TEST(Changes, TwoMachinesThatAreRegisteredAtOnceCannotHaveOneTap) {
  Node node;
  const auto put = [](const std::string& id) {
    return Node::request_of("PUT", "/instances/" + id,
                            R"({"guest_address": "198.19.0.2", "tap": "tap7", "owner": "alice"})",
                            Node::kAdminKey);
  };
  const auto made = node.handle_at_once({put("vm-1"), put("vm-2")});
  EXPECT_THAT(statuses(made), ElementsAre(201U, 409U));
  EXPECT_EQ(Node::code(made[1]), "tap_in_use");
  EXPECT_EQ(node.call("GET", "/instances/vm-2").status, 404U);
}

TEST(Changes, OneInstanceThatIsRegisteredTwiceAtOnceHasOneSession) {
  Node node;
  const Request put = Node::request_of("PUT", "/instances/vm-1",
                                       R"({"guest_address": "198.19.0.2", "tap": "tap7", "owner": "alice"})",
                                       Node::kAdminKey);
  const auto made = node.handle_at_once({put, put});
  EXPECT_THAT(statuses(made), ElementsAre(201U, 200U));
  EXPECT_EQ(Node::json(made[0]).at("instance").at("session_id"),
            Node::json(made[1]).at("instance").at("session_id"));
}

TEST(Changes, WhatIsCreatedWhileAnInstanceIsStoppedIsRefusedOrGoesWithIt) {
  Node node;
  node.put("vm-1");
  const Request post =
      Node::request_of("POST", std::string(kForwards), R"({"guest_port": 3000})", Node::kAdminKey);
  const Request stop = Node::request_of("POST", "/instances/vm-1/stop", "", Node::kAdminKey);
  EXPECT_THAT(statuses(node.handle_at_once({post, stop, post})), ElementsAre(201U, 200U, 409U));
  EXPECT_EQ(node.control().ports().used(), 0U);
  EXPECT_TRUE(node.dataplane.opened.empty());
  node.restart();
  EXPECT_EQ(node.control().registry().forward_count(), 0U);
}

// What memory knew of the session's end was written after the deletion, and the instance was there again.
TEST(Changes, AnInstanceWhoseSessionEndsWhileItIsDeletedStaysDeleted) {
  Node node;
  node.put("vm-1");
  node.lock_store();
  node.while_the_disk_is_waited_for([&] {
    node.control().end_session("vm-1", SessionEnd::kTapDeleted);
    node.context.poll();
    node.unlock_store();
  });
  EXPECT_EQ(node.call("DELETE", "/instances/vm-1").status, 204U);
  node.settle();
  node.restart();
  EXPECT_EQ(node.call("GET", "/instances/vm-1").status, 404U);
}

TEST(Changes, ASessionThatEndsWhileTheNextOneBeginsDoesNotUndoIt) {
  Node node;
  node.put("vm-1");
  node.lock_store();
  node.while_the_disk_is_waited_for([&] {
    node.control().end_session("vm-1", SessionEnd::kTapDeleted);
    node.context.poll();
    node.unlock_store();
  });
  const std::string next = R"({"guest_address": "198.19.0.3", "tap": "tap8", "owner": "alice"})";
  EXPECT_EQ(node.call("PUT", "/instances/vm-1", next).status, 200U);
  node.settle();
  node.restart();
  EXPECT_EQ(Node::json(node.call("GET", "/instances/vm-1")).at("instance").at("state"), "running");
}

TEST(Changes, WhileOneWaitsForTheDiskEverythingElseIsAnswered) {
  Node node;
  node.put("vm-1");
  node.lock_store();
  std::vector<unsigned> meanwhile;
  node.while_the_disk_is_waited_for([&] {
    for (const char* path : {"/healthz", "/instances", "/instances/vm-1/port-forwards"}) {
      meanwhile.push_back(node.call("GET", path).status);
    }
    node.unlock_store();
  });
  EXPECT_EQ(node.call("POST", std::string(kForwards), R"({"guest_port": 3000})").status, 201U);
  EXPECT_THAT(meanwhile, ElementsAre(200U, 200U, 200U));
}

TEST(Changes, WaitWhileTheyArePaused) {
  Node node;
  node.put("vm-1");
  std::optional<ChangeLocks::Held> paused = node.run(node.control().pause_changes());
  bool ended_early = true;
  node.while_the_disk_is_waited_for([&] {
    node.context.poll();
    ended_early = node.control().registry().forward_count() > 0;
    paused.reset();
  });
  EXPECT_EQ(node.call("POST", std::string(kForwards), R"({"guest_port": 3000})").status, 201U);
  EXPECT_FALSE(ended_early);
  EXPECT_FALSE(node.control().has_changes_under_way());
}

// --- Locks.

class ChangeLocksTest : public testing::Test {
 protected:
  enum class How : std::uint8_t { kShare, kOwn };
  /// Takes the lock, writes `name` into held_, and lets go of it when it is told to.
  void lock(char name, How how) {
    boost::asio::co_spawn(
        context_,
        [this, name, how]() -> boost::asio::awaitable<void> {
          if (how == How::kShare) {
            holders_[name] = co_await locks_.share("thing");
          } else {
            holders_[name] = co_await locks_.own("thing");
          }
          held_ += name;
        },
        [](std::exception_ptr) {});
    run();
  }
  void let_go(char name) {
    holders_.erase(name);
    run();
  }
  void run() {
    context_.restart();
    context_.poll();
  }

  boost::asio::io_context context_;
  ChangeLocks locks_;
  std::map<char, ChangeLocks::Held> holders_;
  std::string held_;
};

TEST_F(ChangeLocksTest, OneThatIsOwnedKeepsEverybodyOut) {
  lock('a', How::kOwn);
  lock('b', How::kOwn);
  lock('c', How::kShare);
  EXPECT_EQ(held_, "a");
  let_go('a');
  EXPECT_EQ(held_, "ab");
  let_go('b');
  EXPECT_EQ(held_, "abc");
}

TEST_F(ChangeLocksTest, OneThatIsSharedLetsOthersShareIt) {
  lock('a', How::kShare);
  lock('b', How::kShare);
  lock('c', How::kOwn);
  EXPECT_EQ(held_, "ab");
  let_go('a');
  EXPECT_EQ(held_, "ab");
  let_go('b');
  EXPECT_EQ(held_, "abc");
}

TEST_F(ChangeLocksTest, WhoWantsItAloneIsNotOvertaken) {
  lock('a', How::kShare);
  lock('b', How::kOwn);
  lock('c', How::kShare);
  lock('d', How::kShare);
  EXPECT_EQ(held_, "a");
  let_go('a');
  EXPECT_EQ(held_, "ab");
  let_go('b');
  EXPECT_EQ(held_, "abcd");
}

TEST_F(ChangeLocksTest, NothingIsLeftOfOneThatNobodyHolds) {
  lock('a', How::kOwn);
  lock('b', How::kShare);
  EXPECT_EQ(locks_.size(), 1U);
  let_go('a');
  let_go('b');
  EXPECT_EQ(locks_.size(), 0U);
}

}  // namespace
}  // namespace portway
