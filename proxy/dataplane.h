// The data plane's interface to the control plane: bind a port, serve a forward on it, stop serving it.
//
// Called from the control thread only. Implemented by Proxy (proxy/proxy.h) and by a fake in the API's tests.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "base/fd.h"
#include "base/forward.h"
#include "network/namespace.h"
#include "network/socket_target.h"
#include "proxy/kept_forward.h"
#include "proxy/live_connection.h"
#include "proxy/stats.h"
#include "proxy/usage_meter.h"

namespace portway {

/// A host port that we hold: bound and listening on every public address, so a client that connects now
/// waits in the backlog and no other program can take the port. Destroying it releases the port.
class BoundPort {
 public:
  BoundPort(std::uint16_t port, std::vector<Fd> listeners) : port_(port), listeners_(std::move(listeners)) {}

  std::uint16_t port() const { return port_; }
  std::vector<Fd> take_listeners() { return std::move(listeners_); }

 private:
  std::uint16_t port_;
  std::vector<Fd> listeners_;
};

/// Upstream sockets are bound to a network device by its index, not by its name: a renamed device stays
/// the same one, and a new device with an old name is a different one.
inline constexpr int kAnyDevice = 0;  // not bound
inline constexpr int kNoDevice = -1;  // none yet: connections to the guest fail

/// Which source address a forward's guest sees.
struct alignas(4) ForwardSource {  // the alignment makes std::atomic lock-free
  constexpr ForwardSource(SourcePlan source_plan = SourcePlan::kPlain, bool source_required = false)
      : ForwardSource(source_plan, source_plan, source_required) {}
  constexpr ForwardSource(SourcePlan source_plan, SourcePlan source_plan_v6, bool source_required)
      : plan(source_plan), plan_v6(source_plan_v6), required(source_required) {}

  SourcePlan plan;     // kTransparent: if the client's address allows it
  SourcePlan plan_v6;  // the same for connections to GuestEndpoints::endpoint_v6
  bool required;       // explicitly requested: a client for which it is impossible is rejected

  /// The plan that holds for both address families.
  constexpr SourcePlan of_all() const { return plan == SourcePlan::kTransparent ? plan_v6 : plan; }
  constexpr bool any_transparent() const {
    return plan == SourcePlan::kTransparent || plan_v6 == SourcePlan::kTransparent;
  }
  constexpr ForwardSource without_return_path() const {
    const auto without = [](SourcePlan each) {
      return each == SourcePlan::kTransparent ? SourcePlan::kNoReturnPath : each;
    };
    return {without(plan), without(plan_v6), required};
  }

  friend bool operator==(const ForwardSource&, const ForwardSource&) = default;
};

/// A guest's port, at each of its addresses. With two of them, each family has its own, as with one DNAT rule
/// per family; otherwise all clients share one.
struct GuestEndpoints {
  Endpoint endpoint;
  std::optional<Endpoint> endpoint_v6 = std::nullopt;  // for IPv6 clients, if `endpoint` is IPv4

  /// Whether this client goes to endpoint_v6.
  bool goes_v6(const IpAddress& client) const { return endpoint_v6.has_value() && is_genuine_v6(client); }
  /// Where this client's connection goes.
  const Endpoint& of(const IpAddress& client) const { return goes_v6(client) ? *endpoint_v6 : endpoint; }
  bool has(const Endpoint& each) const { return each == endpoint || each == endpoint_v6; }
  bool has_address(const IpAddress& address) const {
    return address == endpoint.address() || (endpoint_v6 && address == endpoint_v6->address());
  }
};

/// Where a forward's connections go.
struct ForwardRoute {
  ForwardId id{};
  Uuid session_id{};                      // one run of the instance's virtual machine
  GuestEndpoints guest;                   // until set_guest() or set_guest_port()
  int device = kAnyDevice;                // interface index of the guest's tap, kAnyDevice or kNoDevice
  NetworkNamespace::Ptr netns = nullptr;  // where connections to the guest are made; null: the node's own
  std::uint32_t space = 0;                // Way::space; 0: in the node's own
  std::string instance_id = {};           // for records
  std::string owner = {};                 // whose quota the session's connections count for
  TrafficLimits limits = {};              // the forward's own
  TrafficLimits profile_limits = {};      // the session's, until set_profile_limits(): the stricter ones hold
  ForwardSource source = {};
  std::optional<SocketTarget> socket = std::nullopt;  // where they go instead of to the guest's addresses
  // Of meters(); null: nobody reads it.
  UsageMeterPtr meter = nullptr;           // the forward's
  UsageMeterPtr instance_meter = nullptr;  // shared by all forwards that the instance has had
};

/// What happens to the established connections of a forward that is closed.
enum class ClosePolicy : std::uint8_t {
  kKeep,   // they continue until they end, as under kernel DNAT when the rule is deleted
  kDrain,  // they continue for the configured drain time, then they are reset
  kReset,  // they are reset at once
};

/// Live connections in the order of their ids.
struct ConnectionPage {
  std::vector<LiveConnection> connections;
  bool more = false;  // ask again with the last one's id
};

class Dataplane {
 public:
  virtual ~Dataplane() = default;

  /// Binds `port` on every public address. kHostPortTaken if another program has it, kResourceExhausted if
  /// descriptors or memory ran out, kInvalidConfig if a public address is not one of this host's.
  virtual Result<BoundPort> bind(std::uint16_t port) = 0;
  /// Whether a port could be bound now, apart from conflicts over its number; errors as of bind().
  virtual Result<void> check_bind() const = 0;

  /// Serves `route` on a port from bind(). Cannot fail: bind() has done everything that could.
  virtual void open(ForwardRoute route, BoundPort port) = 0;

  /// Stops accepting for the forward and releases its port within a worker's turn; unknown ids are
  /// ignored. Clients in the backlog are treated like accepted connections. The counters stay readable
  /// until the last connection has ended; forward_stats no longer lists the forward. `why` goes into the
  /// records of connections that this ends.
  virtual void close(const ForwardId& id, ClosePolicy policy, CloseHow why) = 0;

  /// Forwards that were deleted while they had connections, which a predecessor has left: open() and close()
  /// them again. Only before anything else is opened.
  virtual std::vector<KeptForward> kept_forwards() const = 0;

  /// The session is over: closes its forwards and resets all of its connections, including those of
  /// forwards closed earlier and those being handed over between two workers. Unknown ids are ignored.
  virtual void end_session(const Uuid& session_id, CloseHow why) = 0;

  /// Whether no connection of a session is left since end_session(). True for unknown ones, and only of use
  /// for one whose guest is in a network namespace of its own: others are forgotten at once.
  virtual bool session_ended(const Uuid& session_id) = 0;

  /// The session, with its open forwards and their connections, has this owner from now on, for whom they
  /// count. Resets the
  /// connections of forwards closed earlier, which the new owner could neither see nor end. Unknown ids
  /// are ignored.
  virtual void change_owner(const Uuid& session_id, const std::string& owner) = 0;

  /// How many connections each owner may have at a time, over all of its sessions; 0: no limit. Those that
  /// are there stay, and count.
  virtual void set_owner_connections_max(std::uint32_t connections) = 0;

  /// The device of the session's future connections, and its ForwardRoute::space. Connections that are bound
  /// to another device are reset, also those of forwards closed earlier. Unknown ids are ignored.
  virtual void set_device(const Uuid& session_id, int device, std::uint32_t space) = 0;

  /// The guest has other addresses: one, or an IPv4 and an IPv6 one. The session's future connections go
  /// there. Those to an address that it no longer has are reset at once, also connections under way and
  /// those of forwards closed earlier; refusals are lifted. Unknown ids are ignored.
  virtual void set_guest(const Uuid& session_id, const IpAddress& address,
                         const std::optional<IpAddress>& address_v6) = 0;

  /// The future connections of an open forward go to this port of the guest. Those that are there stay, as
  /// under kernel DNAT when a rule is replaced; refusals are lifted. Unknown ids are ignored.
  virtual void set_guest_port(const ForwardId& id, std::uint16_t port) = 0;

  /// The forward was closed, or never opened, and its last connection has ended.
  virtual bool ended(const ForwardId& id) = 0;

  /// At most `limit` live connections of a forward with ids above `after`. Waits until each worker has
  /// answered between two of its turns, usually microseconds. kResourceExhausted if a worker does not
  /// answer within 250 ms.
  virtual Result<ConnectionPage> connections(const ForwardId& id, ConnectionId after, std::size_t limit) = 0;
  /// Resets one connection of a forward, or all of them (0), and returns how many: 0 if the forward has no
  /// such connection. Errors as above; the connections end nevertheless.
  virtual Result<std::size_t> end_connections(const ForwardId& id, ConnectionId connection) = 0;

  /// Changes an open forward's own limits; unknown ids are ignored. Existing connections stay.
  virtual void set_limits(const ForwardId& id, const TrafficLimits& limits) = 0;

  /// Changes the limits that hold for each forward of the session beside its own, also for the connections of
  /// forwards closed earlier. Existing connections stay, and count. Unknown ids are ignored.
  virtual void set_profile_limits(const Uuid& session_id, const TrafficLimits& limits) = 0;

  /// Changes the source address of future connections of an open forward; unknown ids are ignored.
  virtual void set_source(const ForwardId& id, ForwardSource source) = 0;

  /// Whether clients of a forward are refused now because its guest has refused one: `client`, or all of
  /// them (nullopt).
  virtual bool refuses(const ForwardId& id, const std::optional<IpAddress>& client) const = 0;

  /// Counts of one forward, or of all open ones in no particular order.
  virtual std::optional<ForwardStats> forward_stats(const ForwardId& id) const = 0;
  virtual std::vector<ForwardStats> forward_stats() const = 0;
  virtual NodeStats node_stats() const = 0;
  /// Makes the meters of forwards and instances.
  virtual UsageMeters& meters() = 0;
};

}  // namespace portway
