// Who is calling: bearer keys, known by the SHA-256 of their secret, and how often each may call.
//
// Belongs to the control thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "config/config.h"
#include "control/policy.h"
#include "control/store.h"

namespace portway {

/// Whoever a key belongs to.
struct Principal {
  Uuid key_id{};
  Role role = Role::kTenant;
  std::string owner;

  /// An admin sees everything, a tenant its owner's instances.
  bool sees(const Instance& instance) const { return role == Role::kAdmin || instance.owner == owner; }
};

/// For a log: "key ID", or "uid:0" for a user without one.
std::string who(const Principal& caller);

/// "pwk_" and 43 characters of base64url: 256 bits from getrandom(2).
std::string make_secret();
using Sha256 = std::array<std::uint8_t, 32>;
Sha256 sha256(std::string_view text);

/// The key in `path`; when the file is missing, it and its directory are made with a new one, mode 0600.
/// kInvalidConfig when others than its owner may read it, when it is no key, or when it cannot be read or
/// made.
Result<std::string> load_or_make_admin_key(const std::string& path);

class KeyRing {
 public:
  /// Reads rate_limit_per_second, which may change; `config` must outlive the ring.
  explicit KeyRing(const Config::Api& config) : config_(config) {}

  /// A key with the same secret is replaced, and so is one with the same id.
  void add(const ApiKey& key);
  /// False when there is none.
  bool remove(const Uuid& id);
  const ApiKey* find(const Uuid& id) const;
  std::vector<const ApiKey*> all() const;  // by id
  std::size_t size() const { return entries_.size(); }

  /// The caller behind an Authorization header. kUnauthorized for none or an unknown key, kRateLimited for
  /// one that has called more often than its limit.
  Result<Principal> authenticate(std::string_view authorization);
  /// The admin that a user is who needs no key: its owner is "uid:0". kRateLimited as above. One of
  /// api.admin_uids, so that there are not many.
  Result<Principal> authenticate_user(std::uint32_t uid);

 private:
  /// Calls that may be made now.
  struct Allowance {
    double tokens;
    std::chrono::steady_clock::time_point refilled;
  };
  struct Entry {
    ApiKey key;
    Allowance allowance;
  };

  Allowance full_allowance() const;
  Result<void> spend(Allowance& allowance) const;

  /// Calls a second and in one burst; 0: no limit.
  std::uint32_t rate_limit() const { return config_.rate_limit_per_second; }

  const Config::Api& config_;
  // By hash. How long a search takes may tell how much of a hash is right, but an attacker cannot steer a
  // hash byte by byte: each guess at a secret has a hash that is unlike the last one's. The last comparison,
  // which decides, takes the same time for any two hashes all the same.
  std::map<Sha256, Entry> entries_;
  std::map<Uuid, Sha256> hashes_;             // by id
  std::map<std::uint32_t, Allowance> users_;  // by uid
};

}  // namespace portway
