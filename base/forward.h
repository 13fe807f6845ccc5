// The control plane's objects: instances, forwards, profiles. Plain values; no sockets, no threads.
#pragma once

#include <bitset>
#include <boost/uuid/uuid.hpp>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "base/endpoint.h"
#include "base/metadata.h"
#include "base/namespace_identity.h"

namespace portway {

/// UUIDv7 (RFC 9562): sorts by creation time, so "list in order" is "list by id".
using Uuid = boost::uuids::uuid;
using ForwardId = Uuid;

/// A new UUIDv7; random bits from getrandom(2). Ids made by one process ascend, even within a millisecond.
Uuid make_uuid();
std::string to_string(const Uuid& id);
std::optional<Uuid> parse_uuid(std::string_view text);

using Timestamp = std::chrono::sys_time<std::chrono::milliseconds>;
Timestamp now();
/// When a UUIDv7 was made, by the clock of whoever made it.
Timestamp time_of(const Uuid& id);
/// RFC 3339 in UTC with milliseconds: "2026-01-31T12:00:00.000Z".
std::string to_rfc3339(Timestamp time);
/// The inverse, from any zone, "2026-01-31T13:00:00+01:00", of the years 1970 to 9999; what is finer than a
/// millisecond is cut off. No leap seconds.
std::optional<Timestamp> parse_rfc3339(std::string_view text);

enum class InstanceState : std::uint8_t { kRunning, kStopped };
std::string_view to_string(InstanceState state);

/// Why a session ended.
enum class SessionEnd : std::uint8_t {
  kStopped,       // by the orchestrator
  kReplaced,      // the orchestrator registered the instance again
  kDeleted,       // the orchestrator deleted the instance
  kCarrierLost,   // nobody holds the tap open any more
  kTapDeleted,    //
  kVmmExited,     // the process of vmm_pid is gone
  kNodeRebooted,  // since the session began
  kNetnsGone,     // its name leads to no network namespace any more, or to another one
  kMoved,         // another node of the fleet has a newer session of the instance
};
std::string_view to_string(SessionEnd end);
std::optional<SessionEnd> parse_session_end(std::string_view text);

/// What distinguishes one network device from another, and one machine behind it from the next: names are
/// reused, an index is not, and the kernel's count of lost carriers never goes back.
struct TapIdentity {
  std::int32_t index = 0;  // 0: none
  // Absent if the kernel does not report it (before 4.16).
  std::optional<std::uint32_t> carrier_downs = std::nullopt;

  friend bool operator==(const TapIdentity&, const TapIdentity&) = default;
};

/// What a forward's clients are connected to.
enum class TargetKind : std::uint8_t {
  kTcp,               // a TCP port of the guest
  kUnix,              // a Unix stream socket of the node
  kFirecrackerVsock,  // a port of the guest's vsock, through the Unix socket of its Firecracker
};
std::string_view to_string(TargetKind kind);
std::optional<TargetKind> parse_target_kind(std::string_view text);

struct Target {
  TargetKind kind = TargetKind::kTcp;
  std::string socket = {};  // absolute path; empty for kTcp
  std::uint32_t port = 0;   // of the vsock, 1 to kVsockPortMax; 0 for the others

  bool is_tcp() const { return kind == TargetKind::kTcp; }
  friend bool operator==(const Target&, const Target&) = default;
};

inline constexpr std::uint32_t kVsockPortMax = UINT32_MAX - 1;  // the last is VMADDR_PORT_ANY (vsock(7))

/// Instance::device of a guest that is reached by the node's routes, whatever interface they name.
inline constexpr std::string_view kByRoute = "none";
/// Instance::netns and tap_netns: the network namespace of the process vmm_pid.
inline constexpr std::string_view kNetnsOfVmm = "vmm_pid";
/// Instance::tap_netns: the node's own.
inline constexpr std::string_view kNetnsOfNode = "node";

/// A microVM as the orchestrator registered it; one run of the VM is one session.
struct Instance {
  std::string id;                                            // the orchestrator's: 1-64 of [A-Za-z0-9._-]
  IpAddress guest_address;                                   // the IPv4 one if there are two
  std::optional<IpAddress> guest_address_v6 = std::nullopt;  // for IPv6 clients, if guest_address is IPv4
  std::string tap;          // the host's interface to the guest, 1-15 bytes; empty: vmm_pid alone is watched
  std::string device = {};  // what leads to the guest: an interface, or kByRoute; empty: the tap
  // The network namespaces: a path, or one of the names above. `netns` is where connections to the guest are
  // made; empty: in the node's own. `tap_netns` is where the tap is; empty: the same.
  std::string netns = {};
  std::string tap_netns = {};
  // Of forwards that give none. With a vsock, port 0: each forward's guest_port is the port.
  Target target = {};
  std::string owner;  // whose keys see the instance
  std::string profile = "default";
  Metadata metadata = {};
  std::optional<std::int32_t> vmm_pid = std::nullopt;
  Uuid session_id{};
  InstanceState state = InstanceState::kRunning;
  Timestamp created_at{};
  std::optional<SessionEnd> ended = std::nullopt;  // why it is stopped

  // What distinguishes this session's virtual machine from a later one.
  std::int32_t tap_index = 0;  // the tap's interface index once it had a carrier in this session; 0: not yet
  std::optional<std::uint32_t> tap_carrier_downs = std::nullopt;  // TapIdentity::carrier_downs at that time
  // Until then: the tap as it was first seen up and without a carrier.
  TapIdentity idle_tap = {};
  std::uint64_t vmm_started = 0;  // process_start_time() of vmm_pid; 0: no pid
  std::string boot_id = {};       // of the node's kernel when the session began
  NamespaceIdentity netns_identity = {};
  NamespaceIdentity tap_netns_identity = {};
};

/// What connections to the guest go through: `device`, or the tap.
std::string_view device_of(const Instance& instance);

/// The network namespace of the tap, as `netns` says it: empty for the node's own.
std::string_view tap_netns_of(const Instance& instance);

/// One address, or an IPv4 and an IPv6 one, in this order.
std::vector<IpAddress> guest_addresses(const Instance& instance);

/// A request to change a running instance's guest addresses; what is absent stays.
struct GuestAddressChange {
  std::optional<IpAddress> guest_address = std::nullopt;
  std::optional<std::optional<IpAddress>> guest_address_v6 =
      std::nullopt;  // with nothing in it: none any more
};

/// A request to change a running instance; what is absent stays.
struct InstanceChange {
  GuestAddressChange addresses = {};
  std::optional<std::string> owner = std::nullopt;
  std::optional<std::string> profile = std::nullopt;
  std::optional<std::optional<std::int32_t>> vmm_pid = std::nullopt;  // with nothing in it: none any more
  MetadataChange metadata = {};
};

/// The address a guest sees as its client. For a forward, kAuto means the node's setting; for the node,
/// kTransparent if possible, else kPlain.
enum class SourceMode : std::uint8_t {
  kAuto,
  kTransparent,  // the client's own, as under DNAT
  kPlain,        // the node's
  kProxyV2,      // the node's; a PROXY protocol header (version 2) before the bytes has the client's
};
std::string_view to_string(SourceMode mode);
std::optional<SourceMode> parse_source_mode(std::string_view text);

inline constexpr std::size_t kAllowedCidrsMax = 64;

/// Limits that nftables would set beside a DNAT rule. Zero or empty: no limit. A forward has its own, and its
/// instance's profile has limits for each forward; the stricter one of the two is in effect.
struct TrafficLimits {
  std::vector<Cidr> allowed_cidrs;                   // where clients may come from; empty: anywhere
  std::uint32_t max_connections = 0;                 // at a time
  std::uint32_t max_connections_per_source = 0;      // at a time from one client address (IPv6: from one /64)
  std::uint32_t max_new_connections_per_second = 0;  // with bursts of the same number
  std::uint64_t max_bytes_per_second = 0;            // each way, all connections together
  std::chrono::seconds idle_timeout{0};              // a profile's only: silence that ends a connection

  friend bool operator==(const TrafficLimits&, const TrafficLimits&) = default;
};

/// The limits by name: that of the field here and in the API.
enum class Limit : std::uint8_t {
  kAllowedCidrs,
  kMaxConnections,
  kMaxConnectionsPerSource,
  kMaxNewConnectionsPerSecond,
  kMaxBytesPerSecond,
};
inline constexpr std::size_t kLimits = 5;
std::string_view to_string(Limit limit);
std::optional<Limit> parse_limit(std::string_view text);

/// A set of limits, indexed by Limit.
using LimitSet = std::bitset<kLimits>;
/// The names in the order of Limit.
std::vector<std::string_view> names_of(const LimitSet& limits);
/// The limits that are set.
LimitSet set_limits(const TrafficLimits& limits);
/// Gives `to` those limits of `from`.
void copy_limits(const LimitSet& which, const TrafficLimits& from, TrafficLimits& to);

/// The stricter one of each limit. `allowed_cidrs` is that of `own`: a profile has none.
TrafficLimits stricter(const TrafficLimits& own, const TrafficLimits& of_profile);
/// The limits of which the profile's is in effect: `own` has none, or a looser one.
LimitSet limits_of_profile(const TrafficLimits& own, const TrafficLimits& of_profile);

/// A request for a new forward.
struct ForwardSpec {
  std::uint16_t guest_port = 0;  // 0: not given
  std::string protocol = "tcp";
  std::string label;                                      // 0-63 bytes of UTF-8 without control characters
  std::optional<std::uint16_t> host_port = std::nullopt;  // random if absent
  TrafficLimits limits = {};
  SourceMode source_mode = SourceMode::kAuto;
  std::optional<Target> target = std::nullopt;  // absent: the instance's
  Metadata metadata = {};
  bool enabled = true;
  std::optional<Timestamp> expires_at = std::nullopt;  // absent: it does not
  bool follows = false;  // its host port is the one behind that of the spec before it
};

/// A request for several.
struct ForwardList {
  std::vector<ForwardSpec> specs;
  std::vector<std::size_t> entries = {};  // of each spec, in the caller's list; empty: each is one

  std::size_t entry(std::size_t i) const { return entries.empty() ? i : entries[i]; }
  /// Whether the entry is more than this spec: one with `host_ports`.
  bool is_in_row(std::size_t i) const {
    if (entries.empty()) return false;
    return (i > 0 && entries[i - 1] == entries[i]) ||
           (i + 1 < entries.size() && entries[i + 1] == entries[i]);
  }
};

/// A request to change a forward.
struct ForwardChange {
  std::optional<std::string> label = std::nullopt;
  LimitSet given = {};        // the limits that change
  TrafficLimits limits = {};  // and what they become
  std::optional<SourceMode> source_mode = std::nullopt;
  std::optional<std::uint16_t> guest_port = std::nullopt;
  MetadataChange metadata = {};
  std::optional<bool> enabled = std::nullopt;
  std::optional<std::optional<Timestamp>> expires_at = std::nullopt;  // with nothing in it: it does not
};

/// A promise: this host port belongs to that guest port until the forward is deleted or its session ends.
struct Forward {
  ForwardId id{};
  std::string instance_id;
  Uuid session_id{};
  std::uint16_t guest_port = 0;  // 0 if the target is no TCP port
  std::uint16_t host_port = 0;
  std::string protocol = "tcp";
  std::string label;
  Timestamp created_at{};
  TrafficLimits limits = {};
  SourceMode source_mode = SourceMode::kAuto;  // as requested
  LimitSet admin_limits = {};                  // set by an admin: a tenant cannot change them
  Target target = {};
  Metadata metadata = {};
  bool enabled = true;                                 // otherwise it has its port, and serves nobody
  std::optional<Timestamp> expires_at = std::nullopt;  // when it is deleted
};

/// Where a forward stands in a list of forwards. An id begins with the time of its creation.
struct ForwardPosition {
  std::uint16_t host_port = 0;  // 0 if the list is not sorted by it
  ForwardId id{};

  friend bool operator<(const ForwardPosition& a, const ForwardPosition& b) {
    return std::tie(a.host_port, a.id) < std::tie(b.host_port, b.id);
  }
};

/// Limits of an instance, by name in the config.
struct Profile {
  std::uint32_t max_forwarded_ports = 5;
  bool allow_host_port = false;  // tenants may choose the host port
  TrafficLimits limits = {};     // of each forward, whatever its own are; no allowed_cidrs

  friend bool operator==(const Profile&, const Profile&) = default;
};
using Profiles = std::map<std::string, Profile, std::less<>>;  // by name

}  // namespace portway
