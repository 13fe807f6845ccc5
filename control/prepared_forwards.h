// Forwards that are to be made, and those that have been checked and whose host ports are bound, before they
// are on disk. Dropping them gives the ports back. Control thread.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/forward.h"
#include "control/port_lease.h"
#include "control/status.h"

namespace portway {

/// Forwards to be made.
struct ForwardSpecs {
  std::span<const ForwardSpec> list;
  std::span<const std::size_t> entries = {};  // of the request's list, for errors; empty: as in `list`
  std::size_t replaced = 0;                   // of the instance's forwards, which go with the same change
};

struct PreparedForwards {
  std::string instance_id;
  std::vector<Forward> forwards;
  std::vector<std::optional<PortLease>> leases;  // one for each forward
  std::vector<ForwardStatus> statuses;           // what the caller will be answered
};

}  // namespace portway
