#include "control/shared_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace portway {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

class SharedKeysTest : public testing::Test {
 protected:
  static ApiKey key_with(std::string_view secret) {
    ApiKey key;
    key.id = make_uuid();
    key.owner = "alice";
    key.secret_sha256 = sha256(secret);
    return key;
  }
  void set(std::initializer_list<ApiKey> keys) {
    std::map<Uuid, ApiKey> by_id;
    for (const ApiKey& key : keys) by_id.emplace(key.id, key);
    shared_.set(std::move(by_id));
  }
  /// Whose key has this secret; nil: nobody's that is valid.
  Uuid id_by(const std::string& secret) {
    const auto caller = ring_.authenticate("Bearer " + secret);
    return caller ? caller->key_id : Uuid{};
  }

  Timestamp now_ = now();
  std::chrono::milliseconds uptime_{0};
  KeyRing ring_{{.now = [this] { return now_; }, .uptime = [this] { return uptime_; }}};
  SharedKeys shared_{ring_};
};

TEST_F(SharedKeysTest, AreValidForAsLongAsTheFleetHasThem) {
  const ApiKey one = key_with("one");
  const ApiKey two = key_with("two");
  set({one, two});
  EXPECT_EQ(id_by("one"), one.id);
  EXPECT_EQ(id_by("two"), two.id);
  EXPECT_TRUE(ring_.is_fleets(one.id));
  EXPECT_EQ(ring_.status_of(*ring_.find(one.id)).home, KeyHome::kFleet);
  EXPECT_TRUE(ring_.unsaved_uses().empty()) << "no use of them is stored";
  set({two});
  EXPECT_EQ(id_by("one"), Uuid{});
  EXPECT_EQ(id_by("two"), two.id);
  set({});
  EXPECT_EQ(ring_.size(), 0U);
  EXPECT_EQ(shared_.fault(), "");
}

TEST_F(SharedKeysTest, AKeyThatChangesKeepsWhenItWasUsed) {
  ApiKey key = key_with("before");
  set({key});
  id_by("before");
  key.description = "of a job";
  set({key});
  EXPECT_EQ(ring_.find(key.id)->description, "of a job");
  EXPECT_EQ(ring_.find(key.id)->last_used_at, now_);
  key.old_secret = {.sha256 = key.secret_sha256, .valid_until = now_ + 1h};
  key.secret_sha256 = sha256("after");
  set({key});
  EXPECT_EQ(ring_.find(key.id)->last_used_at, now_);
  EXPECT_EQ(id_by("before"), key.id);
  EXPECT_EQ(id_by("after"), key.id);
  key.old_secret.reset();
  set({key});
  EXPECT_EQ(id_by("before"), Uuid{});
  EXPECT_EQ(id_by("after"), key.id);
}

TEST_F(SharedKeysTest, AnExpiryIsNotPutOffByAClockThatIsSetBackWhileTheKeyChanges) {
  ApiKey key = key_with("secret");
  key.expires_at = now_ + 1h;
  set({key});
  now_ -= 24h;
  key.description = "changed";
  set({key});
  uptime_ += 1h;
  EXPECT_EQ(id_by("secret"), Uuid{});
}

TEST_F(SharedKeysTest, NeverTakeThePlaceOfAnOwnKeyWithTheSameId) {
  const ApiKey own = key_with("own");
  ring_.add(own);
  ApiKey other = key_with("other");
  other.id = own.id;
  set({other});
  EXPECT_EQ(id_by("other"), Uuid{});
  EXPECT_EQ(id_by("own"), own.id);
  EXPECT_THAT(shared_.fault(), HasSubstr(to_string(own.id)));
  // Once the own one is gone it is valid.
  ring_.remove(own.id);
  shared_.apply();
  EXPECT_EQ(id_by("other"), own.id);
  EXPECT_EQ(shared_.fault(), "");
  // And no more when there is one again.
  ring_.add(own);
  shared_.apply();
  EXPECT_EQ(id_by("other"), Uuid{});
  set({});
  EXPECT_EQ(id_by("own"), own.id);
}

TEST_F(SharedKeysTest, NeverTakeThePlaceOfAnOwnKeyWithTheSameSecret) {
  ApiKey own = key_with("new");
  own.old_secret = {.sha256 = sha256("old"), .valid_until = now_ + 1h};
  ring_.add(own);
  const ApiKey fleets = key_with("new");
  const ApiKey of_old = key_with("old");
  set({fleets, of_old});
  EXPECT_EQ(id_by("new"), own.id);
  EXPECT_EQ(id_by("old"), own.id);
  EXPECT_THAT(shared_.fault(), HasSubstr(to_string(fleets.id)));
  EXPECT_THAT(shared_.fault(), HasSubstr("1 more"));
  EXPECT_EQ(ring_.size(), 1U);
}

TEST_F(SharedKeysTest, OfTwoWithOneSecretTheFirstIsValid) {
  const ApiKey first = key_with("same");
  const ApiKey second = key_with("same");
  set({first, second});
  EXPECT_EQ(id_by("same"), first.id);
  EXPECT_THAT(shared_.fault(), HasSubstr(to_string(second.id)));
  set({second});
  EXPECT_EQ(id_by("same"), second.id);
  EXPECT_EQ(shared_.fault(), "");
}

TEST_F(SharedKeysTest, ThoseBeyondTheMaximumAreLeftOut) {
  std::map<Uuid, ApiKey> keys;
  for (std::size_t i = 0; i < SharedKeys::kMax + 3; ++i) {
    ApiKey key = key_with(std::to_string(i));
    keys.emplace(key.id, key);
  }
  auto later = keys;
  later.erase(later.begin());
  shared_.set(std::move(later));
  EXPECT_EQ(ring_.size(), SharedKeys::kMax);
  EXPECT_THAT(shared_.fault(), HasSubstr("1 more"));
  shared_.set(std::move(keys));
  EXPECT_EQ(ring_.size(), SharedKeys::kMax);
  EXPECT_NE(id_by("0"), Uuid{});
  EXPECT_THAT(shared_.fault(), HasSubstr("2 more"));
}

}  // namespace
}  // namespace portway
