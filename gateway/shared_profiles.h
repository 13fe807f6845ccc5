// The fleet's profiles, at a gateway: what etcd has of them is known here, and changed here.
//
// A change is answered once etcd has committed it, and once this gateway knows it itself, or a second later.
//
// One thread only. It outlives the calls under way.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "api/http/message.h"
#include "api/router.h"
#include "control/auth.h"
#include "control/change.h"
#include "fleet/etcd.h"
#include "fleet/etcd_mirror.h"
#include "fleet/etcd_table.h"
#include "fleet/fleet_keys.h"

namespace portway {

class SharedProfiles {
 public:
  static constexpr std::size_t kMax = 1000;

  struct Parts {
    boost::asio::any_io_executor executor;
    std::shared_ptr<Etcd> etcd;
    FleetKeys keys;
  };
  explicit SharedProfiles(Parts parts);

  /// As they are known here.
  Profiles all() const;
  /// Those that cannot be read, and stay as they were.
  std::size_t unreadable() const { return table_.unreadable(); }
  EtcdMirrorStats stats() const { return mirror_.stats(); }

  /// Makes or replaces it; true: made. kInvalidRequest of "name", kQuotaExceeded, kStoreUnavailable.
  Change<bool> put(std::string name, Profile profile, Principal caller);
  /// kNotFound, kStoreUnavailable.
  Change<void> remove(std::string name, Principal caller);

 private:
  const Parts parts_;
  EtcdTable<Profile> table_;
  EtcdMirror mirror_;  // goes first
};

// --- The handlers of /profiles and /profiles/{name}.

Result<Response> list_shared_profiles(const SharedProfiles& profiles);
boost::asio::awaitable<Result<Response>> put_shared_profile(SharedProfiles& profiles, const Call& call);
boost::asio::awaitable<Result<Response>> delete_shared_profile(SharedProfiles& profiles, const Call& call);

}  // namespace portway
