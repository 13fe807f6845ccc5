// Keeps a FleetView as etcd is (fleet/etcd_mirror.h). While etcd cannot be reached the view stays as it was,
// and stats().stale is true. A whole listing replaces the view at its end, at once: what is in the middle of
// a change, or of a listing that breaks off, is never seen.
//
// One thread only.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "fleet/etcd_mirror.h"
#include "fleet/etcd_options.h"
#include "fleet/fleet_view.h"

namespace portway {

/// Is told of all keys of the fleet, also of those that the view does not show. It must not destroy the
/// follower meanwhile.
class FleetListener {
 public:
  virtual ~FleetListener() = default;
  /// The view has taken the change. `before`: the key's value, as far as the view had it
  /// (FleetView::value()).
  virtual void on_change(const EtcdEvent& event, const std::string& before) = 0;
  /// The view has taken a whole listing, of this revision: anything may have changed.
  virtual void on_relisted(std::int64_t revision) = 0;
};

struct FollowerOptions {
  EtcdOptions etcd;
  std::string prefix = "/portway/";  // as the nodes'
  /// Whether etcd is still there is asked for this often.
  std::chrono::milliseconds check_period = std::chrono::seconds(5);
  FleetListener* listener = nullptr;  // outlives the follower
};

using FollowerStats = EtcdMirrorStats;

class FleetFollower final : private EtcdSink {
 public:
  /// kInvalidConfig.
  static Result<std::unique_ptr<FleetFollower>> create(const boost::asio::any_io_executor& executor,
                                                       FollowerOptions options);

  const FleetView& view() const { return view_; }
  FollowerStats stats() const { return mirror_.stats(); }
  /// EtcdMirror::wait_until_at().
  boost::asio::awaitable<bool> wait_until_at(std::int64_t revision, std::chrono::milliseconds most) {
    return mirror_.wait_until_at(revision, most);
  }

 private:
  FleetFollower(const boost::asio::any_io_executor& executor, const FollowerOptions& options,
                std::shared_ptr<Etcd> etcd);

  void begin_listing() override { listed_.emplace(keys_); }
  void end_listing(std::int64_t revision) override;
  void put(const EtcdKeyValue& kv) override;
  void erase(const std::string& key, std::int64_t revision) override;
  void on_event(const EtcdEvent& event) override;

  const FleetKeys keys_;
  FleetListener* const listener_;
  FleetView view_{keys_};
  std::optional<FleetView> listed_;  // so far
  std::string before_;               // the value of the key that has changed last
  EtcdMirror mirror_;                // goes first
};

}  // namespace portway
