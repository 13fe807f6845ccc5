#include "control/shared_keys.h"

#include <fmt/format.h>

#include <utility>

namespace portway {

void SharedKeys::set(std::map<Uuid, ApiKey> keys) {
  keys_ = std::move(keys);
  apply();
}

void SharedKeys::apply() {
  std::map<Uuid, Timestamp> uses;
  remove_what_went(uses);
  std::size_t taken = 0;
  std::size_t refused = 0;
  fault_.clear();
  for (const auto& [id, key] : keys_) {
    const auto known = added_.find(id);
    if (taken < kMax && known != added_.end() && known->second == key) {
      ++taken;
      continue;
    }
    const std::string why = taken == kMax ? "there are too many" : why_not(key);
    if (!why.empty()) {
      if (++refused == 1)
        fault_ = fmt::format("key {} of the fleet is not valid here: {}", to_string(id), why);
      if (added_.erase(id) != 0) ring_.remove(id);
      continue;
    }
    ++taken;
    ApiKey used = key;
    const ApiKey* before = ring_.find(id);
    if (before != nullptr) used.last_used_at = before->last_used_at;
    if (const auto use = uses.find(id); use != uses.end()) used.last_used_at = use->second;
    ring_.add(used, KeyHome::kFleet);
    added_.insert_or_assign(id, key);
  }
  if (refused > 1) fault_ += fmt::format("; {} more are not valid here", refused - 1);
}

/// A secret of it may be another key's now. A key that stays keeps what is known of its use.
void SharedKeys::remove_what_went(std::map<Uuid, Timestamp>& uses) {
  std::erase_if(added_, [&](const auto& added) {
    const auto& [id, key] = added;
    if (!ring_.is_fleets(id)) return true;  // one of the ring's own has taken its place
    const auto wanted = keys_.find(id);
    if (wanted != keys_.end() && wanted->second.secret_sha256 == key.secret_sha256) return false;
    if (const auto used = ring_.find(id)->last_used_at) uses[id] = *used;
    ring_.remove(id);
    return true;
  });
}

std::string SharedKeys::why_not(const ApiKey& key) const {
  if (ring_.find(key.id) != nullptr && !ring_.is_fleets(key.id)) {
    return "one of the node's own has this id; delete one of the two";
  }
  const auto other = ring_.find_secret(key.secret_sha256);
  if (!other || *other == key.id) return {};
  return fmt::format("key {} has its secret; delete one of the two", to_string(*other));
}

}  // namespace portway
