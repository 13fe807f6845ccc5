// The control plane: what should be true (registry), what is on disk (store) and what is served (data plane),
// changed together or not at all.
//
// Every change goes: check, bind, commit to the store, publish to the registry and the data plane. What fails
// before the commit gives back what it took; nothing after the commit can fail. So what was acknowledged
// survives a crash, and what was refused leaves nothing behind. Belongs to the control thread; only the
// store's commit blocks it.
#pragma once

#include <boost/functional/hash.hpp>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "api/auth.h"
#include "api/json.h"
#include "config/config.h"
#include "config/forward.h"
#include "config/policy.h"
#include "config/port_allocator.h"
#include "config/registry.h"
#include "config/store.h"
#include "metrics/api_stats.h"
#include "proxy/dataplane.h"

namespace portway {

class Control {
 public:
  /// All of them must outlive it.
  Control(const Config& config, Store& store, Dataplane& dataplane, ApiStats& stats);

  /// Loads the store and serves every forward in it again, with its id and host port. One whose port somebody
  /// else has by now, or whose guest address is refused by now (guests.networks has changed, or the address
  /// is the host's own), is reported (log, state "failed") and kept: it is still promised. Once, before
  /// anything else.
  Result<void> restore();

  // --- Keys. The secret is returned once and kept as a hash only.

  struct NewKey {
    ApiKey key;
    std::string secret;
  };
  Result<NewKey> create_key(Role role, std::string owner);
  Result<void> delete_key(const Uuid& id, const Principal& caller);
  /// The key of the admin key file: not in the store, cannot be deleted.
  void add_admin_key(std::string_view secret);
  KeyRing& keys() { return keys_; }

  // --- Instances.

  struct PutInstance {
    const Instance& instance;
    bool created;
  };
  /// The virtual machine runs. The same registration again changes nothing; one that differs from the running
  /// session's, or follows a stop, begins a new session and ends the old one's forwards.
  Result<PutInstance> put_instance(Instance asked);
  /// Its session ends: forwards go, their connections are reset.
  Result<void> stop_instance(std::string_view id);
  Result<void> delete_instance(std::string_view id);
  /// kNotFound, in the same words, for one that is unknown and for one that the caller must not see.
  Result<const Instance*> find_instance(const Principal& caller, std::string_view id) const;

  // --- Forwards.

  Result<ForwardStatus> create_forward(const Principal& caller, std::string_view instance_id,
                                       const ForwardSpec& spec);
  Result<void> delete_forward(const Principal& caller, std::string_view instance_id,
                              std::string_view forward_id, ClosePolicy policy);
  Result<ForwardStatus> find_forward(const Principal& caller, std::string_view instance_id,
                                     std::string_view forward_id) const;
  ForwardStatus status_of(const Forward& forward) const;

  // --- What others read.

  const Config& config() const { return config_; }
  const Registry& registry() const { return registry_; }
  const PortAllocator& ports() const { return ports_; }
  const Profile& profile_of(const Instance& instance) const;
  /// The daemon is going down: nothing new is promised any more.
  void drain() { draining_ = true; }
  bool draining() const { return draining_; }

 private:
  /// A port that is bound and counted, given back unless it is kept.
  class Lease;

  Result<Lease> lease_port(std::optional<std::uint16_t> requested);
  Result<BoundPort> bind_again(std::uint16_t port);
  /// `refused`: why it must not be served, or null.
  void restore_forward(const Instance& instance, const Forward& forward, const Error* refused);
  void serve(const Instance& instance, const Forward& forward, BoundPort port);
  void end_forwards(const std::vector<Forward>& forwards, ClosePolicy policy, CloseHow why);
  Result<void> check_running() const;

  const Config& config_;
  Store& store_;
  Dataplane& dataplane_;
  ApiStats& stats_;
  Registry registry_;
  PortAllocator ports_;
  KeyRing keys_;
  Uuid admin_key_id_{};
  std::unordered_map<ForwardId, std::string, boost::hash<ForwardId>>
      failures_;                                         // why a restored forward is not served
  std::chrono::steady_clock::time_point bind_deadline_;  // restore() retries until then
  bool draining_ = false;
};

}  // namespace portway
