// The control plane: what should be true (registry), what is on disk (store) and what is served (data plane),
// changed together or not at all.
//
// Every change that was asked for goes: check, bind, commit to the store, publish to the registry and the
// data plane. What fails before the commit gives back what it took. So what was acknowledged survives a
// crash, and what was refused leaves nothing behind. What the world changes (a virtual machine is gone) goes
// the other way: the data plane stops at once, and the disk follows (control/unsaved_sessions.h). An end that
// a restart would not find out again is told to nobody until it is on disk.
//
// Belongs to the control thread. While a change waits for the disk, the ends of machines are noticed and
// carried out. So after each commit it is looked at again what the change was about: where its session has
// ended by then, nothing is published, and the answer says so.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/functional/hash.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/forward.h"
#include "config/config.h"
#include "control/api_stats.h"
#include "control/auth.h"
#include "control/events.h"
#include "control/policy.h"
#include "control/port_allocator.h"
#include "control/registry.h"
#include "control/status.h"
#include "control/store.h"
#include "control/streams.h"
#include "control/unsaved_sessions.h"
#include "lifecycle/session_watch.h"
#include "network/policy_routing.h"
#include "network/return_path.h"
#include "proxy/close_record.h"
#include "proxy/dataplane.h"

namespace portway {

class Control {
 public:
  /// What it works with; all of it must outlive it.
  struct Parts {
    boost::asio::io_context& context;  // of the control thread
    Store& store;                      // what it does while it waits becomes Control's affair
    Dataplane& dataplane;
    SessionWatch& watch;  // its callbacks become Control's
    EventHub& events;
    ApiStats& stats;
    ReturnPath* return_path = nullptr;    // null: guests see the node's address, and there is no source guard
    std::string why_no_return_path = {};  // where it leads nothing back and was wanted to
    /// How long a session's return path outlives it: its connections are reset within a turn of their
    /// workers.
    std::chrono::milliseconds return_path_kept_for = std::chrono::seconds(1);
    /// Which of these addresses the node does not have now.
    std::function<std::vector<IpAddress>(std::span<const IpAddress>)> find_lost_addresses = addresses_lost;
  };
  /// `config` must outlive it. Its live keys may change between two calls; they are read where they are used.
  Control(const Config& config, const Parts& parts);
  ~Control();
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  /// Loads the store. A session whose virtual machine is gone by now is ended and reported; every forward of
  /// the others is served again, with its id and host port. One whose port somebody else has by now, or whose
  /// guest address is refused by now (guests.networks has changed, or the address is the host's own), is
  /// reported (log, state "failed") and kept: it is still promised. Once, before anything else. Takes up to
  /// 3 s where ports are taken, as they are for a while after the daemon was killed; what can be served is
  /// served meanwhile.
  Result<void> restore();

  /// Tries again what the world prevented: commits that the disk refused, forwards whose port another program
  /// had. Cheap when there is nothing; call it every few seconds.
  void retry();

  // --- Keys. The secret is returned once and kept as a hash only.

  struct NewKey {
    ApiKey key;
    std::string secret;
  };
  Result<NewKey> create_key(Role role, std::string owner, const Principal& caller);
  Result<void> delete_key(const Uuid& id, const Principal& caller);
  /// The key of the admin key file, in place of the one before: not in the store, cannot be deleted.
  void set_admin_key(std::string_view secret);
  KeyRing& keys() { return keys_; }

  // --- Instances.

  // Where `session` is given, it is the session that is meant: kSessionMismatch when the instance has
  // another. `by` is who() asks, for the log.

  struct PutInstance {
    const Instance& instance;
    bool created;
  };
  /// The virtual machine runs. The same registration again changes nothing. One with another owner, profile
  /// or vmm_pid changes the running session in place. One with another guest address or tap, or after a stop,
  /// begins a new session and ends the old one's forwards; its virtual machine may come up later: until its
  /// tap has a carrier, clients of its forwards are reset. `session` is the one that is there before.
  Result<PutInstance> put_instance(Instance asked, const std::optional<Uuid>& session = std::nullopt,
                                   std::string_view by = "?");
  /// Its session ends: forwards go, their connections are reset.
  Result<void> stop_instance(std::string_view id, const std::optional<Uuid>& session = std::nullopt,
                             std::string_view by = "?");
  Result<void> delete_instance(std::string_view id, const std::optional<Uuid>& session = std::nullopt,
                               std::string_view by = "?");
  /// The virtual machine is gone: the same as stop_instance, but nothing can refuse it, and it does not wait
  /// for the disk.
  void end_session(std::string_view id, SessionEnd why);
  /// Its session is over, which nobody is told before it is on disk: a restart would not find it out again.
  bool is_ending(const Instance& instance) const;
  /// Sessions that are otherwise in memory than on disk.
  std::size_t sessions_unsaved() const { return unsaved_.size(); }
  /// Asks once more for what is not on disk. At the end, before the store goes.
  void save_sessions() { unsaved_.save_at_end(); }
  /// kNotFound, in the same words, for one that is unknown and for one that the caller must not see.
  Result<const Instance*> find_instance(const Principal& caller, std::string_view id) const;

  // --- Forwards.

  /// Makes the answer that is remembered for a repeated request, in the transaction that makes the forwards.
  using Remember = std::function<IdempotentAnswer(std::span<const ForwardStatus>)>;
  /// All of them, or none and the first one's error; a field in it is "port_forwards[2].guest_port" where
  /// there are several.
  Result<std::vector<ForwardStatus>> create_forwards(const Principal& caller, std::string_view instance_id,
                                                     std::span<const ForwardSpec> specs,
                                                     const Remember& remember = nullptr);
  Result<std::optional<IdempotentAnswer>> find_answer(std::string_view scope, std::string_view key) const {
    return store_.find_answer(scope, key);
  }
  Result<ForwardStatus> update_forward(const Principal& caller, std::string_view instance_id,
                                       std::string_view forward_id, const ForwardChange& change);
  Result<void> delete_forward(const Principal& caller, std::string_view instance_id,
                              std::string_view forward_id, ClosePolicy policy);
  Result<ForwardStatus> find_forward(const Principal& caller, std::string_view instance_id,
                                     std::string_view forward_id) const;
  ForwardStatus status_of(const Forward& forward) const;
  /// Looks now whether the node has its public addresses, and not every few seconds.
  void look_at_addresses();

  // --- The address that guests see as their clients'.

  /// Of connections to come, to each of its addresses: what forwards get that ask for nothing else.
  SourcePlan source_of(const Instance& instance) const;
  /// The same where nothing stands in the way of an instance.
  SourcePlan node_source() const;
  /// "bpf" or "rules"; empty where there is none.
  std::string_view return_path() const;
  /// Guests cannot send with each other's addresses.
  bool has_source_guard() const { return return_path_ != nullptr && return_path_->has_guard(); }
  /// Packets dropped for it so far.
  std::uint64_t forged_packets() const { return return_path_ ? return_path_->forged_packets() : 0; }
  /// Why that is not the client's address although it was wanted; empty where it is.
  const std::string& source_reason() const { return why_no_return_path_; }
  const std::string& source_reason(const Instance& instance) const;
  /// Running instances whose guests should see their clients' addresses, and do not since something stands in
  /// the way.
  std::size_t instances_without_return_path() const;

  /// Within 100 ms.
  static constexpr int kRefusedEventsOfInstance = 2;
  static constexpr int kRefusedEventsMax = 50;
  /// Tells those who follow the events of a client that did not get through, within these limits.
  void tell_refused(const CloseRecord& record);

  // --- What others read.

  const Config& config() const { return config_; }
  const Registry& registry() const { return registry_; }
  const PortAllocator& ports() const { return ports_; }
  /// Promised and not served.
  std::size_t forwards_failed() const { return failures_.size(); }
  const SessionWatch& watch() const { return watch_; }
  EventHub& events() { return events_; }
  Streams& streams() { return streams_; }
  /// Whether a client of the node's own listeners is a guest: by its address, or since it comes over the tap
  /// of a running instance, whatever its address is. `link` is the interface's index; 0: not known. By the
  /// configuration and the instances of this moment.
  bool is_guest(const IpAddress& address, std::int32_t link) const;
  const Profile& profile_of(const Instance& instance) const;
  /// The daemon is going down: nothing new is promised any more.
  void drain() { draining_ = true; }
  bool draining() const { return draining_; }
  /// Why a new forward would be refused whoever asks for it, as far as is known now; the log is told of each
  /// change. What the disk does is known from the last time that it was written to, or asked
  /// (Store::writable).
  Result<void> check_ready();

 private:
  /// A port that is bound and counted, given back unless it is kept.
  class Lease;

  Result<Lease> lease_port(std::optional<std::uint16_t> requested);
  Result<BoundPort> bind_for(const Instance& instance, const Forward& forward,
                             std::span<const IpAddress> host_addresses);
  void serve_restored(std::vector<ForwardId> unbound, std::span<const IpAddress> host_addresses);
  void fail(const Instance& instance, const Forward& forward, const std::string& why);
  void log_store();
  void retry_failed_forwards();
  void serve(const Instance& instance, const Forward& forward, BoundPort port);
  void stop_serving(const Uuid& session_id, const std::vector<Forward>& forwards, CloseHow why);
  void forget_serving(const std::vector<Forward>& forwards);
  void give_back_ports(const std::vector<Forward>& forwards);
  std::vector<Forward> end_in_memory(const Instance& stopped);
  void tell_end(const std::string& instance_id, UnsavedSessions::Entry& unsaved);
  void replace_session(const Instance& old, const Instance& replacement);
  void tell_stopped(const Instance& stopped, std::size_t forwards, std::string_view by = {});
  void publish_stopped(const Instance& stopped, std::size_t forwards);
  void on_saved(const std::string& instance_id, const UnsavedSessions::Entry& saved);
  std::optional<SessionEnd> take_up(const Instance& stored);
  const std::string& boot_id();
  void on_armed(const std::string& instance_id, const TapIdentity& tap);
  void on_idle_tap(const std::string& instance_id, const TapIdentity& tap);
  void on_tap_renamed(const std::string& instance_id, const std::string& name);
  Result<void> check_running() const;
  Result<void> find_what_is_missing();
  bool is_machine_of(const Instance& known, const Instance& asked) const;
  Result<PutInstance> change_in_place(const Instance& asked, std::string_view by);
  Result<void> check_tap_is_free(const Instance& asked) const;
  ForwardSource sources_of(const Instance& instance, SourceMode wanted) const;
  ForwardSource wanted_source(const Instance& instance, const Forward& forward) const;
  ForwardSource take_source(const Instance& instance, const Forward& forward);
  void end_source(const ForwardId& id);
  Result<void> check_source_mode(SourceMode wanted) const;
  bool leads_back() const;
  void make_way(const Instance& instance);
  void tell_fault(const Instance& instance);
  void end_way(const std::string& instance_id);
  void take_sources(const Instance& instance);
  void tend_ways();
  bool may_tell_refused(const std::string& instance_id);
  void explain(const CloseRecord& record);
  void retry_port_ways();
  void publish(const Instance& instance, event::Kind kind);

  const Config& config_;
  Store& store_;
  Dataplane& dataplane_;
  SessionWatch& watch_;
  EventHub& events_;
  ApiStats& stats_;
  ReturnPath* const return_path_;
  const std::string why_no_return_path_;
  const std::chrono::milliseconds return_path_kept_for_;
  const decltype(Parts::find_lost_addresses) find_lost_addresses_;
  std::unordered_map<std::string, Way> ways_;  // by instance
  struct OldWay {
    Way way;
    std::chrono::steady_clock::time_point since;
  };
  /// A rule of the return path, where it has one for each port.
  struct PortWay {
    Way way;
    std::uint16_t guest_port;
    std::optional<std::chrono::steady_clock::time_point> closed = std::nullopt;  // its forward is
  };
  std::unordered_map<ForwardId, PortWay, boost::hash<ForwardId>> port_ways_;
  // Forwards that have none although they should: they are tried again.
  std::unordered_set<ForwardId, boost::hash<ForwardId>> without_port_way_;
  std::vector<OldWay> old_ways_;  // of sessions that ended: their last packets are still on the way
  Registry registry_;
  PortAllocator ports_;
  KeyRing keys_;
  Streams streams_{keys_, registry_};  // looks again after each change of what a stream may belong to
  Uuid admin_key_id_{};
  std::vector<IpAddress> lost_addresses_;  // public ones that the node did not have at the last look
  std::unordered_map<ForwardId, std::string, boost::hash<ForwardId>>
      failures_;  // why a restored forward is not served
  UnsavedSessions unsaved_;
  /// Forwards that wait for the disk: their ports are bound, and clients wait there.
  struct Making {
    std::string instance_id = {};
    std::vector<std::optional<Lease>>* leases = nullptr;
  };
  Making making_;
  std::string boot_id_;               // empty until it could be read
  std::size_t processes_unseen_ = 0;  // at the last retry()
  std::chrono::steady_clock::time_point explain_again_{};
  std::chrono::steady_clock::time_point refused_told_until_{};  // of the counts that follow
  int refused_told_all_ = 0;
  std::unordered_map<std::string, int> refused_told_;  // by instance
  bool draining_ = false;
  bool was_ready_ = true;  // at the last check_ready()
};

}  // namespace portway
