#include "control/key_admin.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "control/policy.h"

namespace portway {

Error no_such_key() {
  return {ErrorCode::kNotFound, "There is no API key with this id."};
}

Error too_many_keys(std::string_view where, std::size_t keys) {
  return {ErrorCode::kQuotaExceeded,
          fmt::format("{} has as many API keys as it can; delete some first.", where), "",
          static_cast<std::int64_t>(kApiKeysMax), static_cast<std::int64_t>(keys)};
}

Result<KeyWithSecret> make_key(KeySpec spec, Timestamp now) {
  if (auto checked = check_owner(spec.owner); !checked) return checked.error();
  if (auto checked = check_description(spec.description); !checked) return checked.error();
  if (auto checked = check_key_reach(spec.role, spec.scope, spec.instance_id); !checked)
    return checked.error();
  if (auto checked = check_expiry(spec.expires_at, now); !checked) return checked.error();
  const Uuid id = make_uuid();
  KeyWithSecret made{.key = {}, .secret = make_secret(id)};
  made.key = {.id = id,
              .role = spec.role,
              .owner = std::move(spec.owner),
              .secret_sha256 = sha256(made.secret),
              .created_at = now,
              .description = std::move(spec.description),
              .scope = spec.scope,
              .instance_id = std::move(spec.instance_id),
              .expires_at = spec.expires_at};
  return made;
}

Result<void> check_key_change(const ApiKeyChange& change, Timestamp now) {
  if (change.description) {
    if (auto checked = check_description(*change.description); !checked) return checked;
  }
  if (change.expires_at) return check_expiry(*change.expires_at, now);
  return {};
}

void apply(const ApiKeyChange& change, ApiKey& key) {
  if (change.description) key.description = *change.description;
  if (change.expires_at) key.expires_at = *change.expires_at;
}

Result<KeyWithSecret> rotated_key(const KeyStatus& status, std::chrono::seconds overlap, Timestamp now) {
  if (status.expired) {
    return Error{ErrorCode::kInvalidRequest,
                 "This key has expired, and its new secret would not be valid: give it a later expires_at "
                 "first (PATCH), or create another key.",
                 "expires_at"};
  }
  KeyWithSecret rotated{.key = status.key, .secret = make_secret(status.key.id)};
  ApiKey& key = rotated.key;
  key.secret_sha256 = sha256(rotated.secret);
  key.old_secret.reset();
  if (overlap.count() > 0) {
    const Timestamp until = std::min<Timestamp>(now + overlap, key.expires_at.value_or(Timestamp::max()));
    key.old_secret = {.sha256 = status.key.secret_sha256, .valid_until = until};
  }
  return rotated;
}

std::string reach_of(const ApiKey& key) {
  std::string reach = fmt::format("{} {}", to_string(key.role), key.owner);
  if (key.scope != KeyScope::kFull) reach += fmt::format(", scope {}", to_string(key.scope));
  if (!key.instance_id.empty()) reach += fmt::format(", instance {}", key.instance_id);
  if (key.expires_at) reach += fmt::format(", until {}", to_rfc3339(*key.expires_at));
  return reach;
}

std::string old_secret_end_of(const ApiKey& rotated) {
  return rotated.old_secret ? "is valid until " + to_rfc3339(rotated.old_secret->valid_until)
                            : "is not valid any more";
}

}  // namespace portway
