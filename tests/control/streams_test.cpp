// Whose streams are open, how many, and until when. With real captures on a tap that goes from one tenant to
// another: tests/daemon/isolation_test.py.
#include "control/streams.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "api/openapi.h"
#include "api/ticketed_stream.h"
#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;
using testing::HasSubstr;

/// Returns "news" for every read, and "last words" when it is cut short.
class Talker final : public BodyStream {
 public:
  explicit Talker(bool& alive) : alive_(alive) { alive_ = true; }
  ~Talker() override { alive_ = false; }
  Talker(const Talker&) = delete;
  Talker& operator=(const Talker&) = delete;
  void on_ready(std::function<void()>) override {}
  std::optional<std::string> read() override { return "news"; }
  std::string finish_early() override { return "last words"; }

 private:
  bool& alive_;
};

class StreamsTest : public testing::Test {
 protected:
  StreamsTest() { registry_.put_instance(instance_); }

  Principal key(Role role, const std::string& owner) {
    ApiKey key;
    key.id = make_uuid();
    key.role = role;
    key.owner = owner;
    key.secret_sha256 = sha256(to_string(key.id));
    keys_.add(key);
    return {.key_id = key.id, .role = role, .owner = owner, .secret_sha256 = key.secret_sha256};
  }
  Result<std::shared_ptr<BodyStream>> open(const Principal& caller,
                                           std::optional<StreamSubject> subject = std::nullopt,
                                           StreamKind kind = StreamKind::kEvents) {
    return open_stream(streams_, {.caller = caller, .subject = std::move(subject), .kind = kind},
                       [this]() -> Result<std::shared_ptr<BodyStream>> {
                         return std::shared_ptr<BodyStream>(std::make_shared<Talker>(alive_));
                       });
  }
  StreamSubject subject(std::int32_t tap_index = 0) const {
    return {.instance_id = instance_.id, .session_id = instance_.session_id, .tap_index = tap_index};
  }
  /// Opens `count` streams of one owner, each with a key of its own; how many were opened.
  std::size_t fill(Role role, const std::string& owner, std::size_t count) {
    std::size_t opened = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto kind = i % 2 == 0 ? StreamKind::kEvents : StreamKind::kCheck;
      auto stream = open(key(role, owner), std::nullopt, kind);
      if (!stream) continue;
      open_.push_back(std::move(*stream));
      ++opened;
    }
    return opened;
  }

  KeyRing keys_;
  Registry registry_;
  Instance instance_{
      .id = "vm-1", .guest_address = {}, .tap = "tap0", .owner = "alice", .session_id = make_uuid()};
  StreamLimits limits_;
  Streams streams_{keys_, registry_};
  bool alive_ = false;
  std::vector<std::shared_ptr<BodyStream>> open_;
};

TEST_F(StreamsTest, EndWithTheirKeyAtOnceAndWithoutAnotherWord) {
  const Principal caller = key(Role::kTenant, "alice");
  const auto stream = open(caller).value();
  int woken = 0;
  stream->on_ready([&woken] { ++woken; });
  EXPECT_EQ(stream->read(), "news");
  keys_.remove(caller.key_id);
  streams_.recheck();
  EXPECT_EQ(woken, 1);
  EXPECT_FALSE(alive_) << "what it holds is given back at once, not when the client has taken the end";
  EXPECT_EQ(stream->read(), std::nullopt);
}

TEST_F(StreamsTest, SayNothingMoreEvenIfNobodyNotifiedThem) {
  const Principal caller = key(Role::kTenant, "alice");
  const auto stream = open(caller).value();
  keys_.remove(caller.key_id);
  EXPECT_EQ(stream->read(), std::nullopt);
}

TEST_F(StreamsTest, EndWithTheSessionTheyAreAbout) {
  const Principal caller = key(Role::kAdmin, "admin");
  const auto events = open(caller).value();
  const auto ended = [&](const std::function<void()>& change) {
    const auto stream = open(caller, subject(7)).value();
    EXPECT_EQ(stream->read(), "news");
    change();
    streams_.recheck();
    const bool over = !alive_ && stream->read() == "last words" && !stream->read();
    registry_.put_instance(instance_);
    return over;
  };
  Instance changed = instance_;
  EXPECT_FALSE(ended([&] { registry_.put_instance(instance_); }));
  EXPECT_TRUE(ended([&] { registry_.remove_instance("vm-1"); }));
  EXPECT_TRUE(ended([&] {
    changed.state = InstanceState::kStopped;
    registry_.put_instance(changed);
  }));
  EXPECT_TRUE(ended([&] {
    changed = instance_;
    changed.session_id = make_uuid();
    registry_.put_instance(changed);
  }));
  EXPECT_TRUE(ended([&] {
    changed = instance_;
    changed.tap_index = 8;  // armed by another interface than the one that is looked at
    registry_.put_instance(changed);
  }));
  EXPECT_FALSE(ended([&] {
    changed.tap_index = 7;
    registry_.put_instance(changed);
  }));
  EXPECT_EQ(events->read(), "news") << "it is about no session";
}

TEST_F(StreamsTest, EndForWhoDoesNotSeeTheInstanceAnyMore) {
  const auto of_alice = open(key(Role::kTenant, "alice"), subject()).value();
  const auto of_admin = open(key(Role::kAdmin, "admin"), subject()).value();
  Instance given_away = instance_;
  given_away.owner = "bob";
  registry_.put_instance(given_away);
  streams_.recheck();
  EXPECT_EQ(of_alice->read(), "last words");
  EXPECT_EQ(of_alice->read(), std::nullopt);
  EXPECT_EQ(of_admin->read(), "news");
}

TEST_F(StreamsTest, OfOneOwnerAreAsManyAsItsShareHoweverManyKeysItHas) {
  EXPECT_EQ(fill(Role::kTenant, "alice", 100), limits_.tenant);
  const auto refused = open(key(Role::kTenant, "alice"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kStreamLimit);
  EXPECT_EQ(refused.error().limit, static_cast<std::int64_t>(limits_.tenant));
  EXPECT_EQ(refused.error().current, static_cast<std::int64_t>(limits_.tenant));
  EXPECT_THAT(refused.error().detail, HasSubstr("end one"));
  EXPECT_TRUE(open(key(Role::kTenant, "bob")));
  EXPECT_TRUE(open(key(Role::kAdmin, "alice"))) << "the same word in another role is another owner";
  open_.pop_back();
  EXPECT_TRUE(open(key(Role::kTenant, "alice")));
}

TEST_F(StreamsTest, OfOneKindLeaveTheirOwnerRoomForAnother) {
  const Principal alice = key(Role::kTenant, "alice");
  for (std::size_t i = 0; i < share_of_one_kind(limits_.tenant); ++i) open_.push_back(open(alice).value());
  const auto refused = open(alice);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kStreamLimit);
  EXPECT_EQ(refused.error().limit, static_cast<std::int64_t>(share_of_one_kind(limits_.tenant)));
  EXPECT_THAT(refused.error().detail, HasSubstr("6 event streams"));
  EXPECT_TRUE(open(alice, std::nullopt, StreamKind::kCheck));
  EXPECT_TRUE(open(key(Role::kTenant, "bob")));
}

TEST_F(StreamsTest, OfTenantsLeaveTheAdminsTheirReserve) {
  std::size_t opened = 0;
  for (int i = 0; i < 100; ++i) opened += fill(Role::kTenant, fmt::format("tenant-{}", i), limits_.tenant);
  EXPECT_EQ(opened, limits_.node - limits_.admins_reserve);
  EXPECT_EQ(fill(Role::kAdmin, "admin", 100), limits_.admins_reserve);
  EXPECT_FALSE(open(key(Role::kAdmin, "other")));
  EXPECT_EQ(open_.size(), limits_.node);
}

TEST_F(StreamsTest, OfOneAdminLeaveRoomForAnother) {
  EXPECT_EQ(fill(Role::kAdmin, "monitoring", 100), limits_.admin);
  EXPECT_TRUE(open(key(Role::kAdmin, "admin")));
}

TEST_F(StreamsTest, ThatMakeNothingTakeNoShare) {
  const Principal caller = key(Role::kTenant, "alice");
  for (int i = 0; i < 100; ++i) {
    const auto failed =
        open_stream(streams_, {.caller = caller}, []() -> Result<std::shared_ptr<BodyStream>> {
          return Error{ErrorCode::kForbidden, "no"};
        });
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, ErrorCode::kForbidden);
  }
  EXPECT_TRUE(open(caller));
}

TEST(StreamsOfTheNode, EndWithItsControl) {
  bool alive = false;
  std::shared_ptr<BodyStream> stream;
  {
    KeyRing keys;
    Registry registry;
    Streams streams(keys, registry);
    stream = open_stream(streams, {.caller = {}}, [&] { return std::make_shared<Talker>(alive); }).value();
  }
  EXPECT_FALSE(alive);
  EXPECT_EQ(stream->read(), std::nullopt);
}

// --- Through the API.

TEST(StreamsApi, EventsEndWhenTheirKeyIsDeletedOrReplaced) {
  Node node;
  const std::string tenant = node.tenant_key();
  // The second: the first is the admin's.
  const auto id = Node::json(node.call("GET", "/api-keys")).at("api_keys").at(1).at("id").as_string();
  const Response of_tenant = node.call("GET", "/events", "", tenant);
  const Response of_admin = node.call("GET", "/events");
  ASSERT_EQ(of_tenant.status, 200U);
  EXPECT_TRUE(of_tenant.stream->read());
  EXPECT_EQ(node.call("DELETE", "/api-keys/" + std::string(id)).status, 204U);
  EXPECT_EQ(of_tenant.stream->read(), std::nullopt);
  node.control().set_admin_key(Node::kAdminKey);
  EXPECT_TRUE(of_admin.stream->read()) << "a reload that finds the same key";
  node.control().set_admin_key("pwk_another-secret-that-is-long-enough-for-a-key");
  EXPECT_EQ(of_admin.stream->read(), std::nullopt);
}

TEST(StreamsApi, ACheckEndsWithItsSession) {
  for (const std::string end : {"stop", "delete", "replace"}) {
    Node node;
    node.put("vm-1");
    const auto forward =
        Node::json(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})"));
    const std::string id(forward.at("port_forward").at("id").as_string());
    const Response check = node.call("GET", "/instances/vm-1/port-forwards/" + id + "/check");
    ASSERT_NE(check.stream, nullptr) << check.body;
    if (end == "stop") node.call("POST", "/instances/vm-1/stop");
    if (end == "delete") node.call("DELETE", "/instances/vm-1");
    if (end == "replace") {
      node.call("PUT", "/instances/vm-1",
                R"({"guest_address": "198.19.0.3", "tap": "tap-vm-1", "owner": "bob"})");
    }
    const std::string text = check.stream->read().value_or("");
    EXPECT_EQ(boost::json::parse(text).at("check").at("ok"), false) << end;
    EXPECT_EQ(check.stream->read(), std::nullopt) << end;
  }
}

TEST(StreamsApi, SixtyFourOfOneTenantDoNotLockOutTheAdmin) {
  Node node;
  const std::string tenant = node.tenant_key();
  std::vector<Response> open;
  for (int i = 0; i < 64; ++i) open.push_back(node.call("GET", "/events", "", tenant));
  const Response& refused = open.back();
  EXPECT_EQ(refused.status, 429U);
  EXPECT_EQ(Node::code(refused), "stream_limit");
  EXPECT_EQ(Node::json(refused).at("limit"), share_of_one_kind(StreamLimits().tenant));
  EXPECT_NE(Node::header(refused, "Retry-After"), "");
  EXPECT_NE(node.call("GET", "/events").stream, nullptr);
  EXPECT_NE(node.call("GET", "/events", "", node.tenant_key("bob")).stream, nullptr);
  EXPECT_EQ(node.stats.streams_refused, 64 - share_of_one_kind(StreamLimits().tenant));
}

TEST_F(StreamsTest, TheConfigurationSaysHowManyATenantHas) {
  streams_.set_tenant_share(2);
  EXPECT_EQ(fill(Role::kTenant, "alice", 5), 2U);
  const auto refused = open(key(Role::kTenant, "alice"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kStreamLimit);
  EXPECT_THAT(refused.error().detail, HasSubstr("owners.max_streams"));
  EXPECT_EQ(fill(Role::kTenant, "bob", 5), 2U);
  EXPECT_EQ(fill(Role::kAdmin, "alice", 5), 5U);
  streams_.set_tenant_share(3);
  EXPECT_EQ(fill(Role::kTenant, "alice", 5), 1U);
}

TEST(StreamLimits, AreDocumentedInTheContract) {
  const StreamLimits limits;
  const std::string text(openapi_json());
  EXPECT_THAT(text, HasSubstr(fmt::format("at most {} open streams, a tenant {} and an admin {},",
                                          limits.node, limits.tenant, limits.admin)));
  EXPECT_THAT(
      text, HasSubstr(fmt::format("at most {} are of keys for one and the same instance", limits.instance)));
  EXPECT_THAT(text, HasSubstr(fmt::format("{} are reserved for admins", limits.admins_reserve)));
}

}  // namespace
}  // namespace portway
