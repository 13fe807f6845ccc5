#include "control/keys.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "control/policy.h"

namespace portway {

Keys::Keys(Store& store, const Config& config) : store_(store), config_(config), ring_(config.api) {}

Result<NewKey> Keys::create(Role role, std::string owner, const Principal& caller) {
  if (auto checked = check_owner(owner); !checked) return checked.error();
  if (ring_.size() > kApiKeysMax) {  // the admin key file's is one more
    return Error{ErrorCode::kQuotaExceeded, "This node has as many API keys as it can; delete some first.",
                 "", static_cast<std::int64_t>(kApiKeysMax), static_cast<std::int64_t>(ring_.size() - 1)};
  }
  NewKey made{.key = {}, .secret = make_secret()};
  made.key.id = make_uuid();
  made.key.role = role;
  made.key.owner = std::move(owner);
  made.key.secret_sha256 = sha256(made.secret);
  made.key.created_at = now();
  if (auto stored = store_.add_api_key(made.key); !stored) return stored.error();
  ring_.add(made.key);
  spdlog::info("key {} ({} {}) made by {}", to_string(made.key.id), to_string(role), made.key.owner,
               who(caller));
  return made;
}

Result<void> Keys::remove(const Uuid& id, const Principal& caller) {
  if (id == admin_key_id_) {
    return Error{ErrorCode::kForbidden,
                 fmt::format("This is the key in {}; replace that file and send SIGHUP to change it.",
                             config_.api.admin_key_file)};
  }
  if (ring_.find(id) == nullptr) return Error{ErrorCode::kNotFound, "There is no API key with this id."};
  if (auto stored = store_.delete_api_key(id); !stored) return stored.error();
  ring_.remove(id);
  spdlog::info("key {} deleted by {}", to_string(id), who(caller));
  return {};
}

bool Keys::set_admin_key(std::string_view secret) {
  const Sha256 hash = sha256(secret);
  const ApiKey* known = ring_.find(admin_key_id_);
  if (known != nullptr && known->secret_sha256 == hash) return false;  // its users are not disturbed
  const std::string before = known == nullptr ? "" : to_string(admin_key_id_);
  ring_.remove(admin_key_id_);
  ApiKey key;
  key.id = admin_key_id_ = make_uuid();
  key.role = Role::kAdmin;
  key.owner = "admin";
  key.secret_sha256 = hash;
  key.created_at = now();
  ring_.add(key);
  spdlog::info("the admin key in {} is key {}{}", config_.api.admin_key_file, to_string(key.id),
               before.empty() ? "" : fmt::format(", in place of key {}", before));
  return true;
}

}  // namespace portway
