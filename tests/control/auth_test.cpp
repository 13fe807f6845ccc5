// Keys: what they look like, whom they let in and how often, and the admin key's file.
#include "control/auth.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace portway {
namespace {

using namespace std::chrono_literals;

ApiKey key_of(std::string_view secret, Role role = Role::kTenant, const std::string& owner = "alice") {
  ApiKey key;
  key.id = make_uuid();
  key.role = role;
  key.owner = owner;
  key.secret_sha256 = sha256(secret);
  return key;
}

TEST(Auth, HashesWithSha256) {
  const Sha256 hash = sha256("abc");  // FIPS 180-2, appendix B.1
  EXPECT_EQ(hash[0], 0xba);
  EXPECT_EQ(hash[1], 0x78);
  EXPECT_EQ(hash[31], 0xad);
}

TEST(Auth, APrincipalIsLoggedByItsKeyOrAsTheUserThatItIs) {
  const Uuid id = make_uuid();
  EXPECT_EQ(who({.key_id = id, .role = Role::kAdmin, .owner = "admin"}), "key " + to_string(id));
  EXPECT_EQ(who({.key_id = {}, .role = Role::kAdmin, .owner = "uid:0"}), "uid:0");
}

TEST(Auth, ATenantSeesItsOwnersInstancesAndAnAdminAll) {
  Instance instance;
  instance.owner = "alice";
  EXPECT_TRUE((Principal{.key_id = {}, .role = Role::kTenant, .owner = "alice"}.sees(instance)));
  EXPECT_FALSE((Principal{.key_id = {}, .role = Role::kTenant, .owner = "bob"}.sees(instance)));
  EXPECT_TRUE((Principal{.key_id = {}, .role = Role::kAdmin, .owner = "bob"}.sees(instance)));
  instance.id = "vm-1";
  Principal of_one{.key_id = {}, .role = Role::kTenant, .owner = "alice", .instance_id = "vm-1"};
  EXPECT_TRUE(of_one.sees(instance));
  EXPECT_FALSE(of_one.sees("alice", "vm-2"));
  EXPECT_FALSE(of_one.sees("bob", "vm-1")) << "it passed to another owner";
}

class KeyRingTest : public testing::Test {
 protected:
  ErrorCode refusal(const std::string& authorization) {
    const auto caller = ring_.authenticate(authorization);
    return caller ? ErrorCode::kInternal : caller.error().code;
  }

  KeyRing ring_;
};

TEST_F(KeyRingTest, LetsAKnownKeyInAsItsOwner) {
  const ApiKey key = key_of("pwk_secret");
  ring_.add(key);
  for (const std::string scheme : {"Bearer", "bearer", "BEARER"}) {
    const auto caller = ring_.authenticate(scheme + " pwk_secret");
    ASSERT_TRUE(caller) << scheme;
    EXPECT_EQ(caller->key_id, key.id);
    EXPECT_EQ(caller->role, Role::kTenant);
    EXPECT_EQ(caller->owner, "alice");
  }
}

TEST_F(KeyRingTest, RefusesWhatIsNoKnownKey) {
  ring_.add(key_of("pwk_secret"));
  for (const std::string authorization :
       {"", "Bearer", "Bearer ", "pwk_secret", "Basic pwk_secret", "Bearer  pwk_secret", "Bearer pwk_secre",
        "Bearer pwk_secret ", "Bearer pwk_Secret"}) {
    EXPECT_EQ(refusal(authorization), ErrorCode::kUnauthorized) << authorization;
  }
}

TEST_F(KeyRingTest, HasOneKeyForAnIdAndOneForASecret) {
  ApiKey key = key_of("pwk_one");
  ring_.add(key);
  key.secret_sha256 = sha256("pwk_two");
  ring_.add(key);
  EXPECT_EQ(ring_.size(), 1U);
  EXPECT_EQ(refusal("Bearer pwk_one"), ErrorCode::kUnauthorized);
  const ApiKey same_secret = key_of("pwk_two", Role::kAdmin, "admin");
  ring_.add(same_secret);
  EXPECT_EQ(ring_.size(), 1U);
  EXPECT_EQ(ring_.find(key.id), nullptr);
  EXPECT_EQ(ring_.authenticate("Bearer pwk_two").value().key_id, same_secret.id);
  EXPECT_TRUE(ring_.remove(same_secret.id));
  EXPECT_FALSE(ring_.remove(same_secret.id));
  EXPECT_EQ(refusal("Bearer pwk_two"), ErrorCode::kUnauthorized);
}

TEST_F(KeyRingTest, ListsItsKeysById) {
  const ApiKey first = key_of("pwk_b");
  const ApiKey second = key_of("pwk_a");
  ring_.add(second);
  ring_.add(first);
  const auto all = ring_.all();
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[0]->id, first.id);
  EXPECT_EQ(all[1]->id, second.id);
}

TEST(AdminUser, IsAnAdminWithoutAKey) {
  const Principal caller = admin_user(1000);
  EXPECT_TRUE(caller.key_id.is_nil());
  EXPECT_EQ(caller.role, Role::kAdmin);
  EXPECT_EQ(caller.owner, "uid:1000");
}

// --- Ends.

class EndingKeys : public testing::Test {
 protected:
  bool lets_in(const std::string& secret) {
    return static_cast<bool>(ring_.authenticate("Bearer " + secret));
  }
  void pass(std::chrono::milliseconds time) {
    now_ += time;
    uptime_ += time;
  }
  ApiKey ending_in(std::chrono::milliseconds time) {
    ApiKey key = key_of("pwk_ending");
    key.expires_at = now_ + time;
    return key;
  }

  Timestamp now_{std::chrono::hours(24 * 365 * 50)};
  std::chrono::milliseconds uptime_{0};
  KeyRing ring_{{.now = [this] { return now_; }, .uptime = [this] { return uptime_; }}};
};

TEST_F(EndingKeys, AreRefusedFromTheirEndOnWithTheReason) {
  ring_.add(ending_in(1000ms));
  EXPECT_EQ(ring_.until_next_end(), 1000ms);
  pass(999ms);
  EXPECT_TRUE(lets_in("pwk_ending"));
  EXPECT_TRUE(ring_.drop_ended().empty());
  pass(1ms);
  const auto refused = ring_.authenticate("Bearer pwk_ending");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnauthorized);
  EXPECT_NE(refused.error().detail.find("expired at 2019-12-20T00:00:01.000Z"), std::string::npos)
      << refused.error().detail;
  EXPECT_EQ(ring_.drop_ended().size(), 1U);
  EXPECT_TRUE(ring_.drop_ended().empty()) << "it is reported once";
  EXPECT_EQ(ring_.until_next_end(), std::nullopt);
}

TEST_F(EndingKeys, DoNotLastLongerIfTheClockIsSetBack) {
  ring_.add(ending_in(1h));
  now_ -= 24h;
  pass(1h - 1ms);
  EXPECT_TRUE(lets_in("pwk_ending"));
  EXPECT_EQ(ring_.until_next_end(), 1ms);
  pass(1ms);
  EXPECT_FALSE(lets_in("pwk_ending"));
  EXPECT_EQ(ring_.drop_ended().size(), 1U);
  now_ -= 24h;
  EXPECT_FALSE(lets_in("pwk_ending"));
}

TEST_F(EndingKeys, EndEarlyIfTheClockIsSetForwardAndReturnIfThatWasAMistake) {
  ring_.add(ending_in(1h));
  now_ += 24h;
  EXPECT_FALSE(lets_in("pwk_ending"));
  EXPECT_EQ(ring_.drop_ended().size(), 1U);
  now_ -= 24h;
  EXPECT_TRUE(lets_in("pwk_ending"));
  EXPECT_TRUE(ring_.drop_ended().empty());
  pass(1h);
  EXPECT_EQ(ring_.drop_ended().size(), 1U);
}

TEST_F(EndingKeys, CanGetALaterEndOrNone) {
  const ApiKey key = ending_in(1s);
  ring_.add(key);
  pass(1s);
  EXPECT_FALSE(lets_in("pwk_ending"));
  EXPECT_EQ(ring_.first_expired()->id, key.id);
  ring_.change(key.id, {.expires_at = now_ + 1s});
  EXPECT_TRUE(lets_in("pwk_ending"));
  EXPECT_EQ(ring_.first_expired(), nullptr);
  pass(1s);
  EXPECT_FALSE(lets_in("pwk_ending"));
  ring_.change(key.id, {.expires_at = std::optional<Timestamp>()});
  EXPECT_TRUE(lets_in("pwk_ending"));
  EXPECT_EQ(ring_.until_next_end(), std::nullopt);
}

TEST_F(EndingKeys, ThatAreRotatedHaveOneOldSecretAtMostAndNotForLong) {
  const ApiKey key = key_of("pwk_first");
  ring_.add(key);
  const Principal first = ring_.authenticate("Bearer pwk_first").value();
  ring_.rotate(key.id, sha256("pwk_second"), now_ + 1h);
  EXPECT_TRUE(lets_in("pwk_first"));
  EXPECT_TRUE(lets_in("pwk_second"));
  EXPECT_TRUE(ring_.holds(first));
  const Principal second = ring_.authenticate("Bearer pwk_second").value();
  ring_.rotate(key.id, sha256("pwk_third"), now_ + 1h);
  EXPECT_FALSE(lets_in("pwk_first")) << "the oldest ends at once";
  EXPECT_FALSE(ring_.holds(first));
  EXPECT_TRUE(lets_in("pwk_second"));
  now_ -= 24h;
  pass(1h);
  EXPECT_FALSE(lets_in("pwk_second")) << "whatever the clock is set to";
  EXPECT_FALSE(ring_.holds(second));
  EXPECT_TRUE(lets_in("pwk_third"));
  EXPECT_EQ(ring_.drop_ended().size(), 1U);
  ring_.rotate(key.id, sha256("pwk_fourth"), std::nullopt);
  EXPECT_FALSE(lets_in("pwk_third"));
  EXPECT_TRUE(lets_in("pwk_fourth"));
  EXPECT_TRUE(ring_.remove(key.id));
  EXPECT_FALSE(lets_in("pwk_fourth"));
  EXPECT_FALSE(ring_.holds(second));
}

TEST_F(EndingKeys, TellWhenTheyWereLastUsed) {
  const ApiKey key = key_of("pwk_used");
  ring_.add(key);
  EXPECT_TRUE(ring_.unsaved_uses().empty());
  pass(1s);
  EXPECT_TRUE(lets_in("pwk_used"));
  EXPECT_FALSE(lets_in("pwk_other"));
  EXPECT_EQ(ring_.find(key.id)->last_used_at, now_);
  const auto uses = ring_.unsaved_uses();
  ASSERT_EQ(uses.size(), 1U);
  EXPECT_EQ(uses[0].last_used_at, now_);
  ring_.note_saved(uses[0]);
  EXPECT_TRUE(ring_.unsaved_uses().empty());
  pass(1s);
  EXPECT_TRUE(lets_in("pwk_used"));
  ring_.note_saved(uses[0]);
  EXPECT_EQ(ring_.unsaved_uses().size(), 1U) << "it was used since";
}

class AdminKeyFile : public testing::Test {
 protected:
  AdminKeyFile()
      : directory_(testing::TempDir() + "/portway-key-" + to_string(make_uuid())),
        path_(directory_ + "/admin.key") {}
  ~AdminKeyFile() override { std::filesystem::remove_all(directory_); }
  void write(std::string_view text, mode_t mode) {
    std::filesystem::create_directories(directory_);
    std::ofstream(path_) << text;
    ::chmod(path_.c_str(), mode);
  }
  const std::string directory_;
  const std::string path_;
};

TEST_F(AdminKeyFile, IsMadeOnceForItsOwnerOnly) {
  const auto made = load_or_make_admin_key(path_);
  ASSERT_TRUE(made);
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_EQ(load_or_make_admin_key(path_).value(), *made);
}

TEST_F(AdminKeyFile, ThatOthersMayReadIsRefusedWithTheRemedy) {
  write("pwk_0123456789012345678901234567890123456789abc\n", 0644);
  const auto refused = load_or_make_admin_key(path_);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().detail.find("chmod 600"), std::string::npos);
}

TEST_F(AdminKeyFile, IsNotMadeOutOfAFileThatWasLeftOver) {
  write("", 0600);
  std::filesystem::rename(path_, path_ + ".new");
  ::chmod((path_ + ".new").c_str(), 0666);
  ASSERT_TRUE(load_or_make_admin_key(path_));
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(AdminKeyFile, ThatIsNoRegularFileIsRefusedAtOnce) {
  std::filesystem::create_directories(directory_);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_FALSE(load_or_make_admin_key(path_));
}

TEST_F(AdminKeyFile, ThatHoldsNoKeyIsRefused) {
  write("", 0600);
  EXPECT_FALSE(load_or_make_admin_key(path_));
  write("password\n", 0600);
  EXPECT_FALSE(load_or_make_admin_key(path_));
}

TEST(Secrets, AreLongRandomUrlSafeAndNameTheirKey) {
  const Uuid id = make_uuid();
  const std::string secret = make_secret(id);
  EXPECT_EQ(secret.substr(0, 41), "pwk_" + to_string(id) + "_");
  EXPECT_EQ(secret.size(), 41U + 43U);
  EXPECT_NE(secret, make_secret(id));
  EXPECT_EQ(secret.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
            std::string::npos);
  EXPECT_EQ(key_id_in(secret), id);
}

TEST(Secrets, FromBeforeNameNoKey) {
  for (const std::string& secret : {std::string(), std::string("pwk_"), "pwk_" + std::string(43, 'A'),
                                    "pwk_" + std::string(80, 'A'), "pwk_" + to_string(make_uuid()),
                                    "pwk_" + to_string(make_uuid()) + "-x", "x" + make_secret(make_uuid())}) {
    EXPECT_EQ(key_id_in(secret), std::nullopt) << secret;
  }
}

}  // namespace
}  // namespace portway
