// Counters of the data plane: plain numbers, each with one writer, read by any thread at any time.
//
// A worker adds to its own counters with a relaxed load and store (no locked instruction); a scrape reads
// them with relaxed loads. No scrape stops or messages a worker. The readers add up the workers' values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/counter.h"
#include "base/forward.h"
#include "network/source_plan.h"

namespace portway {

/// Who ended a connection.
enum class CloseSide : std::uint8_t { kClient, kGuest, kNode };
inline constexpr std::size_t kCloseSides = 3;
std::string_view to_string(CloseSide side);

/// How a connection ended.
enum class CloseHow : std::uint8_t {
  kFin,               // both directions ended with FIN; the side is the one that sent it first
  kReset,             // the side sent RST
  kRefused,           // the guest answered the SYN with RST
  kConnectTimeout,    // the guest did not answer the SYN
  kConnectError,      // no route, no tap, no descriptor, ...
  kIdleTimeout,       //
  kHalfCloseTimeout,  // one direction had ended and the other stayed silent
  kKeepaliveTimeout,  // the side stopped answering (keepalive or retransmissions)
  kForwardDeleted,    //
  kShutdown,          // the daemon shut down
  kResources,         // memory ran out
  kInstanceStopped,   // the instance's session ended, and the forward with it
  kTapGone,           // the guest's tap is gone
  kDeviceGone,        // what led to the guest (Instance::device) is gone, or another one has its name
  kKilled,            // by an API request
  kEvicted,           // half-closed, and ended for another when connections were short
  kAddressChanged,    // the guest has another address
  kForwardDisabled,   // by an API request
  kForwardExpired,    // Forward::expires_at
  kLimit,             // rejected right after accept: in records only, the counts have RejectReason
};
inline constexpr std::size_t kCloseHows = static_cast<std::size_t>(CloseHow::kLimit) + 1;
std::string_view to_string(CloseHow how);

/// Who ended a connection and how: the labels of portway_connections_closed_total.
struct CloseCause {
  CloseSide side = CloseSide::kNode;
  CloseHow how = CloseHow::kShutdown;

  friend bool operator==(const CloseCause&, const CloseCause&) = default;
};

/// Why a connection to the guest could not be opened.
enum class ConnectError : std::uint8_t {
  kRefused,
  kTimeout,
  kUnreachable,
  kDeviceGone,
  kResources,
  kSourcePorts,  // no source port is free towards this guest port (EADDRNOTAVAIL)
  kOther
};
inline constexpr std::size_t kConnectErrors = static_cast<std::size_t>(ConnectError::kOther) + 1;
std::string_view to_string(ConnectError error);

/// Why an accepted connection was rejected at once.
enum class RejectReason : std::uint8_t {
  kConnectionsMax,         // of the node
  kForwardGone,            //
  kDraining,               //
  kSourceNotAllowed,       // not in the forward's allowed_cidrs
  kForwardConnectionsMax,  // the forward's max_connections
  kSourceConnectionsMax,   // its max_connections_per_source
  kNewConnectionRate,      // its max_new_connections_per_second
  kSourceAddress,          // the guest cannot see the client's address, and must not see the node's instead
  kInstanceShare,          // its instance has used up its share, and connections are short
  kForwardShare,           // the same, for its forward within the instance
  kSourceShare,            // the same, for its source address within the forward
  kOwnerConnectionsMax,    // its instance's owner has owners.max_connections
  kClientGone,             // it had reset the connection before it was looked at
};
inline constexpr std::size_t kRejectReasons = static_cast<std::size_t>(RejectReason::kClientGone) + 1;
std::string_view to_string(RejectReason reason);

inline constexpr std::array<double, 12> kConnectBoundsS = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
                                                           0.01,   0.025,   0.1,    0.5,   1,      5};
inline constexpr std::array<double, 10> kConnectionBoundsS = {0.01, 0.1, 0.5, 1,    5,
                                                              30,   120, 600, 3600, 86400};

/// One worker's share of one forward's counts. `received` is client to guest, `sent` is guest to client:
/// bytes the other side's socket has taken.
struct alignas(64) ForwardCounters {
  Counter connections_active;
  Counter connections_accepted;
  Counter connections_established;  // the guest answered
  Counter received_bytes;
  Counter sent_bytes;
  std::array<Counter, kConnectErrors> connect_errors;
  std::array<Counter, kRejectReasons> rejected;
};

/// One worker's own counts.
struct alignas(64) WorkerCounters {
  Counter connections_active;
  std::array<std::array<Counter, kCloseHows>, kCloseSides> closed;
  std::array<Counter, kRejectReasons> rejected;
  Counter io_refusals;    // submissions to the ring that the kernel refused; they are retried
  Counter io_losses;      // times that the kernel had no memory for completions; everything is armed again
  Counter accept_pauses;  // times that accepting paused for lack of descriptors
  Counter spliced_bytes;
  Counter copied_bytes;
  Counter pipes_open;                         // in use or pooled
  Counter pipes_in_use;                       // held by a connection
  Counter pipes_clamped;                      // open pipes that the kernel's per-user limit made smaller
  Counter pipes_exhausted;                    // how often a relay had to do without one
  Counter pipe_writes_short;                  // times one took less than it had room for, for lack of memory
  Counter refusal_gates;                      // gates that refuse clients now, because the guest does
  Counter refusal_gates_total;                // gates ever started
  Counter refusal_gates_skipped;              // gates not started, or ended early, because of a bound
  Counter refusal_probes;                     // SYNs that tested whether a guest's port is open again
  Counter busy_poll_ns;                       // spent looking for events instead of sleeping
  Counter close_records_dropped;              // the control thread did not keep up
  std::array<Counter, kSourcePlans> sources;  // connections that the guest answered
  Histogram<kConnectBoundsS.size()> connect_duration;
  Histogram<kConnectionBoundsS.size()> connection_duration;
};

/// The counts of one forward, summed over the workers, at one moment.
struct ForwardStats {
  ForwardId id{};
  std::uint64_t connections_active = 0;
  std::uint64_t connections_accepted = 0;
  std::uint64_t connections_established = 0;
  std::uint64_t received_bytes = 0;
  std::uint64_t sent_bytes = 0;
  std::array<std::uint64_t, kConnectErrors> connect_errors{};
  std::array<std::uint64_t, kRejectReasons> rejected{};
};

/// The state of the data plane at one moment.
struct NodeStats {
  std::string io_backend;                      // "uring" or "epoll"
  std::string io_backend_reason;               // why not the preferred one; empty if it is
  std::vector<const WorkerCounters*> workers;  // valid as long as the data plane
  std::uint64_t connections_max = 0;           // how many the node can have now
};

}  // namespace portway
