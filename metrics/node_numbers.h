// Numbers of the node that neither the registry nor the data plane has, and where they are read.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "api/http/answer_budget.h"
#include "api/http/server.h"
#include "control/access_log.h"
#include "control/audit_log.h"
#include "control/control.h"
#include "control/node_faults.h"
#include "proxy/inherited.h"

namespace portway {

/// PublisherStats of a node that is in a fleet.
struct FleetNumbers {
  bool registered = false;
  std::uint64_t pending = 0;
  std::uint64_t writes = 0;
  std::uint64_t writes_failed = 0;
  std::uint64_t claims_refused = 0;
  std::uint64_t registrations = 0;
  std::uint64_t listings = 0;
  std::uint64_t sessions_lost = 0;
  double clock_ahead_seconds = 0;
};

struct NodeNumbers {
  std::uint64_t access_log_dropped = 0;
  std::uint64_t audit_log_dropped = 0;
  std::uint64_t log_lines_dropped = 0;
  // Forwards that exist but are not served.
  std::uint64_t forwards_failed = 0;
  // Running instances whose guests should see their clients' addresses but do not.
  std::uint64_t instances_without_return_path = 0;
  std::uint64_t guest_namespaces = 0;
  // Packets that the source guard dropped.
  std::uint64_t forged_packets = 0;
  // 1: it takes nothing new (Control::is_draining()).
  std::uint64_t draining = 0;
  std::array<std::uint64_t, kFaultParts> faults = {};
  HandoverStats handover = {};
  // System calls that a thread of this process was refused.
  std::uint64_t refused_calls = 0;
  ServerStats api_server = {};
  AnswerStats answers = {};
  AnswerStats bodies = {};  // of requests
  std::optional<FleetNumbers> fleet = std::nullopt;
};

class NodeNumbersReader {
 public:
  virtual ~NodeNumbersReader() = default;
  virtual NodeNumbers read_numbers() const = 0;
};

/// Reads each number from its owner. All of them must outlive it; of those behind a pointer, null counts
/// nothing.
class NodeNumbersOf final : public NodeNumbersReader {
 public:
  struct Owners {
    const Control& control;
    const AnswerBudget& answers;
    const AnswerBudget& bodies;
    std::function<std::uint64_t()> log_dropped;
    const std::unique_ptr<AccessLog>& access_log;  // null until it is open
    const std::unique_ptr<AuditLog>& audit_log;    // likewise
    std::function<ServerStats()> api_servers;      // of all together
    const HandoverStats& handover;
    const NodeFaults& faults;
    std::uint64_t (*refused_calls)() = nullptr;
    std::function<std::optional<FleetNumbers>()> fleet = nullptr;
  };
  explicit NodeNumbersOf(Owners owners) : owners_(std::move(owners)) {}

  NodeNumbers read_numbers() const override;

 private:
  const Owners owners_;
};

}  // namespace portway
