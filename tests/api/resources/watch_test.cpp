// A list, and then the events after it: what a client keeps so is what the next list says.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::ElementsAre;
using testing::IsEmpty;

namespace json = boost::json;

struct Seen {
  std::string id;
  std::string type;
  json::object data;
};

/// The events that a stream has now.
std::vector<Seen> events_in(BodyStream& stream) {
  std::string text;
  for (auto piece = stream.read(); piece && !piece->empty(); piece = stream.read()) text += *piece;
  std::vector<Seen> seen;
  Seen event;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    const std::string_view line = std::string_view(text).substr(at, end - at);
    if (line.starts_with("id: ")) event.id = line.substr(4);
    if (line.starts_with("event: ")) event.type = line.substr(7);
    if (line.starts_with("data: ")) event.data = json::parse(line.substr(6)).as_object();
    if (line.empty() && !event.type.empty()) seen.push_back(std::exchange(event, {}));
    at = end + 1;
  }
  return seen;
}

std::vector<std::string> types_in(BodyStream& stream) {
  std::vector<std::string> types;
  for (const Seen& event : events_in(stream)) types.push_back(event.type);
  return types;
}

/// What changes without an event.
json::object steady(json::object resource) {
  for (const char* member : {"port_forwards", "tap_state", "connections_active", "connections_total",
                             "received_bytes", "sent_bytes"}) {
    resource.stable_erase(member);
  }
  return resource;
}

/// For messages; the order of an object's members is the contract's.
std::vector<std::string> text_of(const std::map<std::string, json::object>& resources) {
  std::vector<std::string> text;
  for (const auto& [id, resource] : resources) text.push_back(json::serialize(resource));
  return text;
}

class WatchTest : public testing::Test {
 protected:
  explicit WatchTest(std::string_view settings = "[profiles.default]\nmax_forwarded_ports = 50\n")
      : node_(settings) {}

  Response get(const std::string& path, std::string_view key = Node::kAdminKey) {
    Response answer = node_.call("GET", path, "", key);
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return answer;
  }
  std::string id_of(const std::string& path, std::string_view key = Node::kAdminKey) {
    return Node::header(get(path, key), "Portway-Event-Id");
  }
  std::shared_ptr<BodyStream> watch(const std::string& id, std::string_view key = Node::kAdminKey) {
    Request request = Node::request_of("GET", "/events", "", key);
    if (!id.empty()) request.headers["last-event-id"] = id;
    Response answer = node_.handle(request);
    EXPECT_EQ(answer.status, 200U) << answer.body;
    return answer.stream;
  }
  std::string create(const std::string& instance, int port, std::string_view key = Node::kAdminKey) {
    const Response made = node_.call("POST", "/instances/" + instance + "/port-forwards",
                                     R"({"guest_port": )" + std::to_string(port) + "}", key);
    EXPECT_EQ(made.status, 201U) << made.body;
    return Node::forward_id(made);
  }

  Node node_;
};

/// What a client has that reads the lists once, and then applies the events.
class Cache {
 public:
  Cache(Node& node, std::string key) : node_(node), key_(std::move(key)) {}

  /// Returns the id to watch from: that of the first page of the first list.
  std::string list() {
    instances.clear();
    forwards.clear();
    std::string first;
    for (const auto& [path, member] : {std::pair<std::string, std::string>("/instances", "instances"),
                                       {"/port-forwards", "port_forwards"}}) {
      std::string cursor;
      do {
        const Response page =
            node_.call("GET", path + "?limit=2" + (cursor.empty() ? "" : "&cursor=" + cursor), "", key_);
        if (first.empty()) first = Node::header(page, "Portway-Event-Id");
        const json::object body = Node::json(page);
        for (const json::value& each : body.at(member).as_array()) {
          auto& into = member == "instances" ? instances : forwards;
          into[std::string(each.at("id").as_string())] = steady(each.as_object());
        }
        cursor = body.contains("next_cursor") ? std::string(body.at("next_cursor").as_string()) : "";
        if (between_pages) between_pages();
      } while (!cursor.empty());
    }
    return first;
  }

  void apply(const Seen& event) {
    ASSERT_NE(event.type, "reset");
    if (event.type == "connection.refused" || event.type.starts_with("node.")) return;
    const std::string id(event.data.at("instance_id").as_string());
    if (event.type == "forward.deleted") {
      forwards.erase(std::string(event.data.at("forward_id").as_string()));
    } else if (event.type.starts_with("forward.")) {
      const json::object forward = event.data.at("port_forward").as_object();
      forwards[std::string(forward.at("id").as_string())] = steady(forward);
    } else {
      const bool gone = event.type == "instance.deleted" || event.data.contains("lost");
      if (gone) instances.erase(id);
      if (!gone) instances[id] = steady(event.data.at("instance").as_object());
      if (gone || event.type == "instance.stopped") {
        std::erase_if(forwards,
                      [&](const auto& each) { return each.second.at("instance_id").as_string() == id; });
      }
    }
  }

  std::map<std::string, json::object> instances;
  std::map<std::string, json::object> forwards;
  std::function<void()> between_pages;

 private:
  Node& node_;
  const std::string key_;
};

TEST_F(WatchTest, EveryListSaysWhatItIsTrueAt) {
  node_.put("vm-1");
  const std::string forward = create("vm-1", 3000);
  const std::string now = node_.events.last_id();
  for (const std::string& path : {std::string("/instances"), std::string("/instances/vm-1"),
                                  std::string("/instances/vm-1/port-forwards"), std::string("/port-forwards"),
                                  "/instances/vm-1/port-forwards/" + forward}) {
    EXPECT_EQ(id_of(path), now) << path;
  }
  const auto stream = watch(now);
  EXPECT_THAT(types_in(*stream), IsEmpty());
  create("vm-1", 3001);
  EXPECT_THAT(types_in(*stream), ElementsAre("forward.created"));
  Response by_query = node_.call("GET", "/events?last_event_id=" + now);
  EXPECT_THAT(types_in(*by_query.stream), ElementsAre("forward.created"));
}

TEST_F(WatchTest, AnEventHasWhatGetAnswersAfterIt) {
  const auto stream = watch("");
  node_.put("vm-1");
  const auto expect_last_is = [&](const std::string& type, const std::string& member,
                                  const std::string& path) {
    const std::vector<Seen> seen = events_in(*stream);
    ASSERT_FALSE(seen.empty());
    EXPECT_EQ(seen.back().type, type);
    const Response answer = get(path);
    EXPECT_EQ(seen.back().data.at(member), Node::json(answer).at(member)) << type;
    EXPECT_EQ(seen.back().data.at("etag").as_string(), Node::header(answer, "ETag")) << type;
  };
  expect_last_is("instance.started", "instance", "/instances/vm-1");
  const std::string forward = "/instances/vm-1/port-forwards/" + create("vm-1", 3000);
  expect_last_is("forward.created", "port_forward", forward);
  node_.call("PATCH", forward, R"({"label": "web", "metadata": {"env": "dev"}})");
  expect_last_is("forward.updated", "port_forward", forward);
  node_.call("PATCH", forward, R"({"enabled": false})");
  expect_last_is("forward.state_changed", "port_forward", forward);
  node_.call("PATCH", "/instances/vm-1", R"({"metadata": {"team": "a"}})");
  expect_last_is("instance.updated", "instance", "/instances/vm-1");
  node_.call("DELETE", forward);
  const std::vector<Seen> deleted = events_in(*stream);
  ASSERT_EQ(deleted.size(), 1U);
  EXPECT_FALSE(deleted[0].data.contains("port_forward"));
  node_.call("POST", "/instances/vm-1/stop");
  expect_last_is("instance.stopped", "instance", "/instances/vm-1");
  node_.call("DELETE", "/instances/vm-1");
  const std::vector<Seen> gone = events_in(*stream);
  ASSERT_EQ(gone.size(), 1U);
  EXPECT_EQ(gone[0].data.at("instance_id").as_string(), "vm-1");
  EXPECT_FALSE(gone[0].data.contains("instance"));
}

TEST_F(WatchTest, AnOwnerThatLosesAnInstanceDoesNotLearnWhatBecomesOfItAndTheNewOneLearnsAll) {
  const std::string alice = node_.tenant_key("alice");
  const std::string bob = node_.tenant_key("bob");
  node_.put("vm-1", "alice");
  create("vm-1", 3000);
  const std::string id = id_of("/port-forwards", bob);
  const auto of_alice = watch(id, alice);
  const auto of_bob = watch(id, bob);
  node_.call("PATCH", "/instances/vm-1", R"({"owner": "bob"})");
  const std::vector<Seen> lost = events_in(*of_alice);
  ASSERT_EQ(lost.size(), 1U);
  EXPECT_EQ(lost[0].data.at("lost"), true);
  EXPECT_EQ(lost[0].data.at("owner").as_string(), "alice");
  EXPECT_FALSE(lost[0].data.contains("instance"));
  EXPECT_FALSE(lost[0].data.contains("etag"));
  const std::vector<Seen> won = events_in(*of_bob);
  ASSERT_EQ(won.size(), 2U);
  EXPECT_EQ(won[0].data.at("instance").at("owner").as_string(), "bob");
  EXPECT_EQ(won[1].type, "forward.updated");
  EXPECT_EQ(won[1].data.at("port_forward").at("guest_port"), 3000);
}

TEST_F(WatchTest, AfterARestartOfTheDaemonAnIdIsAGapThatSaysSo) {
  node_.put("vm-1");
  const std::string id = id_of("/instances");
  const Node other;  // another run
  node_.restart();
  EXPECT_THAT(types_in(*watch(id)), testing::Not(testing::Contains("reset"))) << "the hub is the same here";
  const auto stream = watch(other.events.last_id());
  const std::vector<Seen> seen = events_in(*stream);
  ASSERT_EQ(seen.size(), 1U);
  EXPECT_EQ(seen[0].type, "reset");
  EXPECT_EQ(seen[0].data.at("code").as_string(), "restarted");
  create("vm-1", 3000);
  EXPECT_THAT(types_in(*stream), ElementsAre("forward.created"));
}

TEST_F(WatchTest, ATenantsForwardsInALoopTakeNothingFromAnothersWatch) {
  const std::string alice = node_.tenant_key("alice");
  node_.put_at("vm-1", "198.19.0.2", "alice");
  node_.put_at("vm-2", "198.19.0.3", "bob");
  const std::string id = id_of("/port-forwards", alice);
  create("vm-1", 3000);
  const std::string flood = create("vm-2", 4000);
  for (std::size_t i = 0; i <= EventHub::kKept; ++i) {
    node_.call("PATCH", "/instances/vm-2/port-forwards/" + flood,
               R"({"label": "l)" + std::to_string(i) + "\"}");
  }
  create("vm-1", 3001);
  EXPECT_THAT(types_in(*watch(id, alice)), ElementsAre("forward.created", "forward.created"));
  EXPECT_THAT(types_in(*watch(id)), ElementsAre("reset"));
}

/// Does something at random, as two tenants and an admin.
class Changes {
 public:
  Changes(Node& node, unsigned seed) : node_(node), random_(seed) {}

  void one() {
    const std::string vm = "vm-" + std::to_string(pick(4));
    const std::string path = "/instances/" + vm;
    const std::string owner = pick(2) == 0 ? "alice" : "bob";
    switch (pick(9)) {
      case 0:
        node_.call("PUT", path,
                   R"({"guest_address": "198.19.0.1)" + vm.substr(3) + R"(", "tap": "tap-)" + vm +
                       R"(", "owner": ")" + owner + "\"}");
        break;
      case 1:
        node_.call("PATCH", path, R"({"owner": ")" + owner + "\"}");
        break;
      case 2:
        node_.call("PATCH", path, R"({"metadata": {"n": ")" + std::to_string(pick(100)) + "\"}}");
        break;
      case 3:
        if (pick(3) == 0) node_.call("POST", path + "/stop");
        if (pick(6) == 0) node_.call("DELETE", path);
        break;
      case 4:
        change_a_forward([&](const std::string& forward) {
          node_.call("PATCH", forward,
                     R"({"label": "l)" + std::to_string(pick(100)) + R"(", "enabled": )" +
                         (pick(2) == 0 ? "true" : "false") + "}");
        });
        break;
      case 5:
        change_a_forward([&](const std::string& forward) { node_.call("DELETE", forward); });
        break;
      case 6:
        node_.call("PUT", path + "/port-forwards",
                   R"({"port_forwards": [{"guest_port": )" + std::to_string(2000 + pick(5)) +
                       R"(, "label": "set"}]})");
        break;
      default:
        node_.call("POST", path + "/port-forwards",
                   R"({"guest_port": )" + std::to_string(3000 + pick(1000)) + "}");
    }
  }

 private:
  std::size_t pick(std::size_t count) { return random_() % count; }
  template <class Change>
  void change_a_forward(Change change) {
    const json::object body = Node::json(node_.call("GET", "/port-forwards"));
    const json::array& all = body.at("port_forwards").as_array();
    if (all.empty()) return;
    const json::value& forward = all[pick(all.size())];
    change("/instances/" + std::string(forward.at("instance_id").as_string()) + "/port-forwards/" +
           std::string(forward.at("id").as_string()));
  }

  Node& node_;
  std::mt19937 random_;
};

// Changes go on between the pages of the lists, between the lists and the watch, and while it is interrupted.
TEST_F(WatchTest, AListAndTheEventsAfterItAreWhatTheNextListSays) {
  const std::vector<std::string> keys = {std::string(Node::kAdminKey), node_.tenant_key("alice"),
                                         node_.tenant_key("bob")};
  for (unsigned seed = 1; seed <= 20; ++seed) {
    Changes changes(node_, seed);
    for (int i = 0; i < 15; ++i) changes.one();
    std::vector<Cache> caches;
    std::vector<std::string> ids;
    for (const std::string& key : keys) {
      caches.emplace_back(node_, key);
      caches.back().between_pages = [&] { changes.one(); };
      ids.push_back(caches.back().list());
      caches.back().between_pages = nullptr;
    }
    for (int round = 0; round < 3; ++round) {
      for (int i = 0; i < 10; ++i) changes.one();
      for (std::size_t i = 0; i < keys.size(); ++i) {
        for (const Seen& event : events_in(*watch(ids[i], keys[i]))) {
          caches[i].apply(event);
          ids[i] = event.id;
        }
        Cache now(node_, keys[i]);
        now.list();
        ASSERT_EQ(text_of(caches[i].instances), text_of(now.instances))
            << "seed " << seed << ", caller " << i;
        ASSERT_EQ(text_of(caches[i].forwards), text_of(now.forwards)) << "seed " << seed << ", caller " << i;
      }
    }
  }
}

}  // namespace
}  // namespace portway
