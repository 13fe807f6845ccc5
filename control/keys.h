// The node's API keys: those in the store, the admin key file's, which is in no store, and the fleet's, which
// are in etcd. The latter two cannot be changed over the node's API. Whoever takes a key or a secret away
// rechecks the streams that were opened under it (control/streams.h); what ends by itself, at a time, is
// reported by a callback.
//
// When a key was last used is known in memory, and written now and then: no request waits for it.
//
// Control thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "config/config.h"
#include "control/auth.h"
#include "control/change.h"
#include "control/key_admin.h"
#include "control/shared_keys.h"
#include "control/store.h"

namespace portway {

class Keys {
 public:
  static constexpr std::chrono::minutes kSaveUsesEvery{1};

  /// All must outlive it. `on_end` is called when a key has expired, or an old secret is not valid any more:
  /// at once, or with the next look_at_ends() if somebody has set the clock.
  Keys(boost::asio::io_context& context, Store& store, const Config& config, std::function<void()> on_end,
       KeyClock clock = {});

  KeyRing& ring() { return ring_; }
  const KeyRing& ring() const { return ring_; }

  /// One that is in the store. look_at_ends() follows the last one.
  void add_stored(const ApiKey& key);

  // KeyAdmin's, one at a time. kForbidden for the admin key file's, and for the fleet's.
  Change<NewKey> create(KeySpec spec, Principal caller);
  Change<KeyStatus> change(Uuid id, ApiKeyChange change, Principal caller);
  Change<NewKey> rotate(Uuid id, std::chrono::seconds overlap, Principal caller);
  Change<void> remove(Uuid id, Principal caller);

  /// SharedKeys::set() and fault(): what the fleet has beside the node's own.
  void set_shared(std::map<Uuid, ApiKey> keys);
  const std::string& shared_fault() const { return shared_.fault(); }

  /// The key of the admin key file, in place of the one before. False if it is the same.
  bool set_admin_key(std::string_view secret);

  /// Calls `on_end` for what has ended.
  void look_at_ends();
  /// Writes when keys were last used, if that is due, or `now`. Does not wait.
  void save_uses(bool now = false);

 private:
  struct Saving;
  Result<const ApiKey*> find_changeable(const Uuid& id) const;
  Change<void> make_room();
  void wait_for_next_end();

  Store& store_;
  const Config& config_;
  const std::function<void()> on_end_;
  KeyRing ring_;
  SharedKeys shared_{ring_};
  Uuid admin_key_id_{};
  boost::asio::steady_timer timer_;
  const std::shared_ptr<Saving> saving_;  // shared with the store's thread
  std::vector<ApiKeyUse> uses_written_;   // by the save that runs, or ran last
  std::chrono::steady_clock::time_point uses_saved_at_ = std::chrono::steady_clock::now();
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for the timer's handler
};

/// The key of the admin key file, in place of the one with the id `id`, which becomes that of the new one.
/// False if it is the same.
bool replace_admin_key(KeyRing& ring, Uuid& id, std::string_view secret);

}  // namespace portway
