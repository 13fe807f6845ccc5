// The fleet's API keys, at a gateway: what etcd has of them is known here, and changed here.
//
// A change is answered once etcd has committed it, and once this gateway knows it itself, or a second later.
// Of two changes of one key at the same time, here or at two gateways, each is made upon the other's result.
// The other gateways and the nodes follow within a second.
//
// One thread only. It outlives the calls under way.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "control/key_admin.h"
#include "control/shared_keys.h"
#include "fleet/etcd.h"
#include "fleet/etcd_mirror.h"
#include "fleet/etcd_table.h"
#include "fleet/fleet_keys.h"

namespace portway {

class EtcdKeyAdmin final : public KeyAdmin {
 public:
  struct Parts {
    boost::asio::any_io_executor executor;
    std::shared_ptr<Etcd> etcd;
    FleetKeys keys;
    /// A key or a secret may have gone: streams are to be rechecked. It must not destroy this.
    std::function<void()> on_change;
    KeyClock clock = {};
  };
  explicit EtcdKeyAdmin(Parts parts);

  /// The fleet's, and those that the gateway has added as its own, which cannot be changed here.
  KeyRing& keys() override { return ring_; }
  Change<NewKey> create_key(KeySpec spec, Principal caller) override;
  Change<KeyStatus> change_key(Uuid id, ApiKeyChange change, Principal caller) override;
  Change<NewKey> rotate_key(Uuid id, std::chrono::seconds overlap, Principal caller) override;
  Change<void> delete_key(Uuid id, Principal caller) override;

  /// Logs what has expired, and calls `on_change` if something has; call it every second.
  void look_at_ends();
  /// After an own key was added to or removed from keys().
  void on_own_keys() { shared_.apply(); }
  /// Why some keys of the fleet are not valid here; empty: all are.
  const std::string& fault() const { return shared_.fault(); }
  /// Of the fleet's keys, those that cannot be read, and are not valid.
  std::size_t unreadable() const { return table_.unreadable(); }
  EtcdMirrorStats stats() const { return mirror_.stats(); }

 private:
  struct Found {
    ApiKey key;
    std::int64_t mod_revision = 0;
  };
  /// What a key becomes.
  using Edit = std::function<Result<ApiKey>(const ApiKey& before)>;

  void apply();
  Result<void> check_changeable(const Uuid& id) const;
  Change<Found> find(const Uuid& id);
  Result<Found> read(const Uuid& id, const EtcdRangeAnswer& answer) const;
  Change<ApiKey> update(const Uuid& id, const Edit& edit);
  Change<void> make_room();
  boost::asio::awaitable<void> wait_until_known(std::int64_t revision);
  KeyStatus status_of(const ApiKey& key) const;

  const Parts parts_;
  KeyRing ring_;
  SharedKeys shared_{ring_};
  EtcdTable<ApiKey> table_;
  EtcdMirror mirror_;  // goes first
};

}  // namespace portway
