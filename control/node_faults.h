// What the daemon should have but has not: parts that could not start, or have stopped working, while the
// node's forwards go on without them. Each is tried again until it works.
//
// They are reported in the log, by GET /readyz and GET /v1/node, to systemd, and by the metric portway_fault.
// Belongs to the control thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/forward.h"

namespace portway {

enum class FaultPart : std::uint8_t {
  kStore,        // the disk refuses changes
  kApi,          // a listener of api.listen
  kMetrics,      // that of metrics.listen
  kCertificate,  // of a listener that is up: it has expired, or its files cannot be read again
  kAdminKey,     // api.admin_key_file
  kAccessLog,    // log.access
  kAuditLog,     // log.audit
  kKeeper,       // connections end with the process
  kWorker,       // its thread hangs
  kFleet,        // what etcd is told of the node (FleetFault), and what the node is told (FleetSettings)
};
inline constexpr std::size_t kFaultParts = 10;
/// As in the API and the metrics: "api", "admin_key", ...
std::string_view to_string(FaultPart part);

struct NodeFault {
  FaultPart part = FaultPart::kApi;
  std::string subject;  // which one, if there are several: a listener's address, a worker's number
  std::string detail;   // why, and the remedy
  Timestamp since{};
};

class NodeFaults {
 public:
  /// Logs it, if it is new or has another reason.
  void set(FaultPart part, std::string_view subject, std::string_view detail);
  /// Logs it, if there was such a fault.
  void clear(FaultPart part, std::string_view subject = {});

  bool has(FaultPart part) const { return counts()[static_cast<std::size_t>(part)] != 0; }
  /// By part and subject.
  std::vector<NodeFault> all() const;
  std::array<std::uint64_t, kFaultParts> counts() const;
  /// "api 0.0.0.0:8080, access_log"; empty if there is none.
  std::string summary() const;

 private:
  std::map<std::pair<FaultPart, std::string>, NodeFault, std::less<>> faults_;
};

}  // namespace portway
