// Whoever can make, change and end API keys: a node for its own (control/control.h), and a gateway for those
// of its fleet. The API's handlers know no more than this.
//
// Below are the rules that both have in common.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "base/error.h"
#include "control/auth.h"
#include "control/change.h"
#include "control/store.h"

namespace portway {

/// What a new key is to be.
struct KeySpec {
  Role role = Role::kTenant;
  std::string owner;
  std::string description = {};
  KeyScope scope = KeyScope::kFull;
  std::string instance_id = {};
  std::optional<Timestamp> expires_at = std::nullopt;
};

/// The secret is returned once and kept as a hash only.
struct NewKey {
  KeyStatus status;
  std::string secret;
};

class KeyAdmin {
 public:
  static constexpr std::chrono::seconds kOverlapMax = std::chrono::hours(24);

  virtual ~KeyAdmin() = default;

  /// All that are known here.
  virtual KeyRing& keys() = 0;

  // A key or a secret that goes ends its streams. kForbidden for a key that cannot be changed here, kNotFound
  // for an unknown one, kInvalidRequest with the field, kStoreUnavailable.

  /// kQuotaExceeded if there are as many as there can be; one that has expired makes room, the first one
  /// first.
  virtual Change<NewKey> create_key(KeySpec spec, Principal caller) = 0;
  virtual Change<KeyStatus> change_key(Uuid id, ApiKeyChange change, Principal caller) = 0;
  /// A new secret; the one that it has remains valid for `overlap`, which is at most kOverlapMax.
  virtual Change<NewKey> rotate_key(Uuid id, std::chrono::seconds overlap, Principal caller) = 0;
  virtual Change<void> delete_key(Uuid id, Principal caller) = 0;
};

Error no_such_key();
/// kQuotaExceeded. `where`: "This node".
Error too_many_keys(std::string_view where, std::size_t keys);

/// A key with its secret.
struct KeyWithSecret {
  ApiKey key;
  std::string secret;
};
/// A new one, after its checks.
Result<KeyWithSecret> make_key(KeySpec spec, Timestamp now);
Result<void> check_key_change(const ApiKeyChange& change, Timestamp now);
void apply(const ApiKeyChange& change, ApiKey& key);
/// The key with another secret; kInvalidRequest if it has expired.
Result<KeyWithSecret> rotated_key(const KeyStatus& status, std::chrono::seconds overlap, Timestamp now);

/// For the log: what it may do.
std::string reach_of(const ApiKey& key);
/// For the log: what becomes of its old secret.
std::string old_secret_end_of(const ApiKey& rotated);

}  // namespace portway
