// The node's API keys: those in the store, and the admin key file's, which is in no store and cannot be
// deleted. Whoever takes a key away rechecks the streams that were opened under it (control/streams.h).
//
// Control thread.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "config/config.h"
#include "control/auth.h"
#include "control/store.h"

namespace portway {

/// The secret is returned once and kept as a hash only.
struct NewKey {
  ApiKey key;
  std::string secret;
};

class Keys {
 public:
  /// Both must outlive it.
  Keys(Store& store, const Config& config);

  KeyRing& ring() { return ring_; }
  const KeyRing& ring() const { return ring_; }

  Result<NewKey> create(Role role, std::string owner, const Principal& caller);
  Result<void> remove(const Uuid& id, const Principal& caller);

  /// The key of the admin key file, in place of the one before. False if it is the same.
  bool set_admin_key(std::string_view secret);

 private:
  Store& store_;
  const Config& config_;
  KeyRing ring_;
  Uuid admin_key_id_{};
};

}  // namespace portway
