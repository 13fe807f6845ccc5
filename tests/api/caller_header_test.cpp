#include "api/caller_header.h"

#include <gtest/gtest.h>

#include <string>

namespace portway {
namespace {

constexpr std::string_view kKey = "0190b2c0-0000-7000-8000-000000000001";

Principal tenant() {
  return {.key_id = *parse_uuid(kKey), .role = Role::kTenant, .owner = "alice"};
}

void expect_same(const Principal& caller) {
  const std::string line = caller_header(caller);
  const auto read = parse_caller_header(line);
  ASSERT_TRUE(read) << line;
  EXPECT_EQ(read->key_id, caller.key_id);
  EXPECT_EQ(read->role, caller.role);
  EXPECT_EQ(read->owner, caller.owner);
  EXPECT_EQ(read->scope, caller.scope);
  EXPECT_EQ(read->instance_id, caller.instance_id);
  EXPECT_TRUE(read->via.empty());
}

TEST(CallerHeader, NamesEachKindOfCaller) {
  EXPECT_EQ(caller_header(tenant()),
            R"({"role":"tenant","owner":"alice","scope":"full","key_id":")" + std::string(kKey) + "\"}");
  EXPECT_EQ(caller_header(admin_user(0)), R"({"role":"admin","owner":"uid:0","scope":"full"})");
  expect_same(tenant());
  expect_same(admin_user(1000));
  Principal caller = tenant();
  caller.scope = KeyScope::kRead;
  caller.instance_id = "vm-1";
  expect_same(caller);
  caller.instance_id.clear();
  caller.scope = KeyScope::kMetrics;
  caller.role = Role::kAdmin;
  expect_same(caller);
}

TEST(CallerHeader, TakesTheLongestAndOddestOwner) {
  Principal caller = tenant();
  caller.owner = std::string(128, '"');
  caller.instance_id = std::string(64, 'a');
  EXPECT_LE(caller_header(caller).size(), kCallerHeaderMax);
  expect_same(caller);
  caller.owner = R"(a\"},{:/'%<>)";
  expect_same(caller);
  caller.owner = std::string(129, 'a');
  EXPECT_FALSE(parse_caller_header(caller_header(caller)));
}

TEST(CallerHeader, IsReadStrictly) {
  const std::string id(kKey);
  const std::string good = R"({"role":"tenant","owner":"alice","scope":"full","key_id":")" + id + "\"}";
  ASSERT_TRUE(parse_caller_header(good));
  const std::string with_key = ",\"key_id\":\"" + id + "\"}";
  for (const std::string& bad : {
           std::string(),
           std::string("alice"),
           std::string("[]"),
           std::string("{}"),
           std::string("null"),
           good + " ",
           " " + good,
           good + good,
           good.substr(0, good.size() - 1),
           R"({"owner":"alice","role":"tenant","scope":"full")" + with_key,
           R"({"role":"tenant","role":"admin","owner":"alice","scope":"full")" + with_key,
           R"({"role":"tenant","owner":"bob","owner":"alice","scope":"full")" + with_key,
           R"({"role":"tenant","owner":"alice","scope":"full","more":1)" + with_key,
           R"({"role":"tenant","owner":"\u0061lice","scope":"full")" + with_key,
           R"({"role":"root","owner":"alice","scope":"full")" + with_key,
           R"({"role":"tenant","owner":"alice","scope":"write")" + with_key,
           R"({"role":"tenant","owner":"alice")" + with_key,
           R"({"role":"tenant","scope":"full")" + with_key,
           R"({"role":"tenant","owner":"","scope":"full")" + with_key,
           R"({"role":"tenant","owner":"a b","scope":"full")" + with_key,
           R"({"role":"tenant","owner":"\u00e9","scope":"full")" + with_key,
           R"({"role":"tenant","owner":["alice"],"scope":"full")" + with_key,
           R"({"role":"tenant","owner":"alice","scope":"full","instance_id":"")" + with_key,
           R"({"role":"tenant","owner":"alice","scope":"full","instance_id":"a/b")" + with_key,
           std::string(R"({"role":"tenant","owner":"alice","scope":"full","key_id":"x"})"),
           R"({"role":"tenant","owner":"alice","scope":"full","key_id":")" + id + "0\"}",
           std::string(R"({"role":"tenant","owner":"alice","scope":"full",)") +
               R"("key_id":"00000000-0000-0000-0000-000000000000"})",
           // No key can be so, and no user without one.
           R"({"role":"admin","owner":"alice","scope":"full","instance_id":"vm-1")" + with_key,
           R"({"role":"tenant","owner":"alice","scope":"metrics","instance_id":"vm-1")" + with_key,
           std::string(R"({"role":"tenant","owner":"alice","scope":"full"})"),
           std::string(R"({"role":"admin","owner":"uid:0","scope":"read"})"),
           good + std::string(kCallerHeaderMax, ' '),
       }) {
    EXPECT_FALSE(parse_caller_header(bad)) << bad;
  }
}

}  // namespace
}  // namespace portway
