// Who is calling: bearer keys, known by the SHA-256 of their secret.
//
// Belongs to the control thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/boot_clock.h"
#include "base/error.h"
#include "base/log_fields.h"
#include "control/policy.h"
#include "control/store.h"

namespace portway {

using Sha256 = std::array<std::uint8_t, 32>;

/// Whoever a key belongs to.
struct Principal {
  Uuid key_id{};  // nil: a user of the Unix socket
  Role role = Role::kTenant;
  std::string owner;
  KeyScope scope = KeyScope::kFull;
  std::string instance_id = {};  // the only one that it sees; empty: all that its role and owner see
  Sha256 secret_sha256{};        // of the key's secrets, the one that the caller has
  std::string request_id = {};   // for the log: of what it asks for now
  std::string via = {};          // the gateway that has checked the key and says so; empty: none

  /// What belongs to an instance and its owner: an admin sees everything, a tenant its owner's, and with a
  /// key for one instance that one's. Whatever is shown or done for a caller asks here.
  bool sees(std::string_view instances_owner, std::string_view id) const {
    return role == Role::kAdmin || (instances_owner == owner && (instance_id.empty() || id == instance_id));
  }
  bool sees(const Instance& instance) const { return sees(instance.owner, instance.id); }
};

/// The admin that a user of the Unix socket is who needs no key (api.admin_uids): its owner is "uid:0".
Principal admin_user(std::uint32_t uid);

/// For a log: "key ID", or "uid:0" for a user without one, and " via gateway.example.com".
std::string who(const Principal& caller);
Actor actor_of(const Principal& caller);

/// The secret in a header Authorization of scheme Bearer; empty: there is none.
std::string_view bearer_secret(std::string_view authorization);

/// "pwk_", the key's id, "_" and 43 characters of base64url: 256 bits from getrandom(2). Whoever finds a
/// secret knows whose it is. Older ones are without the id; they are known by their hash like all others.
std::string make_secret(const Uuid& key_id);
/// The id in it, if it has one.
std::optional<Uuid> key_id_in(std::string_view secret);
Sha256 sha256(std::string_view text);

/// The key in `path`; when the file is missing, it and its directory are made with a new one, mode 0600.
/// kInvalidConfig when others than its owner may read it, when it is no key, or when it cannot be read or
/// made.
Result<std::string> load_or_make_admin_key(const std::string& path);

/// What time it is, by the clock that somebody sets and by the one that nobody can.
struct KeyClock {
  std::function<Timestamp()> now = portway::now;
  std::function<std::chrono::milliseconds()> uptime = kernel_uptime;
};

/// Where a key belongs: to this process alone, or to the fleet, whose etcd has it.
enum class KeyHome : std::uint8_t { kOwn, kFleet };

/// A key as it is now.
struct KeyStatus {
  ApiKey key;
  bool expired = false;
  /// The secret before the last rotation is valid until then; absent: it is not.
  std::optional<Timestamp> old_secret_valid_until = std::nullopt;
  KeyHome home = KeyHome::kOwn;
};

/// The keys that are known. A key ends when its `expires_at` comes, and an old secret when its `valid_until`
/// does: by the wall clock or, if that is set back meanwhile, when as much time has passed. Both are looked
/// up with each call; drop_ended() reports them.
class KeyRing {
 public:
  explicit KeyRing(KeyClock clock = {}) : clock_(std::move(clock)) {}

  /// A key with the same secret is replaced, and so is one with the same id; an old secret of another key is
  /// no reason.
  void add(const ApiKey& key, KeyHome home = KeyHome::kOwn);
  /// Changes what is given. The key must be there, and for rotate() too: a new secret, see
  /// Store::rotate_api_key().
  void change(const Uuid& id, const ApiKeyChange& change);
  void rotate(const Uuid& id, const Sha256& secret_sha256, std::optional<Timestamp> old_valid_until);
  /// False when there is none.
  bool remove(const Uuid& id);
  const ApiKey* find(const Uuid& id) const;
  bool is_fleets(const Uuid& id) const;
  /// The id of the key that has this secret, now or before its last rotation.
  std::optional<Uuid> find_secret(const Sha256& secret_sha256) const;
  std::vector<const ApiKey*> all() const;  // by id
  std::size_t size() const { return keys_.size(); }
  std::size_t count(KeyHome home) const;
  /// Of a key that find() or all() has returned.
  KeyStatus status_of(const ApiKey& key) const;
  Timestamp now() const { return clock_.now(); }

  /// Whether the caller's key is there, has not expired, and still has the secret that the caller has used.
  /// A user without a key always is. What a gateway says holds as long as it is one: the key that it has
  /// checked need not be known here.
  bool holds(const Principal& caller) const;
  /// Whose word holds from now on.
  void set_gateways(std::vector<std::string> names) { gateways_ = std::move(names); }
  const std::vector<std::string>& gateways() const { return gateways_; }
  /// How long until the next key or old secret ends, as far as is known now; 0 if drop_ended() does not know
  /// yet of one that has. Absent: none will.
  std::optional<std::chrono::milliseconds> until_next_end() const;
  /// What has ended since the last call: "key ID has expired", for a log. Old secrets are forgotten.
  std::vector<std::string> drop_ended();
  /// The one that expired first; null: none has.
  const ApiKey* first_expired(KeyHome home = KeyHome::kOwn) const;

  /// The uses of own keys that note_saved() does not know of.
  std::vector<ApiKeyUse> unsaved_uses() const;
  void note_saved(const ApiKeyUse& use);

  /// The caller behind an Authorization header. kUnauthorized for none, an unknown or an expired key.
  Result<Principal> authenticate(std::string_view authorization);

 private:
  /// By the wall clock, or by the time since boot. The latter is absent for what was over when it was set:
  /// then a wrong wall clock may have said so.
  struct End {
    Timestamp at;
    std::optional<std::chrono::milliseconds> uptime;
  };
  struct Entry {
    ApiKey key;
    KeyHome home = KeyHome::kOwn;
    std::optional<End> expiry = std::nullopt;
    std::optional<End> old_secret_end = std::nullopt;
    bool reported = false;  // that it has expired
    std::optional<Timestamp> last_used_saved = std::nullopt;
  };

  std::optional<End> end_at(std::optional<Timestamp> at) const;
  bool is_over(const std::optional<End>& end) const;
  void forget_old_secret(Entry& entry);
  void set_ends(Entry& entry) const;
  Error refusal_of(const ApiKey& key) const;

  const KeyClock clock_;
  // By hash. How long a search takes may tell how much of a hash is right, but an attacker cannot steer a
  // hash byte by byte: each guess at a secret has a hash that is unlike the last one's. The last comparison,
  // which decides, takes the same time for any two hashes all the same.
  std::map<Sha256, Uuid> secrets_;  // old ones too
  std::map<Uuid, Entry> keys_;
  std::vector<std::string> gateways_;
};

}  // namespace portway
