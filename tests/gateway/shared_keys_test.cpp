// The fleet's keys and profiles at two gateways, with a real etcd.
#include "gateway/shared_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "api/shared_records.h"
#include "gateway/shared_profiles.h"
#include "tests/fleet/fleet_world.h"

namespace portway::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

class SharedKeysAtGatewaysTest : public FleetTest {
 protected:
  void TearDown() override {
    for (auto* admin : {&one_, &two_}) admin->reset();
    profiles_.reset();
    FleetTest::TearDown();
  }

  std::unique_ptr<EtcdKeyAdmin> make_admin(EtcdOptions options) {
    auto admin =
        std::make_unique<EtcdKeyAdmin>(EtcdKeyAdmin::Parts{.executor = context_.get_executor(),
                                                           .etcd = make(std::move(options)),
                                                           .keys = keys_,
                                                           .on_change = [this] { ++changes_; },
                                                           .clock = {.now = [this] { return now_(); }}});
    until([&] { return admin->stats().warm; }, "warm");
    return admin;
  }
  void start_gateways() {
    start_one();
    one_ = make_admin(options());
    two_ = make_admin(options());
  }
  NewKey create(EtcdKeyAdmin& admin, KeySpec spec = {.owner = "alice"}) {
    auto made = wait(admin.create_key(std::move(spec), kCaller));
    if (!made) throw std::runtime_error(made.error().detail);
    return std::move(*made);
  }
  static bool knows(EtcdKeyAdmin& admin, const std::string& secret) {
    return static_cast<bool>(admin.keys().authenticate("Bearer " + secret));
  }
  template <class Value>
  static ErrorCode code(const Result<Value>& result) {
    return result ? ErrorCode::kInternal : result.error().code;
  }

  const Principal kCaller{.role = Role::kAdmin, .owner = "ops"};
  const FleetKeys keys_{"/portway/"};
  std::function<Timestamp()> now_ = portway::now;
  int changes_ = 0;
  std::unique_ptr<EtcdKeyAdmin> one_;
  std::unique_ptr<EtcdKeyAdmin> two_;
  std::unique_ptr<SharedProfiles> profiles_;
};

TEST_F(SharedKeysAtGatewaysTest, AKeyIsValidWhereItWasMadeAtOnceAndThenElsewhere) {
  start_gateways();
  const NewKey made = create(*one_);
  EXPECT_EQ(made.status.home, KeyHome::kFleet);
  EXPECT_TRUE(knows(*one_, made.secret));
  until([&] { return knows(*two_, made.secret); }, "known at the other one");
  ApiKey elsewhere = *two_->keys().find(made.status.key.id);
  elsewhere.last_used_at.reset();  // by that question
  EXPECT_EQ(elsewhere, made.status.key);
  const int before = changes_;
  ASSERT_TRUE(wait(two_->delete_key(made.status.key.id, kCaller)));
  EXPECT_FALSE(knows(*two_, made.secret));
  until([&] { return !knows(*one_, made.secret); }, "gone at the other one");
  EXPECT_EQ(changes_, before + 2);
  EXPECT_EQ(code(wait(one_->delete_key(made.status.key.id, kCaller))), ErrorCode::kNotFound);
  EXPECT_EQ(code(wait(one_->change_key(made.status.key.id, {}, kCaller))), ErrorCode::kNotFound);
  EXPECT_EQ(code(wait(one_->rotate_key(made.status.key.id, 0s, kCaller))), ErrorCode::kNotFound);
}

TEST_F(SharedKeysAtGatewaysTest, AChangeIsMadeUponWhatAnotherGatewayHasWritten) {
  start_gateways();
  const Uuid id = create(*one_).status.key.id;
  until([&] { return two_->keys().find(id) != nullptr; }, "known");
  // Both begin with the same record.
  std::optional<Result<KeyStatus>> first;
  std::optional<Result<NewKey>> second;
  boost::asio::co_spawn(
      context_, one_->change_key(id, {.description = "of a job"}, kCaller),
      [&](const std::exception_ptr&, Result<KeyStatus> result) { first = std::move(result); });
  boost::asio::co_spawn(
      context_, two_->rotate_key(id, 1h, kCaller),
      [&](const std::exception_ptr&, Result<NewKey> result) { second = std::move(result); });
  until([&] { return first && second; }, "both");
  ASSERT_TRUE(*first);
  ASSERT_TRUE(*second);
  const auto is_both = [&](EtcdKeyAdmin& admin) {
    const ApiKey* key = admin.keys().find(id);
    return key->description == "of a job" && key->secret_sha256 == sha256((*second)->secret) &&
           key->old_secret;
  };
  until([&] { return is_both(*one_) && is_both(*two_); }, "both changes");
}

TEST_F(SharedKeysAtGatewaysTest, ARotationLeavesTheOldSecretForAsLongAsAskedFor) {
  start_gateways();
  const NewKey made = create(*one_, {.owner = "alice", .expires_at = now() + 1h});
  const NewKey rotated = wait(one_->rotate_key(made.status.key.id, 24h, kCaller)).value();
  EXPECT_EQ(rotated.status.old_secret_valid_until, made.status.key.expires_at);
  EXPECT_TRUE(knows(*one_, made.secret));
  EXPECT_TRUE(knows(*one_, rotated.secret));
  const NewKey again = wait(one_->rotate_key(made.status.key.id, 0s, kCaller)).value();
  EXPECT_FALSE(knows(*one_, made.secret));
  EXPECT_FALSE(knows(*one_, rotated.secret));
  EXPECT_TRUE(knows(*one_, again.secret));
  now_ = [] { return now() + 2h; };
  const auto refused = wait(one_->rotate_key(made.status.key.id, 0s, kCaller));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().field, "expires_at");
  const int before = changes_;
  one_->look_at_ends();
  EXPECT_GT(changes_, before);
}

TEST_F(SharedKeysAtGatewaysTest, HaveTheRulesOfANodesKeys) {
  start_gateways();
  EXPECT_EQ(code(wait(one_->create_key({.owner = ""}, kCaller))), ErrorCode::kInvalidRequest);
  EXPECT_EQ(
      code(wait(one_->create_key({.role = Role::kAdmin, .owner = "ops", .instance_id = "vm-1"}, kCaller))),
      ErrorCode::kInvalidRequest);
  const Uuid id = create(*one_).status.key.id;
  EXPECT_EQ(code(wait(one_->change_key(id, {.description = std::string(257, 'x')}, kCaller))),
            ErrorCode::kInvalidRequest);
  EXPECT_EQ(code(wait(one_->change_key(id, {.expires_at = now() - 1h}, kCaller))),
            ErrorCode::kInvalidRequest);
  ApiKey own;
  own.id = make_uuid();
  own.secret_sha256 = sha256("own");
  one_->keys().add(own);
  EXPECT_EQ(code(wait(one_->change_key(own.id, {}, kCaller))), ErrorCode::kForbidden);
  EXPECT_EQ(code(wait(one_->rotate_key(own.id, 0s, kCaller))), ErrorCode::kForbidden);
  EXPECT_EQ(code(wait(one_->delete_key(own.id, kCaller))), ErrorCode::kForbidden);
}

TEST_F(SharedKeysAtGatewaysTest, AFullFleetMakesRoomByWhatHasExpired) {
  start_gateways();
  const Uuid first = create(*one_, {.owner = "alice", .expires_at = now() + 1h}).status.key.id;
  for (std::size_t i = 1; i < kApiKeysMax; ++i) {
    ApiKey key;
    key.id = make_uuid();
    key.owner = "bob";
    key.secret_sha256 = sha256(std::to_string(i));
    put(keys_.api_key(key.id), to_record(key));
  }
  until([&] { return one_->keys().size() == kApiKeysMax; }, "all known");
  const auto refused = wait(one_->create_key({.owner = "alice"}, kCaller));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kQuotaExceeded);
  EXPECT_EQ(refused.error().limit, static_cast<std::int64_t>(kApiKeysMax));
  now_ = [] { return now() + 2h; };
  EXPECT_TRUE(wait(one_->create_key({.owner = "alice"}, kCaller)));
  EXPECT_EQ(one_->keys().find(first), nullptr);
}

TEST_F(SharedKeysAtGatewaysTest, WithoutEtcdKeysStayValidAndNothingIsChanged) {
  start_gateways();
  one_.reset();
  EtcdOptions impatient = options();
  impatient.request_timeout = 2s;
  one_ = make_admin(impatient);
  const NewKey made = create(*one_);
  members_.front()->kill();
  const auto refused = wait(one_->create_key({.owner = "alice"}, kCaller));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kStoreUnavailable);
  EXPECT_EQ(refused.error().detail.find("198.18"), std::string::npos)
      << "the addresses of etcd are nobody's business";
  EXPECT_EQ(code(wait(one_->delete_key(made.status.key.id, kCaller))), ErrorCode::kStoreUnavailable);
  EXPECT_EQ(code(wait(one_->change_key(made.status.key.id, {}, kCaller))), ErrorCode::kStoreUnavailable);
  EXPECT_TRUE(knows(*one_, made.secret));
  members_.front()->restart();
  until([&] { return !one_->stats().stale; }, "etcd is back");
  EXPECT_TRUE(wait(one_->delete_key(made.status.key.id, kCaller)));
  EXPECT_FALSE(knows(*one_, made.secret));
}

TEST_F(SharedKeysAtGatewaysTest, AnAnswerThatIsLostIsSaidAndTheChangeCanBeAskedForAgain) {
  start_gateways();
  one_.reset();
  EtcdOptions impatient = options();
  impatient.request_timeout = 2s;
  one_ = make_admin(impatient);
  const NewKey made = create(*one_);
  members_.front()->stop();
  const auto lost = wait(one_->delete_key(made.status.key.id, kCaller));
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, ErrorCode::kStoreUnavailable);
  EXPECT_THAT(lost.error().detail, HasSubstr("look before you try again"));
  const auto unknown = wait(one_->create_key({.owner = "bob"}, kCaller));
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().detail, HasSubstr("key ")) << "which one to look for";
  members_.front()->resume();
  until([&] { return !one_->stats().stale; }, "etcd is back");
  const auto again = wait(one_->delete_key(made.status.key.id, kCaller));
  EXPECT_TRUE(again || again.error().code == ErrorCode::kNotFound);
  until([&] { return !knows(*one_, made.secret) && !knows(*two_, made.secret); }, "gone");
  // Whether the other one was made is the same everywhere.
  create(*two_);
  until([&] { return one_->keys().size() == two_->keys().size(); }, "the same");
}

TEST_F(SharedKeysAtGatewaysTest, WhatIsNoKeyCanOnlyBeDeleted) {
  start_gateways();
  const NewKey made = create(*one_);
  const Uuid id = made.status.key.id;
  put(keys_.api_key(id), "{}");
  until([&] { return one_->unreadable() == 1; }, "seen");
  EXPECT_FALSE(knows(*one_, made.secret));
  EXPECT_EQ(code(wait(one_->change_key(id, {}, kCaller))), ErrorCode::kForbidden);
  EXPECT_TRUE(wait(one_->delete_key(id, kCaller)));
  EXPECT_EQ(one_->unreadable(), 0U);
}

// --- Profiles.

TEST_F(SharedKeysAtGatewaysTest, ProfilesAreWrittenAndDeleted) {
  start_one();
  profiles_ = std::make_unique<SharedProfiles>(
      SharedProfiles::Parts{.executor = context_.get_executor(), .etcd = make(options()), .keys = keys_});
  EXPECT_EQ(code(wait(profiles_->put("large", {}, kCaller))), ErrorCode::kStoreUnavailable) << "not read yet";
  until([&] { return profiles_->stats().warm; }, "warm");
  const auto call = [&](auto handler, const std::string& name, const std::string& body) {
    Request request;
    request.body = body;
    request.headers["content-type"] = "application/json";
    const Call asked{.request = request, .caller = kCaller, .path = {name}, .query = {}};
    return wait(handler(*profiles_, asked));
  };
  const auto made = call(put_shared_profile, "large", R"({"max_forwarded_ports": 9, "max_connections": 7})");
  ASSERT_TRUE(made);
  EXPECT_EQ(made->status, 201U);
  EXPECT_EQ(profiles_->all().at("large").max_forwarded_ports, 9U);
  const auto listed = list_shared_profiles(*profiles_);
  EXPECT_THAT(listed->body, HasSubstr(R"("max_connections":7)"));
  const auto replaced = call(put_shared_profile, "large", "{}");
  ASSERT_TRUE(replaced);
  EXPECT_EQ(replaced->status, 200U);
  EXPECT_EQ(profiles_->all().at("large"), Profile());
  const auto wrong = call(put_shared_profile, "large", R"({"max_forwarded_ports": 65536})");
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().field, "max_forwarded_ports");
  EXPECT_EQ(code(call(put_shared_profile, "a b", "{}")), ErrorCode::kInvalidRequest);
  EXPECT_EQ(code(call(put_shared_profile, "large", R"({"allowed_cidrs": []})")), ErrorCode::kUnknownField);
  EXPECT_EQ(call(delete_shared_profile, "large", "")->status, 204U);
  EXPECT_TRUE(profiles_->all().empty());
  EXPECT_EQ(code(call(delete_shared_profile, "large", "")), ErrorCode::kNotFound);
  EXPECT_EQ(code(call(delete_shared_profile, "a b", "")), ErrorCode::kNotFound);
}

}  // namespace
}  // namespace portway::test
