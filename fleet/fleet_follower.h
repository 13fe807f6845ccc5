// Keeps a FleetView as etcd is: reads all keys of the fleet, and then follows them by a watch.
//
// While etcd cannot be reached the view stays as it was, and stats().stale is true. What was missed is read
// afterwards; if it is not kept any more, or etcd has gone back (it was restored from a backup), all keys are
// read again. A whole listing replaces the view in one turn of the executor for each page, and what it does
// not name goes at its end, so that nothing flickers.
//
// One thread only.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "fleet/etcd_options.h"
#include "fleet/etcd_values.h"
#include "fleet/fleet_view.h"

namespace portway {

struct FollowerOptions {
  EtcdOptions etcd;
  std::string prefix = "/portway/";  // as the nodes'
  /// Whether etcd is still there is asked for this often.
  std::chrono::milliseconds check_period = std::chrono::seconds(5);
};

struct FollowerStats {
  bool warm = false;          // all keys were read once
  bool stale = true;          // etcd could not be reached when it was asked last
  std::string error = {};     // why it is stale; empty: it is not, or nothing was asked yet
  Timestamp true_at{};        // until when the view is known to be as etcd was
  std::int64_t revision = 0;  // of etcd, that the view is at
  std::uint64_t listings = 0;
  std::uint64_t events = 0;
};

class FleetFollower {
 public:
  /// kInvalidConfig.
  static Result<std::unique_ptr<FleetFollower>> create(const boost::asio::any_io_executor& executor,
                                                       FollowerOptions options);
  ~FleetFollower();
  FleetFollower(const FleetFollower&) = delete;
  FleetFollower& operator=(const FleetFollower&) = delete;

  const FleetView& view() const;
  FollowerStats stats() const;

 private:
  class State;
  explicit FleetFollower(std::shared_ptr<State> state);

  const std::shared_ptr<State> state_;  // shared with its coroutines
};

}  // namespace portway
