#include "api/shared_records.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>

#include "control/auth.h"

namespace portway {
namespace {

using namespace std::chrono_literals;

ApiKey full_key() {
  ApiKey key;
  key.id = make_uuid();
  key.role = Role::kTenant;
  key.owner = "alice";
  key.secret_sha256 = sha256("secret");
  key.created_at = now();
  key.description = "of a job";
  key.scope = KeyScope::kRead;
  key.instance_id = "vm-1";
  key.expires_at = now() + 1h;
  key.old_secret = {.sha256 = sha256("old"), .valid_until = now() + 1min};
  return key;
}

/// The record with one member otherwise; null: without it.
std::string changed(const ApiKey& key, const std::string& member, const boost::json::value& value) {
  auto record = boost::json::parse(to_record(key)).as_object();
  record[member] = value;
  if (value.is_null()) record.erase(member);
  return boost::json::serialize(record);
}

TEST(SharedRecords, AKeyIsReadAsItWasWritten) {
  ApiKey key = full_key();
  key.last_used_at = now();
  const ApiKey read = parse_api_key_record(to_string(key.id), to_record(key)).value();
  key.last_used_at.reset();  // is nobody else's business
  EXPECT_EQ(read, key);
  ApiKey plain;
  plain.id = make_uuid();
  plain.role = Role::kAdmin;
  plain.owner = "ops";
  EXPECT_EQ(parse_api_key_record(to_string(plain.id), to_record(plain)).value(), plain);
}

TEST(SharedRecords, AKeyThatIsNotUnderstoodCompletelyIsNone) {
  const ApiKey key = full_key();
  const auto field = [&](const std::string& member, const boost::json::value& value) {
    const auto read = parse_api_key_record(to_string(key.id), changed(key, member, value));
    return read ? "it was read" : read.error().field;
  };
  EXPECT_EQ(field("role", "root"), "role");
  EXPECT_EQ(field("role", nullptr), "role");
  EXPECT_EQ(field("owner", ""), "owner");
  EXPECT_EQ(field("owner", nullptr), "owner");
  EXPECT_EQ(field("scope", "write"), "scope");
  EXPECT_EQ(field("scope", nullptr), "scope");
  EXPECT_EQ(field("description", boost::json::string(257, 'x')), "description");
  EXPECT_EQ(field("instance_id", ""), "instance_id");
  EXPECT_EQ(field("instance_id", 7), "instance_id");
  EXPECT_EQ(field("role", "admin"), "instance_id");  // an admin's has none
  EXPECT_EQ(field("secret_sha256", "ab"), "secret_sha256");
  EXPECT_EQ(field("secret_sha256", boost::json::string(64, 'A')), "secret_sha256");
  EXPECT_EQ(field("secret_sha256", nullptr), "secret_sha256");
  EXPECT_EQ(field("created_at", "yesterday"), "created_at");
  EXPECT_EQ(field("created_at", nullptr), "created_at");
  EXPECT_EQ(field("expires_at", "never"), "expires_at");
  EXPECT_EQ(field("old_secret", boost::json::object{{"secret_sha256", boost::json::string(64, '0')}}),
            "old_secret.valid_until");
  EXPECT_EQ(field("networks", boost::json::array{"192.0.2.0/24"}), "networks") << "a restriction, perhaps";
  EXPECT_FALSE(parse_api_key_record(to_string(key.id), ""));
  EXPECT_FALSE(parse_api_key_record(to_string(key.id), "[]"));
  EXPECT_FALSE(parse_api_key_record("x", to_record(key)));
  EXPECT_FALSE(parse_api_key_record("{" + to_string(key.id) + "}", to_record(key)));
}

TEST(SharedRecords, AnEndOfNullIsAMistake) {
  const ApiKey key = full_key();
  auto record = boost::json::parse(to_record(key)).as_object();
  record["expires_at"] = nullptr;
  EXPECT_FALSE(parse_api_key_record(to_string(key.id), boost::json::serialize(record)));
}

TEST(SharedRecords, AProfileIsReadAsItWasWritten) {
  const Profile profile{.max_forwarded_ports = 100,
                        .allow_host_port = true,
                        .limits = {.allowed_cidrs = {},
                                   .max_connections = 1,
                                   .max_connections_per_source = 2,
                                   .max_new_connections_per_second = 3,
                                   .max_bytes_per_second = 4,
                                   .idle_timeout = 5s}};
  EXPECT_EQ(parse_profile_record("large", to_record(profile)).value(), profile);
  EXPECT_EQ(parse_profile_record("large", to_record(Profile())).value(), Profile());
  EXPECT_EQ(parse_profile_record("large", "{}").value(), Profile());
}

TEST(SharedRecords, AProfileHasTheRangesOfTheConfiguration) {
  const auto field = [](std::string_view json) {
    const auto read = parse_profile_record("large", json);
    return read ? "it was read" : read.error().field;
  };
  EXPECT_EQ(parse_profile_record("large", R"({"max_forwarded_ports": 65535})").value().max_forwarded_ports,
            65535U);
  EXPECT_EQ(field(R"({"max_forwarded_ports": 65536})"), "max_forwarded_ports");
  EXPECT_EQ(field(R"({"max_forwarded_ports": -1})"), "max_forwarded_ports");
  EXPECT_EQ(field(R"({"max_forwarded_ports": true})"), "max_forwarded_ports");
  EXPECT_EQ(field(R"({"allow_host_port": 1})"), "allow_host_port");
  EXPECT_EQ(field(R"({"idle_timeout_s": 2592001})"), "idle_timeout_s");
  EXPECT_EQ(field(R"({"allowed_cidrs": []})"), "allowed_cidrs");
  EXPECT_FALSE(parse_profile_record("large", "7"));
  EXPECT_FALSE(parse_profile_record("a b", "{}"));
  EXPECT_FALSE(parse_profile_record("", "{}"));
  EXPECT_TRUE(parse_profile_record(std::string(64, 'a'), "{}"));
  EXPECT_FALSE(parse_profile_record(std::string(65, 'a'), "{}"));
}

}  // namespace
}  // namespace portway
