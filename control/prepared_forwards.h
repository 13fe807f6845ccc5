// Forwards that have been checked and whose host ports are bound, before they are on disk. Dropping them
// gives the ports back. Control thread.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "control/port_lease.h"
#include "control/status.h"

namespace portway {

class PreparedForwards {
 public:
  /// What the caller will be answered once they are committed, in the order of their specs.
  const std::vector<ForwardStatus>& statuses() const { return statuses_; }

 private:
  friend class Control;
  explicit PreparedForwards(std::string instance_id) : instance_id_(std::move(instance_id)) {}

  std::string instance_id_;
  std::vector<Forward> forwards_;
  std::vector<std::optional<PortLease>> leases_;  // one for each forward
  std::vector<ForwardStatus> statuses_;
};

}  // namespace portway
