#include "api/shared_records.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <variant>

#include "config/profile_fields.h"
#include "control/auth.h"
#include "control/policy.h"

namespace portway {
namespace {

constexpr std::string_view kHexDigits = "0123456789abcdef";

std::string to_hex(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += kHexDigits[byte >> 4U];
    text += kHexDigits[byte & 15U];
  }
  return text;
}

/// 64 digits, lower case.
std::optional<Sha256> parse_sha256(std::string_view text) {
  Sha256 hash{};
  if (text.size() != 2 * hash.size()) return std::nullopt;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t digit = kHexDigits.find(text[i]);
    if (digit == std::string_view::npos) return std::nullopt;
    hash[i / 2] = static_cast<std::uint8_t>(hash[i / 2] << 4U | digit);
  }
  return hash;
}

Result<boost::json::object> parse_object(std::string_view json) {
  boost::system::error_code error;
  auto value = boost::json::parse(json, error);
  if (error || !value.is_object()) return Error{ErrorCode::kMalformedJson, "It is no JSON object."};
  return std::move(value.get_object());
}

Sha256 read_sha256(JsonFields& fields, std::string_view name) {
  const auto hash = parse_sha256(fields.string(name));
  if (!hash) fields.refuse(name, fmt::format("{} must be 64 hexadecimal digits.", name));
  return hash.value_or(Sha256{});
}

Timestamp read_time(JsonFields& fields, std::string_view name) {
  const auto time = fields.time_or_none(name);
  if (!time) fields.refuse(name, fmt::format("{} must be a time.", name));
  return time.value_or(Timestamp{});
}

void refuse(JsonFields& fields, std::string_view name, const Result<void>& checked) {
  if (!checked) fields.refuse(name, checked.error().detail);
}

}  // namespace

std::string to_record(const ApiKey& key) {
  boost::json::object out{{"role", to_string(key.role)},
                          {"owner", key.owner},
                          {"scope", to_string(key.scope)},
                          {"description", key.description},
                          {"secret_sha256", to_hex(key.secret_sha256)},
                          {"created_at", to_rfc3339(key.created_at)}};
  if (!key.instance_id.empty()) out["instance_id"] = key.instance_id;
  if (key.expires_at) out["expires_at"] = to_rfc3339(*key.expires_at);
  if (key.old_secret) {
    out["old_secret"] = {{"secret_sha256", to_hex(key.old_secret->sha256)},
                         {"valid_until", to_rfc3339(key.old_secret->valid_until)}};
  }
  return boost::json::serialize(out);
}

Result<ApiKey> parse_api_key_record(std::string_view id, std::string_view json) {
  const auto uuid = parse_uuid(id);
  if (!uuid || to_string(*uuid) != id) return Error{ErrorCode::kInvalidRequest, "Its id is no UUID."};
  const auto object = parse_object(json);
  if (!object) return object.error();
  JsonFields fields(*object, "");
  const auto role = parse_role(fields.string("role"));
  if (!role) fields.refuse("role", "role must be admin or tenant.");
  const auto scope = parse_key_scope(fields.string("scope"));
  if (!scope) fields.refuse("scope", "scope must be full, read or metrics.");
  ApiKey key;
  key.id = *uuid;
  key.role = role.value_or(Role::kTenant);
  key.owner = fields.string("owner");
  refuse(fields, "owner", check_owner(key.owner));
  key.secret_sha256 = read_sha256(fields, "secret_sha256");
  key.created_at = read_time(fields, "created_at");
  key.description = fields.string("description");
  refuse(fields, "description", check_description(key.description));
  key.scope = scope.value_or(KeyScope::kRead);
  key.instance_id = fields.string_or("instance_id", "");
  if (fields.given("instance_id")) refuse(fields, "instance_id", check_instance_id(key.instance_id));
  refuse(fields, "instance_id", check_key_reach(key.role, key.scope, key.instance_id));
  if (fields.given("expires_at")) key.expires_at = read_time(fields, "expires_at");
  fields.object("old_secret", [&](JsonFields old) {
    key.old_secret = {.sha256 = read_sha256(old, "secret_sha256"),
                      .valid_until = read_time(old, "valid_until")};
    return old.finish();
  });
  if (auto error = fields.finish()) return std::move(*error);
  return key;
}

std::string to_record(const Profile& profile) {
  boost::json::object out;
  for (const auto& [name, value] : profile_values(profile)) {
    if (const bool* flag = std::get_if<bool>(&value)) {
      out[name] = *flag;
    } else {
      out[name] = std::get<std::int64_t>(value);
    }
  }
  return boost::json::serialize(out);
}

Result<void> check_profile_name(std::string_view name) {
  if (is_profile_name(name)) return {};
  return Error{ErrorCode::kInvalidRequest,
               fmt::format("{} is no name of a profile; it must be 1-64 of [A-Za-z0-9_-].", in_quotes(name)),
               "name"};
}

Result<Profile> parse_profile_record(std::string_view name, std::string_view json) {
  if (auto checked = check_profile_name(name); !checked) return checked.error();
  const auto object = parse_object(json);
  if (!object) return object.error();
  JsonFields fields(*object, "");
  const Profile profile = read_profile(fields);
  if (auto error = fields.finish()) return std::move(*error);
  return profile;
}

Profile read_profile(JsonFields& fields) {
  Profile profile;
  for (const auto& [name, value] : profile_values(profile)) {
    ConfigValue given;
    if (const bool* flag = std::get_if<bool>(&value)) {
      given = fields.boolean_or(name, *flag);
    } else {
      const auto number = fields.integer_or_none(name, 0, std::numeric_limits<std::int64_t>::max());
      given = number.value_or(std::get<std::int64_t>(value));
    }
    if (const Problem problem = set_profile_value(profile, name, given))
      fields.refuse(name, fmt::format("{}: {}.", name, *problem));
  }
  return profile;
}

}  // namespace portway
