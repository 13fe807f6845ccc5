// The API keys and profiles that the fleet has in etcd, on this node: beside its own (control/shared_keys.h,
// Control::set_fleet_profiles).
//
// While etcd is away they stay as they were last. A node that starts without etcd does not know them.
//
// Control thread only.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "control/control.h"
#include "control/node_faults.h"
#include "fleet/etcd.h"

namespace portway {

class FleetSettings {
 public:
  /// All of it outlives this.
  struct Parts {
    boost::asio::io_context& context;
    Control& control;
    NodeFaults& faults;
    std::function<void()> on_profiles;  // limits of instances may have changed
  };
  explicit FleetSettings(Parts parts);
  ~FleetSettings();

  /// Follows what is there. What is known of the same prefix, which ends with a slash, stays until it has
  /// been read again.
  void follow(std::shared_ptr<Etcd> etcd, const std::string& prefix);
  /// Does not follow it any more. What is known stays.
  void stop();
  /// What is known of any other prefix goes: the node is in another fleet or, if empty, in none.
  void keep_only(std::string_view prefix);
  /// Whether the fleet may have keys that have not been read yet.
  bool keys_pending() const;
  /// Reports what is wrong with the fleet's keys and profiles; call it every few seconds.
  void look();

 private:
  struct Known;
  void apply_keys();
  void apply_profiles();

  const Parts parts_;
  std::unique_ptr<Known> known_;  // null: nothing
};

}  // namespace portway
