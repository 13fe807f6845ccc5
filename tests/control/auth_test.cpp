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
}

class KeyRingTest : public testing::Test {
 protected:
  ErrorCode refusal(const std::string& authorization) {
    const auto caller = ring_.authenticate(authorization);
    return caller ? ErrorCode::kInternal : caller.error().code;
  }

  Config::Api config_{.rate_limit_per_second = 0};
  KeyRing ring_{config_};
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

TEST_F(KeyRingTest, LetsAKeyCallAsOftenAsItsRateAllowsAndOthersBesideIt) {
  config_.rate_limit_per_second = 1;
  ring_.add(key_of("pwk_one"));
  ring_.add(key_of("pwk_two"));
  EXPECT_TRUE(ring_.authenticate("Bearer pwk_one"));
  const auto refused = ring_.authenticate("Bearer pwk_one");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kRateLimited);
  EXPECT_EQ(refused.error().limit, 1);
  EXPECT_TRUE(ring_.authenticate("Bearer pwk_two"));
  config_.rate_limit_per_second = 0;  // a reload
  EXPECT_TRUE(ring_.authenticate("Bearer pwk_one"));
}

TEST_F(KeyRingTest, MakesAUserOfTheUnixSocketAnAdminWithARateOfItsOwn) {
  config_.rate_limit_per_second = 1;
  const auto caller = ring_.authenticate_user(1000);
  ASSERT_TRUE(caller);
  EXPECT_TRUE(caller->key_id.is_nil());
  EXPECT_EQ(caller->role, Role::kAdmin);
  EXPECT_EQ(caller->owner, "uid:1000");
  EXPECT_EQ(ring_.authenticate_user(1000).error().code, ErrorCode::kRateLimited);
  EXPECT_TRUE(ring_.authenticate_user(0));
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

TEST(Secrets, AreLongRandomAndUrlSafe) {
  const std::string secret = make_secret();
  EXPECT_EQ(secret.size(), 47U);
  EXPECT_NE(secret, make_secret());
  EXPECT_EQ(secret.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
            std::string::npos);
}

}  // namespace
}  // namespace portway
