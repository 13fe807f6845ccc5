// A forward as the data plane serves it: its route, its phase, and its counts, one set for each worker.
//
// Shared by the control thread and every worker. Members that are not atomic, not under a mutex and not a
// worker's own are constant after construction. It lives until the control plane has closed it and its last
// connection has ended.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "proxy/admission.h"
#include "proxy/backlog_queue.h"
#include "proxy/connection_lists.h"
#include "proxy/dataplane.h"
#include "proxy/run_queue.h"
#include "proxy/stats.h"

namespace portway {

/// The network namespace in which a session's connections are made. Any thread.
class SessionNetns {
 public:
  explicit SessionNetns(NetworkNamespace::Ptr netns)
      : is_nodes_own_(netns == nullptr), netns_(std::move(netns)) {}

  bool is_nodes_own() const { return is_nodes_own_; }
  /// Null is the node's own. Nothing after leave(): no socket can be made there any more. Keep it for one
  /// call only.
  std::optional<NetworkNamespace::Ptr> get() const {
    if (is_nodes_own_) return NetworkNamespace::Ptr();
    const std::lock_guard lock(mutex_);
    return netns_ ? std::optional(netns_) : std::nullopt;
  }
  /// The session is over: its records may live on, and must not keep the namespace.
  void leave() {
    const std::lock_guard lock(mutex_);
    netns_.reset();
  }

 private:
  const bool is_nodes_own_;
  mutable std::mutex mutex_;
  NetworkNamespace::Ptr netns_;
};

/// What the sessions of one owner share.
class ServedOwner {
 public:
  /// 0: no limit. Control thread; connections that are there stay.
  void set_max(std::uint32_t connections) { max_.store(connections, std::memory_order_relaxed); }
  bool is_full() const {
    const std::uint32_t max = max_.load(std::memory_order_relaxed);
    return max != 0 && connections_.load(std::memory_order_relaxed) >= max;
  }
  /// Counts a new connection, until leave(). False: there are as many as there may be. Any thread.
  bool try_enter() {
    const std::uint32_t max = max_.load(std::memory_order_relaxed);
    if (max == 0) {
      enter();
      return true;
    }
    std::uint32_t now = connections_.load(std::memory_order_relaxed);
    do {
      if (now >= max) return false;
    } while (!connections_.compare_exchange_weak(now, now + 1, std::memory_order_relaxed));
    return true;
  }
  /// Counts one that is there.
  void enter() { connections_.fetch_add(1, std::memory_order_relaxed); }
  void leave() { connections_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint32_t> connections_{0};
  std::atomic<std::uint32_t> max_{0};
};
using ServedOwnerPtr = std::shared_ptr<ServedOwner>;

/// What the forwards of one session share.
struct ServedSession {
  ServedSession(const Uuid& session_id, int session_device, NetworkNamespace::Ptr session_netns = nullptr,
                ServedOwnerPtr first_owner = std::make_shared<ServedOwner>())
      : id(session_id), netns(std::move(session_netns)), device(session_device) {
    set_owner(std::move(first_owner));
  }

  /// Whom new connections count for. Valid as long as the session.
  ServedOwner& owner() const { return *owner_.load(std::memory_order_acquire); }
  /// Control thread. Each worker must look at the session's connections then (Worker::LimitsChanged). The
  /// former ones stay valid: connections that count for them may be on their way between workers.
  void set_owner(ServedOwnerPtr next) {
    owner_.store(next.get(), std::memory_order_release);
    if (std::find(owners_.begin(), owners_.end(), next) == owners_.end()) owners_.push_back(std::move(next));
  }

  const Uuid id;
  SessionNetns netns;                         // see ForwardRoute::netns
  std::atomic<int> device;                    // see ForwardRoute::device; set by the control thread
  std::atomic<std::uint32_t> space{0};        // see ForwardRoute::space; set by the control thread
  std::atomic<bool> device_asked_for{false};  // by a waiting client; see DeviceRequests
  std::atomic<std::uint32_t> connections{0};  // of all its forwards
  std::atomic<std::uint32_t> pipes{0};        // that their relays hold between turns
  std::atomic<std::uint32_t> forwards{0};     // open ones; set by the control thread
  TrafficLimits profile_limits = {};          // see ForwardRoute::profile_limits; control thread only
  std::chrono::nanoseconds owned_since{0};    // by its owner, on the monotonic clock; control thread only

 private:
  std::vector<ServedOwnerPtr> owners_;  // that it has had; control thread only
  std::atomic<ServedOwner*> owner_{nullptr};
};
using ServedSessionPtr = std::shared_ptr<ServedSession>;

/// How far a forward's end has come. It only advances.
enum class ForwardPhase : std::uint8_t {
  kOpen,
  kKept,      // closed: its connections continue
  kDraining,  // closed: its connections have a deadline
  kEnded,     // closed: its connections are reset
};

/// A worker's connections of one forward.
struct ForwardConnections {
  static constexpr std::uint64_t kAll = std::numeric_limits<std::uint64_t>::max();

  ConnectionList all;           // the live ones, the oldest first
  HalfClosedList half_closed;   // those that have been half-closed and silent longest come first
  RunQueue::Lane ready;         // those with an event, except bulk streams
  std::uint64_t end_until = 0;  // connections with serials up to this one are being ended
  CloseHow end_how = CloseHow::kForwardDeleted;  // what their records say
  std::uint32_t half_closed_place = 0;           // the forward's index in HalfClosed
  std::optional<IpAddress> main_source;          // has most of the latest connections
  std::chrono::nanoseconds sources_due{0};       // when to determine main_source again
};

struct ServedForward : std::enable_shared_from_this<ServedForward> {
  /// `listening` is the index of the worker that has its listeners. If no session or no queue of its Unix
  /// socket is given, it gets one of its own.
  ServedForward(ForwardRoute forward_route, std::size_t workers, std::size_t listening = 0,
                ServedSessionPtr of_session = nullptr, std::shared_ptr<BacklogQueue> socket_backlog = nullptr)
      : route(std::move(forward_route)),
        session(of_session ? std::move(of_session)
                           : std::make_shared<ServedSession>(route.session_id, route.device)),
        backlog(socket_backlog || !route.socket ? std::move(socket_backlog)
                                                : std::make_shared<BacklogQueue>(listening)),
        counters(std::make_unique<ForwardCounters[]>(workers)),
        connections(std::make_unique<ForwardConnections[]>(workers)),
        worker_count(workers),
        listening_worker(listening),
        meters{route.meter ? route.meter : std::make_shared<UsageMeter>(workers),
               route.instance_meter ? route.instance_meter : std::make_shared<UsageMeter>(workers)},
        source(route.source) {
    replace_guest(route.guest);
    set_limits(route.limits);
  }

  ForwardStats stats() const;
  std::uint64_t connections_now() const;
  /// It is closed and has no connection left, not even in the backlog or on its way between workers.
  bool idle() const;
  /// The forward's own limits; the session's profile_limits hold as well. From the control thread; applies to
  /// what comes afterwards. True if the workers must look at its connections (Worker::LimitsChanged).
  bool set_limits(const TrafficLimits& limits);
  /// The same for changed profile_limits.
  bool apply_profile_limits() { return set_limits(own_limits_); }
  const TrafficLimits& own_limits() const { return own_limits_; }
  /// Silence after which its connections end, apart from the node's own idle timeout; 0: none.
  std::chrono::nanoseconds idle_timeout() const {
    return std::chrono::nanoseconds(idle_timeout_ns_.load(std::memory_order_relaxed));
  }
  /// Where its clients go now. A worker may use the result until the end of the message or completion that
  /// it handles.
  const GuestEndpoints& guest() const { return *guest_.load(std::memory_order_acquire); }
  /// From the control thread. Returns the former ones: each worker must get a message with them, so that they
  /// live until none uses them any more.
  std::shared_ptr<const GuestEndpoints> replace_guest(const GuestEndpoints& endpoints) {
    auto replacement = std::make_shared<const GuestEndpoints>(endpoints);
    guest_.store(replacement.get(), std::memory_order_release);
    return std::exchange(guest_owner_, std::move(replacement));
  }
  /// The source of a client's connection to this endpoint of the guest: `plan` holds the plan for it.
  ForwardSource source_to(const Endpoint& to) const {
    const ForwardSource each = source.load(std::memory_order_relaxed);
    return {to == guest().endpoint_v6 ? each.plan_v6 : each.plan, each.required};
  }
  /// From the control thread, before the workers get the message: whoever starts a connection afterwards
  /// sees it. False if it had already advanced that far.
  bool advance(ForwardPhase to, CloseHow why);

  const ForwardRoute route;
  const ServedSessionPtr session;
  const std::shared_ptr<BacklogQueue> backlog;              // of its Unix socket; null: it has none
  const std::unique_ptr<ForwardCounters[]> counters;        // [w] is written by worker w only
  const std::unique_ptr<ForwardConnections[]> connections;  // [w] belongs to worker w
  const std::size_t worker_count;
  const std::size_t listening_worker;
  const std::array<UsageMeterPtr, 2> meters;  // its own and its instance's
  Admission admission;
  ByteRate rate[2];                   // of the bytes that come from each side
  std::atomic<ForwardSource> source;  // set by the control thread
  // The guest's port is closed and the listeners are shut; [1] is for clients that go to its IPv6 address,
  // if it has one of each family.
  std::atomic<bool> refusing[2] = {false, false};
  std::atomic<ForwardPhase> phase{ForwardPhase::kOpen};
  std::atomic<CloseHow> why{CloseHow::kForwardDeleted};  // the cause in records of connections that this ends
  // Accepted connections on their way to another worker: not yet among connections_active.
  std::atomic<std::uint32_t> handed_over{0};
  std::atomic<bool> accepting{false};  // its worker may still accept for it

  // Held while listeners are shut or opened: none may listen again once `phase` says that the forward is
  // closed.
  std::mutex listeners_mutex;
  // Clients that its listeners refuse; under listeners_mutex. When the forward is closed, the control
  // thread removes the remaining refusals: another forward may get the port.
  std::vector<std::pair<Endpoint, IpAddress>> refused_clients;
  std::vector<int> listeners;                 // control thread only; open until the worker hears of the close
  std::vector<std::uint32_t> listener_slots;  // listening worker only

 private:
  TrafficLimits own_limits_;  // control thread only
  std::atomic<std::int64_t> idle_timeout_ns_{0};
  std::shared_ptr<const GuestEndpoints> guest_owner_;  // control thread only
  std::atomic<const GuestEndpoints*> guest_{nullptr};  // guest_owner_'s
};

using ServedForwardPtr = std::shared_ptr<ServedForward>;
static_assert(std::atomic<ForwardSource>::is_always_lock_free, "it is read for every connection");

}  // namespace portway
