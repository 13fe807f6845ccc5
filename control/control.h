// The control plane: what should be true (registry), what is on disk (store) and what is served (data plane),
// changed together or not at all.
//
// Every change that a caller asks for goes: check, bind, commit to the store, publish to the registry and the
// data plane. What fails before the commit gives back what it took. So what was acknowledged survives a
// crash, and what was refused leaves nothing behind. What the world changes (a virtual machine is gone) goes
// the other way: the data plane stops at once, and the disk follows (control/unsaved_sessions.h). An end that
// a restart would not find out again is not reported before it is on disk.
//
// Belongs to the control thread, and never makes it wait for the disk. While a change waits for it,
// everything else goes on. Two changes of one instance, forward or key come one after the other
// (control/change_locks.h); but a machine may be gone at any time. So after each commit the subject of the
// change is looked up again: if its session has ended by then, nothing is published, and the answer says so.
//
// control.cpp has what belongs to the node as a whole, control_instances.cpp and control_forwards.cpp the
// changes, control_restore.cpp the start, status.cpp what it reports.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/functional/hash.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "config/config.h"
#include "control/api_stats.h"
#include "control/auth.h"
#include "control/change.h"
#include "control/change_locks.h"
#include "control/events.h"
#include "control/forward_expiries.h"
#include "control/forward_health.h"
#include "control/forward_set.h"
#include "control/forward_state.h"
#include "control/key_admin.h"
#include "control/keys.h"
#include "control/owned_instance.h"
#include "control/policy.h"
#include "control/port_allocator.h"
#include "control/port_lease.h"
#include "control/prepared_forwards.h"
#include "control/refused_clients.h"
#include "control/registry.h"
#include "control/session_remains.h"
#include "control/source_paths.h"
#include "control/status.h"
#include "control/store.h"
#include "control/streams.h"
#include "control/unsaved_sessions.h"
#include "control/usage.h"
#include "lifecycle/session_watch.h"
#include "network/namespace.h"
#include "network/policy_routing.h"
#include "network/return_path.h"
#include "proxy/close_record.h"
#include "proxy/dataplane.h"

namespace portway {

class Control final : public KeyAdmin {
 public:
  /// What it works with; all of it must outlive it.
  struct Parts {
    boost::asio::io_context& context;  // of the control thread
    Store& store;
    Dataplane& dataplane;
    SessionWatch& watch;  // its callbacks become Control's
    EventHub& events;
    ApiStats& stats;
    ReturnPath* return_path = nullptr;    // SourcePaths::Parts
    std::string why_no_return_path = {};  // SourcePaths::Parts
    /// How long a session's return path outlives it: its connections are reset within a turn of their
    /// workers.
    std::chrono::milliseconds return_path_kept_for = std::chrono::seconds(1);
    /// Which of these addresses the node does not have now.
    std::function<std::vector<IpAddress>(std::span<const IpAddress>)> find_lost_addresses = addresses_lost;
    KeyClock key_clock = {};
  };
  /// `config` must outlive it. Its live keys may change between two calls; they are read where they are used.
  Control(const Config& config, const Parts& parts);
  ~Control() override;
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  /// Loads the store. A session whose virtual machine is gone by now is ended and reported; every forward of
  /// the others is served again, with its id and host port. One whose port somebody else has by now, or whose
  /// guest address is refused by now (guests.networks has changed, or the address is the host's own), is
  /// reported (log, state "failed") and kept: it is still promised. Once, before anything else. Takes up to
  /// 3 s if ports are taken, as they are for a while after the daemon was killed; what can be served is
  /// served meanwhile.
  Result<void> restore();

  /// Tries again what the world prevented: commits that the disk refused, forwards whose port another program
  /// had. Looks for what nobody reports. Cheap when there is nothing; call it every few seconds.
  void retry();

  // --- Keys (control/keys.h). A key or a secret that goes ends its streams.

  Change<NewKey> create_key(KeySpec spec, Principal caller) override;
  Change<KeyStatus> change_key(Uuid id, ApiKeyChange change, Principal caller) override;
  Change<NewKey> rotate_key(Uuid id, std::chrono::seconds overlap, Principal caller) override;
  Change<void> delete_key(Uuid id, Principal caller) override;
  /// Keys::set_admin_key().
  void set_admin_key(std::string_view secret);
  KeyRing& keys() override { return keys_.ring(); }
  const KeyRing& keys() const { return keys_.ring(); }

  // --- What the fleet has beside the node's own.

  /// Keys::set_shared() and shared_fault().
  void set_fleet_keys(std::map<Uuid, ApiKey> keys);
  const std::string& fleet_keys_fault() const { return keys_.shared_fault(); }
  /// In place of those of the configuration that have the same name.
  void set_fleet_profiles(Profiles profiles);
  const Profiles& fleet_profiles() const { return fleet_profiles_; }
  /// Whether the fleet may have profiles that are not known here yet: what is of a profile that is not known
  /// is refused until then, and not measured by another one's limits. Null: it has none.
  void set_profiles_pending(std::function<bool()> pending) { profiles_pending_ = std::move(pending); }
  /// Those of the configuration and the fleet's; there is always a "default".
  const Profiles& profiles() const { return profiles_; }

  // --- Instances.

  // `by` is for the log.

  struct PutInstance {
    Instance instance;
    bool created = false;
  };
  /// The virtual machine runs. Idempotent. Another owner, profile, target or vmm_pid changes the running
  /// session in place. Another guest address or tap, or a registration after a stop, begins a new session and
  /// ends the old one's forwards; its virtual machine may come up later: until its tap has a carrier, clients
  /// of its forwards are reset. `session` is the one that is there before.
  Change<PutInstance> put_instance(Instance asked, Precondition<Instance> precondition = nullptr,
                                   Actor by = {});
  /// The running session continues with other settings, and its forwards keep their ids and host ports. They
  /// lead to the present guest addresses; connections to an address that it no longer has are reset. All of
  /// the change or nothing of it. Idempotent.
  Change<Instance> change_instance(std::string id, InstanceChange change,
                                   Precondition<Instance> precondition = nullptr, Actor by = {});
  /// Its session ends: forwards go, their connections are reset.
  Change<void> stop_instance(std::string id, Precondition<Instance> precondition = nullptr, Actor by = {});
  Change<void> delete_instance(std::string id, Precondition<Instance> precondition = nullptr, Actor by = {});
  /// The virtual machine is gone: the same as stop_instance, but nothing can refuse it, and it does not wait
  /// for the disk.
  void end_session(std::string_view id, SessionEnd why);
  /// Sessions that differ between memory and disk.
  std::size_t sessions_unsaved() const { return unsaved_.size(); }
  /// Asks once more for what is not on disk. At the end, before the store goes.
  void save_sessions() {
    unsaved_.save_at_end();
    keys_.save_uses(true);
  }
  /// The same of what has been carried, once nothing is carried any more.
  void save_usage() { usage_.save_at_end(); }
  /// kNotFound, in the same words, for one that is unknown and for one that the caller must not see.
  Result<const Instance*> find_instance(const Principal& caller, std::string_view id) const;
  /// At most `limit` of those that the caller sees and `admits` is true of, by id, after this one.
  std::vector<const Instance*> list_instances(const Principal& caller, std::string_view after,
                                              std::size_t limit,
                                              const std::function<bool(const Instance&)>& admits) const;
  InstanceStatus status_of(const Instance& instance) const;
  UsageStatus usage_of(const Instance& instance) const { return usage_.of(instance); }
  /// Its session is over, which is not reported before it is on disk: a restart would not find it out again.
  bool is_ending(const Instance& instance) const;
  TapState tap_state(const Instance& instance) const { return watch_.tap_state(instance); }
  /// SessionWatch::tap_fault().
  std::string tap_fault(const Instance& instance) const { return watch_.tap_fault(instance); }
  /// SessionWatch::netns_of().
  Result<NetworkNamespace::Ptr> netns_of(const Instance& instance) const { return watch_.netns_of(instance); }
  struct CapturePlace {
    std::string_view name;                  // of the interface
    std::int32_t link = 0;                  // its index; 0: there is none now
    NetworkNamespace::Ptr netns = nullptr;  // where it is; null: in the node's own
  };
  /// Where the packets of an instance's guest are seen: at its tap, or without one at the device that leads
  /// to it. kInvalidRequest if it has neither; errors of SessionWatch::netns_of().
  Result<CapturePlace> capture_place(const Instance& instance) const;

  // --- Forwards.

  /// What a repeated request will be answered, once these forwards exist; nullopt: nothing is remembered.
  using Remember = std::function<std::optional<IdempotentAnswer>(std::span<const ForwardStatus> created)>;
  /// Checks all of them, binds their host ports, stores them, and serves them. All of them, or none and the
  /// first one's error; a field in it is "port_forwards[2].guest_port" if there are several, or the list has
  /// entries. What `remember` returns is stored in the same transaction. The result is in the order of the
  /// specs.
  Change<std::vector<ForwardStatus>> create_forwards(Principal caller, std::string instance_id,
                                                     ForwardList list, Remember remember = nullptr);
  /// Requests with one Idempotency-Key come one after the other.
  boost::asio::awaitable<ChangeLocks::Held> lock_answer(std::string_view scope, std::string_view key);
  /// Store::back_up(). An upgrade waits for it.
  Change<std::shared_ptr<StoreBackup>> back_up();
  Change<std::optional<IdempotentAnswer>> find_answer(std::string scope, std::string key) const {
    return store_.find_answer(std::move(scope), std::move(key));
  }
  /// What the instance should have, instead of what it has (control/forward_set.h): all of the change or
  /// nothing of it. A dry run only says what it would be. `policy`: of the connections of forwards that are
  /// removed.
  Change<ForwardSetOutcome> set_forwards(Principal caller, std::string instance_id, ForwardList list,
                                         bool dry_run, ClosePolicy policy);
  Change<ForwardStatus> update_forward(Principal caller, std::string instance_id, std::string forward_id,
                                       ForwardChange change, Precondition<Forward> precondition = nullptr);
  Change<void> delete_forward(Principal caller, std::string instance_id, std::string forward_id,
                              ClosePolicy policy, Precondition<Forward> precondition = nullptr);
  /// All of the instance's forwards for which `which` is true, or none. Returns their ids.
  Change<std::vector<ForwardId>> delete_forwards(Principal caller, std::string instance_id,
                                                 std::function<bool(const Forward&)> which,
                                                 ClosePolicy policy);
  Result<ForwardStatus> find_forward(const Principal& caller, std::string_view instance_id,
                                     std::string_view forward_id) const;
  ForwardStatus status_of(const Forward& forward) const;
  ForwardState state_of(const Forward& forward) const;
  /// Why no client would reach the machine, with the remedy, if it is for its tap.
  void log_tap_trouble(const Instance& instance) const;
  /// Publishes what has changed in some forwards' states; in all of them within half a second. Call it every
  /// few milliseconds, and say how long ago the last call was.
  void look_at_forwards(std::chrono::milliseconds since_last);
  /// The forwards of an instance by id, after this one.
  std::vector<const Forward*> list_forwards(std::string_view instance_id, const ForwardId& after) const {
    return registry_.forwards(instance_id, after);
  }
  /// Whether the instance's present session has this forward.
  bool has_forward(const Instance& instance, const ForwardId& id) const;
  /// Dataplane::connections() and end_connections().
  Result<ConnectionPage> connections(const ForwardId& id, ConnectionId after, std::size_t limit) const;
  Result<std::size_t> end_connections(const ForwardId& id, ConnectionId connection);
  /// Clients of the forward are refused now: all of them, or this one.
  bool refuses(const ForwardId& id, const std::optional<IpAddress>& client) const {
    return dataplane_.refuses(id, client);
  }
  /// Looks now whether the node has its public addresses, and not every few seconds.
  void look_at_addresses();

  // --- The address that guests see as their clients' (control/source_paths.h).

  std::uint64_t forged_packets() const { return source_paths_.forged_packets(); }
  std::size_t instances_without_return_path() const { return source_paths_.instances_without(); }
  /// SessionWatch::namespaces().
  std::size_t guest_namespaces() const { return watch_.namespaces(); }

  /// Publishes that a client did not get through, within RefusedClients' limits.
  void report_refused(const CloseRecord& record);

  // --- The node.

  /// The live keys of the configuration have changed: what is served follows.
  void apply_config();
  NodeInfo info() const;
  const Config& config() const { return config_; }
  const Registry& registry() const { return registry_; }
  const PortAllocator& ports() const { return ports_; }
  /// Promised and not served.
  std::size_t forwards_failed() const { return failures_.size(); }
  EventHub& events() { return events_; }
  Streams& streams() { return streams_; }
  /// Whether a client of the node's own listeners is a guest: by its address, or because it comes over the
  /// tap of a running instance, whatever its address is. `link` is the interface's index; 0: not known. By
  /// the configuration and the instances of this moment.
  bool is_guest(const IpAddress& address, std::int32_t link) const;
  /// Waits for the changes under way, and lets further ones wait until the result is gone.
  boost::asio::awaitable<ChangeLocks::Held> pause_changes();
  bool has_changes_under_way() const { return locks_.size() > 0; }
  /// The daemon is going down: nothing is changed or promised any more.
  void shut_down() { shutting_down_ = true; }
  bool is_shutting_down() const { return shutting_down_; }
  /// The node is emptied by its operator: until that is taken back, also over restarts, it takes no new
  /// session and no new forward; what it has goes on. Whoever is refused is told to go to another node.
  /// Idempotent.
  Change<NodeDrain> set_draining(bool draining, Actor by = {});
  const NodeDrain& drain() const { return drain_; }
  bool is_draining() const { return drain_.since.has_value(); }
  /// All reasons why a new forward would be refused whoever asks for it, as far as is known now; none: it is
  /// ready. The first one is what a request would be told. Each change is logged.
  /// What the disk does is known from the last time that it was written to, or asked (Store::writable).
  std::vector<Error> check_ready();

 private:
  // The start.
  std::optional<SessionEnd> take_up(const Instance& stored);
  const std::string& boot_id();
  void serve_kept(std::span<const Instance> stored);
  void serve_restored(std::vector<ForwardId> unbound, std::span<const IpAddress> host_addresses);
  void fail(const Instance& instance, const Forward& forward, const std::string& why);
  Result<BoundPort> bind_for(const Instance& instance, const Forward& forward,
                             std::span<const IpAddress> host_addresses);
  void retry_failed_forwards();

  // Instances.
  const Profile& profile_of(const Instance& instance) const;
  Result<void> check_profile_is_known(std::string_view name) const;
  bool is_machine_of(const Instance& known, const Instance& asked) const;
  Result<Instance> changed_instance(const Instance& known, const InstanceChange& change) const;
  Change<std::optional<Instance>> change_session(Instance before, Instance wanted, Actor by);
  Change<std::unique_ptr<OwnedInstance>> own_instance(std::string id);
  Change<PutInstance> put_owned_instance(Instance asked, Precondition<Instance> precondition, Actor by);
  Change<PutInstance> begin_session(Instance asked, Actor by);
  Result<void> check_new_session(Instance& asked, InstanceLimits& limits);
  Change<PutInstance> change_in_place(Instance asked, Actor by);
  void replace_session(const Instance& old, const Instance& replacement);
  std::vector<const Instance*> running_instances() const;
  Result<void> check_tap_is_free(const Instance& asked) const;
  Result<void> check_addresses_are_free(const Instance& asked) const;
  void on_armed(const std::string& instance_id, const TapIdentity& tap);
  void on_idle_tap(const std::string& instance_id, const TapIdentity& tap);
  void on_tap_renamed(const std::string& instance_id, const std::string& name);
  void on_device(const std::string& instance_id);
  void enable_path(const Instance& instance);
  int dial_device(const Instance& instance) const;
  void on_saved(const std::string& instance_id, const UnsavedSessions::Entry& saved);
  void report_end(const std::string& instance_id, UnsavedSessions::Entry& unsaved);
  std::vector<Forward> end_in_memory(const Instance& stopped);
  void report_stopped(const Instance& stopped, std::size_t forwards, const Actor* by = nullptr);
  void publish_lost(const Instance& before);
  void publish_stopped(const Instance& stopped, std::size_t forwards);

  // Forwards.
  Change<std::pair<ChangeLocks::Held, ChangeLocks::Held>> share_instance(std::string id);
  Result<PreparedForwards> prepare_forwards(const Principal& caller, const Instance& instance,
                                            const ForwardSpecs& specs);
  Result<void> publish_forwards(PreparedForwards& prepared);
  std::size_t committing(std::string_view instance_id) const;
  std::size_t forwards_of_owner(std::string_view owner) const;
  Result<Forward> changed_forward(const Principal& caller, Forward forward,
                                  const ForwardChange& change) const;
  /// What a forward becomes, with its host port if it is to be served again.
  struct ForwardUpdate {
    Forward forward;
    std::optional<BoundPort> port = std::nullopt;
  };
  Result<ForwardUpdate> prepare_update(Forward changed);
  const Forward* publish_update(ForwardUpdate update);
  void publish_removal(const ForwardId& id, ClosePolicy policy, CloseHow why = CloseHow::kForwardDeleted);
  /// Of a set of forwards, what is to be stored.
  struct ForwardSetStep {
    ForwardList created;
    std::vector<Forward> updated;
    std::vector<ForwardId> removed;
  };
  Result<ForwardSetStep> check_forward_set(const Principal& caller, const Instance& instance,
                                           const ForwardList& list, const ForwardSetPlan& plan) const;
  bool is_stopped(const Forward& forward) const;
  void stop_serving(const Forward& forward, ClosePolicy policy, CloseHow why);
  void on_expired(const ForwardId& id);
  boost::asio::awaitable<void> delete_expired(ForwardId id);
  ForwardSetOutcome outcome_of(const ForwardSetPlan& plan, const ForwardSetStep& step) const;
  Result<void> check_forwards(const Principal& caller, const Instance& instance,
                              const ForwardSpecs& specs) const;
  Result<std::vector<std::optional<PortLease>>> lease_ports(const ForwardSpecs& specs,
                                                            std::string_view owner);
  Result<std::vector<PortLease>> lease_any(std::size_t count, std::string_view owner);
  Result<std::vector<PortLease>> lease_port(std::uint16_t wanted, std::string_view owner);
  void count_port_error(ErrorCode code);
  void serve(const Instance& instance, const Forward& forward, BoundPort port);
  void stop_serving(const Uuid& session_id, const std::vector<Forward>& forwards, CloseHow why);
  void forget_serving(const std::vector<Forward>& forwards);
  void give_back_ports(const std::vector<Forward>& forwards, const std::string& owner);

  // Their state.
  ForwardCause cause_of(const Forward& forward) const;
  std::string reason_of(const Forward& forward, ForwardCause cause) const;
  std::uint32_t max_connections_of(const Forward& forward) const;
  void look_at_forwards_of(std::string_view instance_id);
  void look_at_forward(const ForwardId& id);
  int ask_guest(const ForwardId& id, const Endpoint& guest, SynProbe& probe) const;

  // The node.
  void log_store();
  std::string lost_text() const;
  Change<ChangeLocks::Held> begin_change();
  static std::string lock_of_instance(std::string_view id) { return "instance/" + std::string(id); }
  Result<void> check_running() const;
  Result<void> check_takes(std::string_view what) const;
  std::vector<Error> find_what_is_missing();
  void publish(const Instance& instance, event::Kind kind);

  boost::asio::io_context& context_;
  const Config& config_;
  Store& store_;
  Dataplane& dataplane_;
  SessionWatch& watch_;
  EventHub& events_;
  ApiStats& stats_;
  const decltype(Parts::find_lost_addresses) find_lost_addresses_;
  Registry registry_;
  SourcePaths source_paths_;
  PortAllocator ports_;
  Keys keys_;
  Profiles fleet_profiles_;
  std::function<bool()> profiles_pending_;
  Profiles profiles_ = config_.profiles;      // and the fleet's
  Streams streams_{keys_.ring(), registry_};  // rechecked after each change of what a stream may belong to
  RefusedClients refused_clients_;
  std::vector<IpAddress> lost_addresses_;  // public ones that the node did not have at the last look
  // Why restored forwards are not served.
  std::unordered_map<ForwardId, std::string, boost::hash<ForwardId>> failures_;
  ForwardHealth health_;
  // At the last look.
  std::unordered_map<ForwardId, ForwardCause, boost::hash<ForwardId>> known_causes_;
  ForwardPlace looked_at_;  // the last one
  ForwardExpiries expiries_;
  // Whose time has come, and which the store still has. They are not served.
  std::unordered_set<ForwardId, boost::hash<ForwardId>> expired_;
  UnsavedSessions unsaved_;
  Usage usage_;
  SessionRemains remains_;
  ChangeLocks locks_;
  // Waiting for the disk: their ports are bound, and clients wait there.
  std::list<PreparedForwards*> committing_;
  // Waiting for the disk: what they have nobody else may have.
  std::list<const Instance*> beginning_;
  std::string boot_id_;               // empty until it could be read
  std::size_t processes_unseen_ = 0;  // at the last retry()
  bool shutting_down_ = false;
  NodeDrain drain_;                       // as on disk; set a little earlier, while the disk is waited for
  std::vector<ErrorCode> not_ready_for_;  // at the last check_ready()
};

}  // namespace portway
