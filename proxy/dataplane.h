// What the control plane may ask of the data plane: take a port, serve a forward on it, stop serving it.
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
#include "proxy/live_connection.h"
#include "proxy/stats.h"

namespace portway {

/// A host port that is ours: bound and listening on every public address, so a client that connects now waits
/// in the backlog and nobody else can take the port. Destroying it gives the port back.
class BoundPort {
 public:
  BoundPort(std::uint16_t port, std::vector<Fd> listeners) : port_(port), listeners_(std::move(listeners)) {}

  std::uint16_t port() const { return port_; }
  std::vector<Fd> take_listeners() { return std::move(listeners_); }

 private:
  std::uint16_t port_;
  std::vector<Fd> listeners_;
};

/// Upstream sockets are bound to a network device by its index, not by its name: a device that is renamed
/// stays the same one, and a new device with an old name is another one.
inline constexpr int kAnyDevice = 0;  // not bound
inline constexpr int kNoDevice = -1;  // there is none yet: connections to the guest fail

/// Whose address a forward's guest sees as its clients'.
struct alignas(4) ForwardSource {  // an atomic one needs no lock
  constexpr ForwardSource(SourcePlan source_plan = SourcePlan::kPlain, bool source_required = false)
      : ForwardSource(source_plan, source_plan, source_required) {}
  constexpr ForwardSource(SourcePlan source_plan, SourcePlan source_plan_v6, bool source_required)
      : plan(source_plan), plan_v6(source_plan_v6), required(source_required) {}

  SourcePlan plan;     // kTransparent: as far as a connection's client allows it
  SourcePlan plan_v6;  // the same for what goes to ForwardRoute::upstream_v6
  bool required;       // it was asked for by name: a client for which it is impossible is rejected

  /// What holds for clients of both ways.
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

/// Where a forward's connections go.
struct ForwardRoute {
  ForwardId id{};
  Uuid session_id{};  // one run of the instance's machine: what belongs to it ends with it
  Endpoint upstream;  // the guest's address and port
  std::optional<Endpoint> upstream_v6 = std::nullopt;  // beside an IPv4 one: for IPv6 clients
  int device = kAnyDevice;       // interface index of the guest's tap, kAnyDevice or kNoDevice
  std::string instance_id = {};  // for records
  TrafficLimits limits = {};
  ForwardSource source = {};

  /// Each family has a way to the guest of its own, as with a DNAT rule for each. Otherwise all clients share
  /// one.
  bool goes_v6(const IpAddress& client) const { return upstream_v6.has_value() && is_genuine_v6(client); }
  /// Where this client's connection goes.
  const Endpoint& upstream_of(const IpAddress& client) const {
    return goes_v6(client) ? *upstream_v6 : upstream;
  }
};

/// What happens to the established connections of a forward that is closed.
enum class ClosePolicy : std::uint8_t {
  kKeep,   // they continue until they end, as under kernel DNAT when the rule is deleted
  kDrain,  // they continue for the configured drain time, then they are reset
  kReset,  // they are reset now
};

/// Live connections in the order of their ids.
struct ConnectionPage {
  std::vector<LiveConnection> connections;
  bool more = false;  // ask again, after the last one's id
};

class Dataplane {
 public:
  virtual ~Dataplane() = default;

  /// Takes `port` on every public address. kHostPortTaken if another program has it, kResourceExhausted if
  /// descriptors or memory ran out, kInvalidConfig if a public address is not one of this host's.
  virtual Result<BoundPort> bind(std::uint16_t port) = 0;
  /// Whether a port could be bound now, as far as its number has nothing to do with it; errors as of bind().
  virtual Result<void> check_bind() const = 0;

  /// Serves `route` on a port taken before. Cannot fail: bind() has done what could fail.
  virtual void open(ForwardRoute route, BoundPort port) = 0;

  /// Stops accepting for the forward and gives its port back, soon (within a worker's turn); unknown ids are
  /// ignored. Clients that are connected but were not accepted yet are connections like the others. Its
  /// counters stay readable until the last connection has ended; forward_stats no longer lists it. If its
  /// connections are ended, `why` is what their records say.
  virtual void close(const ForwardId& id, ClosePolicy policy, CloseHow why) = 0;

  /// The session is over: closes its forwards and resets all of its connections, also those of forwards that
  /// were closed before and those that are still on their way between two workers. Unknown ids are ignored.
  virtual void end_session(const Uuid& session_id, CloseHow why) = 0;

  /// The session, with its open forwards and their connections, has another owner from now on. Connections
  /// that the new owner could neither see nor end are reset: those of forwards that were closed before.
  /// Unknown ids are ignored.
  virtual void change_owner(const Uuid& session_id) = 0;

  /// The device of the session's future connections. Unknown ids are ignored.
  virtual void set_device(const Uuid& session_id, int device) = 0;

  /// The forward was closed, or never opened, and its last connection has ended.
  virtual bool ended(const ForwardId& id) = 0;

  /// The live connections of a forward, those with ids above `after`, at most `limit`. Each worker is asked
  /// and answers between two of its turns: this waits for that, microseconds as a rule. kResourceExhausted
  /// if a worker was too busy to answer within 250 ms.
  virtual Result<ConnectionPage> connections(const ForwardId& id, ConnectionId after, std::size_t limit) = 0;
  /// Resets one connection of a forward, or all of them (0), and returns how many: 0 if the
  /// forward has no such connection. Errors as above; the connections end all the same.
  virtual Result<std::size_t> end_connections(const ForwardId& id, ConnectionId connection) = 0;

  /// Changes the limits of an open forward; unknown ids are ignored. Existing connections stay.
  virtual void set_limits(const ForwardId& id, const TrafficLimits& limits) = 0;

  /// Changes the source address of future connections of an open forward; unknown ids are ignored.
  virtual void set_source(const ForwardId& id, ForwardSource source) = 0;

  /// Whether clients of a forward are refused now, because its guest has refused one: all of them, or this
  /// one.
  virtual bool refuses(const ForwardId& id, const std::optional<IpAddress>& client) const = 0;

  /// Counts of one forward, or of all open ones in no order.
  virtual std::optional<ForwardStats> forward_stats(const ForwardId& id) const = 0;
  virtual std::vector<ForwardStats> forward_stats() const = 0;
  virtual NodeStats node_stats() const = 0;
};

}  // namespace portway
