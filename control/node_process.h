// The process that serves the node, and its replacement by another one. The daemon implements it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/forward.h"
#include "control/node_faults.h"
#include "proxy/inherited.h"

namespace portway {

struct ProcessStatus {
  pid_t pid = 0;
  Timestamp started{};
  std::chrono::seconds handover_timeout{0};  // proxy.handover_timeout_s; 0: connections end with the process
  bool upgrading = false;                    // an upgrade is under way
  std::string upgrade_failure = {};          // of the last one; empty: none has failed
  HandoverStats handover = {};
  std::vector<NodeFault> faults = {};
};

class NodeProcess {
 public:
  virtual ~NodeProcess() = default;

  virtual ProcessStatus process_status() const = 0;
  /// Starts the binary that is installed now in place of this process; what comes of it is in
  /// process_status(). kUpgradeNotPossible, with the reason.
  virtual Result<void> start_upgrade() = 0;
};

}  // namespace portway
