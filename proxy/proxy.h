// The data plane: the workers' threads, and the forwards they serve. Called from the control thread.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <boost/container_hash/hash.hpp>

#include "base/endpoint.h"
#include "config/config.h"
#include "proxy/connection_table.h"
#include "proxy/connections.h"
#include "proxy/dataplane.h"
#include "proxy/fair_share.h"
#include "proxy/inherited.h"
#include "proxy/served_forward.h"
#include "proxy/slot_arena.h"
#include "proxy/worker.h"

namespace portway {

struct ProxyOptions {
  ConnectionOptions connections = {};  // includes the configuration of the data plane
  std::vector<IpAddress> public_addresses = {};
  // Descriptors reserved for listeners. Two listeners beyond them cost one connection.
  std::uint32_t listeners_reserved = UINT32_MAX;
  // What a predecessor has left; null: nothing. It outlives end_adoption().
  Inherited* inherited = nullptr;
  // Called on each worker's thread before anything else.
  std::function<void()> prepare_worker = {};
};

class Proxy final : public Dataplane {
 public:
  /// Starts the workers. Fails with kResourceExhausted if io_backend is kUring and io_uring is refused, or
  /// if descriptors, memory or threads ran out; kAuto continues with epoll and says why in node_stats().
  static Result<std::unique_ptr<Proxy>> start(const ProxyOptions& options);
  /// As stop() does.
  ~Proxy() override;

  /// The memory of all connections: what a successor needs, beside the descriptors.
  const Fd& memory() const { return arena_.memory(); }
  /// No worker does anything until resume(). kResourceExhausted if one does not answer; then none waits.
  Result<void> pause();
  void resume();
  /// The workers, by number, whose threads have taken no turn since the call before: they hang, if that was
  /// long ago.
  std::vector<std::size_t> silent_workers();
  /// Every forward that a predecessor's connections could belong to has been opened: resets the others.
  /// Returns how many connections continue.
  std::size_t end_adoption();

  Result<BoundPort> bind(std::uint16_t port) override;
  Result<void> check_bind() const override;
  void open(ForwardRoute route, BoundPort port) override;
  void close(const ForwardId& id, ClosePolicy policy, CloseHow why) override;
  std::vector<KeptForward> kept_forwards() const override;
  void end_session(const Uuid& session_id, CloseHow why) override;
  bool session_ended(const Uuid& session_id) override;
  void change_owner(const Uuid& session_id, const std::string& owner) override;
  void set_owner_connections_max(std::uint32_t connections) override;
  void set_device(const Uuid& session_id, int device, std::uint32_t space) override;
  void set_guest(const Uuid& session_id, const IpAddress& address,
                 const std::optional<IpAddress>& address_v6) override;
  void set_guest_port(const ForwardId& id, std::uint16_t port) override;
  bool ended(const ForwardId& id) override;
  void set_limits(const ForwardId& id, const TrafficLimits& limits) override;
  void set_profile_limits(const Uuid& session_id, const TrafficLimits& limits) override;
  void set_source(const ForwardId& id, ForwardSource source) override;
  Result<ConnectionPage> connections(const ForwardId& id, ConnectionId after, std::size_t limit) override;
  Result<std::size_t> end_connections(const ForwardId& id, ConnectionId connection) override;

  bool refuses(const ForwardId& id, const std::optional<IpAddress>& client) const override;
  std::optional<ForwardStats> forward_stats(const ForwardId& id) const override;
  std::vector<ForwardStats> forward_stats() const override;
  NodeStats node_stats() const override;
  UsageMeters& meters() override { return meters_; }

  /// Calls take(CloseRecord&&) for each connection that has ended since the last call, worker by worker.
  /// Call it often: records that do not fit into a worker's ring are dropped and counted.
  template <class Take>
  void drain_closes(Take take) {
    for (const auto& worker : workers_) worker->drain_closes(take);
  }

  /// Closes every forward but lets connections continue: the first half of a graceful shutdown.
  void stop_accepting();
  /// No connection is left.
  bool idle() const;
  /// Resets the remaining connections and joins the workers. Afterwards only drain_closes() and the counts
  /// may be used.
  void stop();

 private:
  /// A session with forwards, or with connections of forwards that were closed.
  struct Session {
    ServedSessionPtr served;
    std::vector<ServedForwardPtr> forwards;  // also closed ones, until prune() drops them
    std::size_t prune_at = 64;               // the number of forwards at which to prune
  };

  Proxy(const ProxyOptions& options, std::string backend, std::string backend_reason,
        std::vector<std::unique_ptr<Io>> ios);
  const Config::Proxy& config() const { return options_.connections.config; }
  void limits_changed(const ServedForwardPtr& forward);
  void replace_guest(const ServedForwardPtr& forward, const GuestEndpoints& guest);
  void close(const ServedForwardPtr& forward, ForwardPhase to, CloseHow why);
  void count_listeners(ServedSession& session, bool open, std::size_t listeners);
  ServedOwnerPtr owner_of(const std::string& name);
  std::shared_ptr<BacklogQueue> backlog_of(const SocketTarget& socket, std::size_t worker);
  void take_waiting(const ServedForwardPtr& forward, int listener);
  void note_kept(const ServedForward& forward, ForwardPhase phase, CloseHow why);
  Result<Fd> listen_at(const Endpoint& endpoint) const;
  std::size_t place_connections();
  void adopt(const ServedForwardPtr& forward);
  Fd inherited_upstream(const ServedForward& forward, int client);
  void prune(const Uuid& session_id);

  ProxyOptions options_;
  const std::string backend_;
  const std::string backend_reason_;
  SlotArena arena_;
  UsageMeters meters_;
  FairShare share_;
  std::size_t listeners_ = 0;        // of open forwards
  std::uint32_t busy_sessions_ = 0;  // sessions with open forwards
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<std::thread> threads_;
  std::unordered_map<ForwardId, ServedForwardPtr, boost::hash<ForwardId>> forwards_;  // the open ones
  std::unordered_map<Uuid, Session, boost::hash<Uuid>> sessions_;
  // For session_ended().
  std::unordered_map<Uuid, std::vector<ServedForwardPtr>, boost::hash<Uuid>> ending_;
  std::unordered_map<ForwardId, std::weak_ptr<ServedForward>, boost::hash<ForwardId>>
      closing_;                   // closed ones, for ended(); pruned now and then
  std::size_t closing_max_ = 64;  // prune at this size
  std::unordered_map<std::string, std::weak_ptr<BacklogQueue>> backlogs_;  // by path; pruned now and then
  std::size_t backlogs_max_ = 64;
  std::unordered_map<std::string, std::weak_ptr<ServedOwner>> owners_;  // by name; pruned now and then
  std::size_t owners_max_ = 64;
  std::uint32_t owner_connections_max_ = 0;
  std::size_t next_worker_ = 0;
  std::size_t placed_ = 0;      // connections of a predecessor
  std::promise<void> resumed_;  // of the pause that lasts
};

}  // namespace portway
