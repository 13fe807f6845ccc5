// Instances, forwards and the node as they are now: what was promised, what stands in its way, what it
// carries.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/forward.h"
#include "config/config.h"
#include "control/forward_state.h"
#include "control/usage.h"
#include "lifecycle/session_watch.h"
#include "network/source_plan.h"
#include "proxy/dataplane.h"
#include "proxy/stats.h"

namespace portway {

/// Why no client gets through the instance's tap, and the remedy; empty if one does. `fault`:
/// SessionWatch::tap_fault().
std::string tap_trouble(const Instance& instance, TapState state, const std::string& fault);

/// A forward as it is: what was promised, and whether it is served now.
struct ForwardStatus {
  Forward forward;
  ForwardState state = ForwardState::kListening;
  ForwardCause cause = ForwardCause::kNone;    // of the state
  std::string reason;                          // of kFailed and kUnavailable: why, and the remedy
  std::vector<std::string> bind_addresses;     // the node's public addresses; never empty
  std::vector<IpAddress> lost_addresses = {};  // of the public ones: the node does not have them now
  UsageStatus usage = {};                      // what it has carried
  ForwardSource source = {};                   // of connections to come, if their clients allow it
  TrafficLimits profile_limits = {};           // of the instance's profile
  std::chrono::seconds node_idle_timeout{0};   // proxy.idle_timeout_s
};

/// An instance as it is.
struct InstanceStatus {
  Instance instance;
  bool ending = false;         // its session is over, which is not on disk yet
  std::string_view tap_state;  // to_string(TapState)
  std::string tap_fault = {};  // SessionWatch::tap_fault()
  std::uint32_t forwards_max = 0;
  std::size_t forwards_now = 0;
  SourcePlan source = SourcePlan::kPlain;  // of forwards that ask for nothing else
  std::string source_reason = "";          // why there is no return path, if there is none
};

/// The node as a whole.
struct NodeInfo {
  std::string hostname;           // node.public_hostname
  std::string io_backend;         // NodeStats::io_backend
  std::string io_backend_reason;  // why not the preferred one; empty if it is
  std::size_t workers = 0;
  SourcePlan source = SourcePlan::kPlain;  // to an instance with which nothing is wrong
  std::string source_reason;               // why there is no return path although it was wanted
  std::string_view return_path;            // "bpf" or "rules"; empty if there is none
  bool has_source_guard = false;
  std::size_t instances = 0;
  std::size_t forwards = 0;
  PortRange ports;
  std::uint32_t ports_used = 0;
  std::uint32_t ports_free = 0;
};

}  // namespace portway
