#include "proxy/proxy.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/uuid/uuid_hash.hpp>
#include <chrono>
#include <future>
#include <numeric>
#include <utility>

#include "base/blocked_signals.h"
#include "base/socket.h"
#include "network/client_refusals.h"
#include "proxy/epoll_io.h"
#include "proxy/listen_socket.h"
#include "proxy/uring_io.h"

namespace portway {
namespace {

Result<std::vector<std::unique_ptr<Io>>> make_ios(Result<std::unique_ptr<Io>> (*make)(), unsigned count) {
  std::vector<std::unique_ptr<Io>> ios;
  for (unsigned i = 0; i < count; ++i) {
    auto io = make();
    if (!io) return io.error();
    ios.push_back(std::move(*io));
  }
  return ios;
}

/// A worker answers between two of its turns, which are milliseconds even under the heaviest load.
constexpr std::chrono::milliseconds kAnswerTimeout{250};
/// While a successor takes over, which is worth more than what the other workers' clients wait meanwhile:
/// where the machine's cores are overloaded, a worker's thread may not run for longer than kAnswerTimeout.
constexpr std::chrono::seconds kTakeOverTimeout{5};

/// Posts make_message(promise) to every worker and waits for the answers.
template <class Answer, class MakeMessage>
Result<std::vector<Answer>> ask(const std::vector<std::unique_ptr<Worker>>& workers, MakeMessage make_message,
                                std::chrono::milliseconds timeout = kAnswerTimeout) {
  std::vector<std::future<Answer>> pending;
  for (const auto& worker : workers) {
    std::promise<Answer> answer;
    pending.push_back(answer.get_future());
    worker->post(make_message(std::move(answer)));
  }
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  std::vector<Answer> answers;
  for (auto& each : pending) {
    if (each.wait_until(deadline) != std::future_status::ready) {
      return Error{ErrorCode::kResourceExhausted,
                   "The data plane is too busy to answer; try again in a moment."};
    }
    answers.push_back(each.get());
  }
  return answers;
}

/// Not if it is shut.
bool listens(int listener) {
  int on = 0;
  socklen_t size = sizeof on;
  return ::getsockopt(listener, SOL_SOCKET, SO_ACCEPTCONN, &on, &size) == 0 && on != 0;
}

}  // namespace

bool ServedForward::set_limits(const TrafficLimits& limits) {
  own_limits_ = limits;
  const TrafficLimits in_effect = stricter(limits, session->profile_limits);
  admission.set_limits(in_effect);
  for (ByteRate& each : rate) each.set_limit(in_effect.max_bytes_per_second);
  const std::int64_t idle_ns = std::chrono::nanoseconds(in_effect.idle_timeout).count();
  const bool other_deadlines = idle_timeout_ns_.exchange(idle_ns, std::memory_order_relaxed) != idle_ns;
  return other_deadlines || admission.limited();
}

ForwardStats ServedForward::stats() const {
  ForwardStats stats{.id = route.id};
  for (std::size_t worker = 0; worker < worker_count; ++worker) {
    const ForwardCounters& counts = counters[worker];
    stats.connections_active += counts.connections_active.get();
    stats.connections_accepted += counts.connections_accepted.get();
    stats.connections_established += counts.connections_established.get();
    stats.received_bytes += counts.received_bytes.get();
    stats.sent_bytes += counts.sent_bytes.get();
    for (std::size_t i = 0; i < kConnectErrors; ++i)
      stats.connect_errors[i] += counts.connect_errors[i].get();
    for (std::size_t i = 0; i < kRejectReasons; ++i) stats.rejected[i] += counts.rejected[i].get();
  }
  return stats;
}

std::uint64_t ServedForward::connections_now() const {
  std::uint64_t count = 0;
  for (std::size_t worker = 0; worker < worker_count; ++worker)
    count += counters[worker].connections_active.get();
  return count;
}

bool ServedForward::idle() const {
  // In this order: a connection counts as handed over before accepting ends, and as active before the
  // hand-over ends.
  if (accepting.load(std::memory_order_acquire)) return false;
  if (handed_over.load(std::memory_order_acquire) != 0) return false;
  return connections_now() == 0;
}

bool ServedForward::advance(ForwardPhase to, CloseHow reason) {
  if (phase.load() >= to) return false;
  why.store(reason);
  phase.store(to);
  return true;
}

Result<std::unique_ptr<Proxy>> Proxy::start(const ProxyOptions& options) {
  const Config::Proxy& config = options.connections.config;
  const unsigned workers =
      config.workers != 0 ? config.workers : std::max(1U, std::thread::hardware_concurrency());
  std::string reason;
  if (config.io_backend != IoBackend::kEpoll) {
    auto ios = make_ios(make_uring_io, workers);
    if (ios) return std::unique_ptr<Proxy>(new Proxy(options, "uring", "", std::move(*ios)));
    if (config.io_backend == IoBackend::kUring) return ios.error();
    reason = ios.error().detail;
  }
  auto ios = make_ios(make_epoll_io, workers);
  if (!ios) return ios.error();
  return std::unique_ptr<Proxy>(new Proxy(options, "epoll", std::move(reason), std::move(*ios)));
}

Proxy::Proxy(const ProxyOptions& options, std::string backend, std::string backend_reason,
             std::vector<std::unique_ptr<Io>> ios)
    : options_(options),
      backend_(std::move(backend)),
      backend_reason_(std::move(backend_reason)),
      arena_(config().connections_max, ios.size(), kMetersMax),
      meters_(arena_.meters(), ios.size(), &arena_.header().meters_used,
              options.inherited != nullptr ? options.inherited->take_usage() : InheritedUsage()),
      share_(config().connections_max, config().instance_share_percent) {
  const std::size_t count = ios.size();
  for (std::size_t i = 0; i < count; ++i) {
    const WorkerOptions worker{
        .index = i,
        .pipes_max = std::max<std::uint32_t>(1, config().pipes_max / static_cast<std::uint32_t>(count)),
        .share = &share_,
        .connections = options.connections};
    workers_.push_back(std::make_unique<Worker>(std::move(ios[i]), worker, arena_.table(i)));
  }
  if (options_.inherited != nullptr) placed_ = place_connections();
  const BlockedSignals blocked;
  for (const auto& worker : workers_) worker->set_peers(workers_);
  for (std::size_t i = 0; i < count; ++i) {
    threads_.emplace_back([worker = workers_[i].get(), prepare = options_.prepare_worker] {
      if (prepare) prepare();
      worker->run();
    });
    ::pthread_setname_np(threads_.back().native_handle(), fmt::format("worker-{}", i).c_str());
  }
}

Proxy::~Proxy() {
  stop();
}

// --- What a predecessor has left.

/// Each worker gets the connections of its namesake: their order and ids stay. Those of workers that there
/// are no more follow, and those for which there is no room at one are another's.
std::size_t Proxy::place_connections() {
  std::size_t placed = 0;
  arena_.header().crashes_ns = options_.inherited->crashes();
  const auto of_workers = options_.inherited->take_connections();
  for (std::size_t i = 0; i < of_workers.size(); ++i) {
    for (const ConnectionSlot& slot : of_workers[i]) {
      bool taken = false;
      for (std::size_t j = 0; j < workers_.size() && !taken; ++j)
        taken = workers_[(i + j) % workers_.size()]->put(slot);
      if (taken) {
        ++placed;
      } else {
        options_.inherited->reset(slot, Lost::kConnections);
      }
    }
  }
  return placed;
}

void Proxy::adopt(const ServedForwardPtr& forward) {
  for (const auto& worker : workers_) worker->post(Worker::AdoptConnections{forward});
  const GuestEndpoints& guest = forward->guest();
  Worker& listening = *workers_[forward->listening_worker];
  for (const int listener : forward->listeners) {
    const auto local = local_endpoint(listener);
    if (!local) continue;
    for (Fd& client : options_.inherited->take_clients(*local)) {
      Fd upstream = inherited_upstream(*forward, client.get());
      listening.post(Worker::TakeClient{forward, client.release(), upstream.release()});
    }
    if (listens(listener)) continue;
    listening.post(Worker::Refused{.refusal = {.forward = forward,
                                               .client = {},
                                               .guest = guest.of(local->address()),
                                               .local = *local,
                                               .concerns_all = true},
                                   .adopted = true});
  }
  for (const NotedRefusal& noted : options_.inherited->take_refusals(forward->route.id)) {
    workers_[next_worker_++ % workers_.size()]->post(
        Worker::Refused{.refusal = {.forward = forward,
                                    .client = to_endpoint(noted.client).address(),
                                    .guest = to_endpoint(noted.guest),
                                    .local = to_endpoint(noted.local),
                                    .own_address = noted.own_address},
                        .adopted = true});
  }
}

/// What the predecessor had connected for the client, and not yet given a slot.
Fd Proxy::inherited_upstream(const ServedForward& forward, int client) {
  const auto remote = remote_endpoint(client);
  const auto netns = forward.session->netns.get();
  if (!remote || forward.route.socket || !netns) return {};
  return options_.inherited->take_upstream(*remote, forward.guest().of(remote->address()),
                                           forward.session->device.load(),
                                           *netns ? (*netns)->identity().cookie : netns_cookie(client));
}

Result<void> Proxy::pause() {
  resumed_ = {};
  const std::shared_future<void> resumed = resumed_.get_future().share();
  auto answers = ask<bool>(
      workers_,
      [&](auto answer) {
        return Worker::Pause{std::move(answer), resumed};
      },
      kTakeOverTimeout);
  if (answers) return {};
  resume();
  return answers.error();
}

void Proxy::resume() {
  resumed_.set_value();
}

std::vector<std::size_t> Proxy::silent_workers() {
  std::vector<std::size_t> silent;
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    if (!workers_[i]->ping()) silent.push_back(i);
  }
  return silent;
}

std::size_t Proxy::end_adoption() {
  if (options_.inherited == nullptr) return 0;
  options_.inherited = nullptr;
  meters_.forget_inherited();
  auto answers = ask<std::size_t>(
      workers_, [](auto answer) { return Worker::EndAdoption{std::move(answer)}; }, kTakeOverTimeout);
  if (!answers) return placed_;
  return placed_ - std::accumulate(answers->begin(), answers->end(), std::size_t{0});
}

void Proxy::stop() {
  if (threads_.empty()) return;
  stop_accepting();
  for (const auto& worker : workers_) worker->post(Worker::Stop{});
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

/// A predecessor's listener, with the clients that wait there, or a new one. The predecessor's is shut if the
/// guest refuses everybody.
Result<Fd> Proxy::listen_at(const Endpoint& endpoint) const {
  if (options_.inherited != nullptr) {
    if (Fd listener = options_.inherited->take_listener(endpoint)) return listener;
  }
  return open_listen_socket(endpoint, options_.connections);
}

Result<BoundPort> Proxy::bind(std::uint16_t port) {
  std::vector<Fd> listeners;
  for (const IpAddress& address : options_.public_addresses) {
    auto listener = listen_at({address, port});
    if (!listener) return listener.error();
    listeners.push_back(std::move(*listener));
  }
  return BoundPort(port, std::move(listeners));
}

Result<void> Proxy::check_bind() const {
  for (const IpAddress& address : options_.public_addresses) {
    constexpr std::uint16_t kAny = 0;
    auto listener = open_listen_socket({address, kAny}, options_.connections);
    if (!listener) return listener.error();
  }
  return {};
}

void Proxy::open(ForwardRoute route, BoundPort port) {
  const ForwardId id = route.id;
  Session& session = sessions_[route.session_id];
  // Not kept with the route, which lives as long as the forward's records.
  NetworkNamespace::Ptr netns = std::move(route.netns);
  if (!session.served) {
    session.served = std::make_shared<ServedSession>(route.session_id, route.device, std::move(netns),
                                                     owner_of(route.owner));
    session.served->space.store(route.space);
    session.served->profile_limits = route.profile_limits;
  }
  const std::size_t worker = next_worker_++ % workers_.size();
  auto backlog = route.socket ? backlog_of(*route.socket, worker) : nullptr;
  auto forward = std::make_shared<ServedForward>(std::move(route), workers_.size(), worker, session.served,
                                                 std::move(backlog));
  std::vector<Fd> listeners = port.take_listeners();
  for (const Fd& listener : listeners) forward->listeners.push_back(listener.get());
  session.forwards.push_back(forward);
  count_listeners(*session.served, true, listeners.size());
  forward->accepting.store(!listeners.empty());
  workers_[worker]->post(Worker::OpenForward{forward, std::move(listeners)});
  if (options_.inherited != nullptr) adopt(forward);
  forwards_.insert_or_assign(id, std::move(forward));
}

void Proxy::close(const ForwardId& id, ClosePolicy policy, CloseHow why) {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return;
  const ServedForwardPtr forward = std::move(found->second);
  forwards_.erase(found);
  close(forward,
        policy == ClosePolicy::kKeep    ? ForwardPhase::kKept
        : policy == ClosePolicy::kDrain ? ForwardPhase::kDraining
                                        : ForwardPhase::kEnded,
        why);
  prune(forward->route.session_id);
}

std::vector<KeptForward> Proxy::kept_forwards() const {
  return options_.inherited != nullptr ? options_.inherited->kept_forwards() : std::vector<KeptForward>();
}

/// For a successor. Without a free entry, those are given up that are not needed any more.
void Proxy::note_kept(const ServedForward& forward, ForwardPhase phase, CloseHow why) {
  const std::span<KeptForward> all = arena_.kept_forwards();
  const auto of = [&](const ForwardId& id) { return std::ranges::find(all, id, &KeptForward::id); };
  auto entry = of(forward.route.id);
  if (phase == ForwardPhase::kEnded) {
    if (entry != all.end()) *entry = {};
    return;
  }
  const bool may_have_connections = options_.inherited != nullptr || !forward.idle();
  if (!may_have_connections) return;
  if (entry == all.end()) entry = of(ForwardId{});
  if (entry == all.end()) {
    for (KeptForward& each : all) {
      if (ended(each.id)) each = {};
    }
    entry = of(ForwardId{});
  }
  if (entry == all.end()) return;
  *entry = {.id = forward.route.id,
            .session_id = forward.route.session_id,
            .max_bytes_per_second = forward.own_limits().max_bytes_per_second,
            .guest_port = forward.guest().endpoint.port(),
            .draining = phase == ForwardPhase::kDraining,
            .why = why};
}

void Proxy::end_session(const Uuid& session_id, CloseHow why) {
  const auto session = sessions_.extract(session_id);
  if (session.empty()) return;
  for (const ServedForwardPtr& forward : session.mapped().forwards) {
    forwards_.erase(forward->route.id);
    close(forward, ForwardPhase::kEnded, why);
  }
  if (!session.mapped().served || session.mapped().served->netns.is_nodes_own()) return;
  session.mapped().served->netns.leave();
  ending_.insert_or_assign(session_id, std::move(session.mapped().forwards));
}

bool Proxy::session_ended(const Uuid& session_id) {
  const auto found = ending_.find(session_id);
  if (found == ending_.end()) return true;
  if (!std::ranges::all_of(found->second, [](const auto& forward) { return forward->idle(); })) return false;
  ending_.erase(found);
  return true;
}

void Proxy::change_owner(const Uuid& session_id, const std::string& owner) {
  const auto session = sessions_.find(session_id);
  if (session == sessions_.end()) return;
  session->second.served->set_owner(owner_of(owner));
  session->second.served->owned_since = std::chrono::steady_clock::now().time_since_epoch();
  for (const ServedForwardPtr& forward : session->second.forwards) {
    if (!forwards_.contains(forward->route.id))
      close(forward, ForwardPhase::kEnded, CloseHow::kForwardDeleted);
    limits_changed(forward);
  }
}

ServedOwnerPtr Proxy::owner_of(const std::string& name) {
  if (owners_.size() >= owners_max_) {
    std::erase_if(owners_, [](const auto& entry) { return entry.second.expired(); });
    owners_max_ = std::max<std::size_t>(64, 2 * owners_.size());
  }
  std::weak_ptr<ServedOwner>& known = owners_[name];
  auto owner = known.lock();
  if (!owner) {
    known = owner = std::make_shared<ServedOwner>();
    owner->set_max(owner_connections_max_);
  }
  return owner;
}

void Proxy::set_owner_connections_max(std::uint32_t connections) {
  owner_connections_max_ = connections;
  for (const auto& [name, known] : owners_) {
    if (const auto owner = known.lock()) owner->set_max(connections);
  }
}

void Proxy::set_device(const Uuid& session_id, int device, std::uint32_t space) {
  const auto session = sessions_.find(session_id);
  if (session == sessions_.end()) return;
  session->second.served->space.store(space);  // before the device, with which connections begin
  const int before = session->second.served->device.exchange(device);
  if (before == device || before <= 0) return;  // nothing was bound to one
  for (const ServedForwardPtr& forward : session->second.forwards) {
    for (const auto& worker : workers_) worker->post(Worker::DeviceChanged{forward});
  }
}

void Proxy::set_guest(const Uuid& session_id, const IpAddress& address,
                      const std::optional<IpAddress>& address_v6) {
  const auto session = sessions_.find(session_id);
  if (session == sessions_.end()) return;
  for (const ServedForwardPtr& forward : session->second.forwards) {
    const std::uint16_t port = forward->guest().endpoint.port();
    GuestEndpoints guest{.endpoint = {address, port}};
    if (address_v6) guest.endpoint_v6.emplace(*address_v6, port);
    replace_guest(forward, guest);
  }
}

void Proxy::set_guest_port(const ForwardId& id, std::uint16_t port) {
  const auto forward = forwards_.find(id);
  if (forward == forwards_.end()) return;
  GuestEndpoints guest = forward->second->guest();
  guest.endpoint.port(port);
  if (guest.endpoint_v6) guest.endpoint_v6->port(port);
  replace_guest(forward->second, guest);
}

void Proxy::replace_guest(const ServedForwardPtr& forward, const GuestEndpoints& guest) {
  const auto before = forward->replace_guest(guest);
  for (const auto& worker : workers_) worker->post(Worker::GuestChanged{forward, before});
}

/// Forwards to one socket share it; its clients belong to the worker of the first one.
std::shared_ptr<BacklogQueue> Proxy::backlog_of(const SocketTarget& socket, std::size_t worker) {
  if (backlogs_.size() >= backlogs_max_) {
    std::erase_if(backlogs_, [](const auto& entry) { return entry.second.expired(); });
    backlogs_max_ = std::max<std::size_t>(64, 2 * backlogs_.size());
  }
  std::weak_ptr<BacklogQueue>& known = backlogs_[socket.directory + "/" + socket.name];
  auto backlog = known.lock();
  if (!backlog) known = backlog = std::make_shared<BacklogQueue>(worker);
  return backlog;
}

/// Drops a session's closed forwards that have no connection left, once there are many.
void Proxy::prune(const Uuid& session_id) {
  const auto found = sessions_.find(session_id);
  if (found == sessions_.end()) return;
  Session& session = found->second;
  if (session.forwards.size() < session.prune_at) return;
  std::erase_if(session.forwards, [](const ServedForwardPtr& forward) {
    return forward->phase.load() != ForwardPhase::kOpen && forward->idle();
  });
  session.prune_at = std::max<std::size_t>(64, 2 * session.forwards.size());
}

bool Proxy::ended(const ForwardId& id) {
  if (forwards_.contains(id)) return false;
  const auto found = closing_.find(id);
  if (found == closing_.end()) return true;
  const ServedForwardPtr forward = found->second.lock();
  if (forward && !forward->idle()) return false;
  closing_.erase(found);
  return true;
}

void Proxy::close(const ServedForwardPtr& forward, ForwardPhase to, CloseHow why) {
  const bool was_open = forward->phase.load() == ForwardPhase::kOpen;
  {
    const std::lock_guard lock(forward->listeners_mutex);
    if (!forward->advance(to, why)) return;
    for (const auto& [local, client] : forward->refused_clients)
      options_.connections.client_refusals->allow(local, client);
    forward->refused_clients.clear();
  }
  if (was_open) {
    count_listeners(*forward->session, false, forward->listeners.size());
    // Now, not when the worker gets to it: from here on clients are refused and the port can be bound
    // again.
    for (const int listener : forward->listeners) {
      if (to != ForwardPhase::kEnded) take_waiting(forward, listener);
      ::shutdown(listener, SHUT_RD);
    }
  }
  note_kept(*forward, to, why);
  for (const auto& worker : workers_) worker->post(Worker::CloseForward{forward});
  closing_.insert_or_assign(forward->route.id, forward);
  if (closing_.size() <= closing_max_) return;
  std::erase_if(closing_, [](const auto& entry) {
    const ServedForwardPtr closing = entry.second.lock();
    return !closing || closing->idle();
  });
  closing_max_ = std::max<std::size_t>(64, 2 * closing_.size());
}

/// Accepts clients that still wait in the backlog, which a shutdown would reset: under DNAT they would
/// already be connected to the guest.
void Proxy::take_waiting(const ServedForwardPtr& forward, int listener) {
  for (int i = 0; i < kListenBacklog; ++i) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (client < 0) return;
    workers_[forward->listening_worker]->post(Worker::TakeClient{.forward = forward, .downstream = client});
  }
}

/// A forward was opened or closed: adjusts everybody's share.
void Proxy::count_listeners(ServedSession& session, bool open, std::size_t listeners) {
  const std::uint32_t forwards = session.forwards.load() + (open ? 1 : -1);
  session.forwards.store(forwards);
  if (forwards == (open ? 1 : 0)) busy_sessions_ += open ? 1 : -1;
  share_.set_sessions(busy_sessions_);
  listeners_ += open ? listeners : -listeners;
  const std::size_t beyond = listeners_ - std::min<std::size_t>(listeners_, options_.listeners_reserved);
  const std::size_t lost = std::min<std::size_t>(config().connections_max - 1, (beyond + 1) / 2);
  share_.set_capacity(config().connections_max - static_cast<std::uint32_t>(lost));
}

void Proxy::set_limits(const ForwardId& id, const TrafficLimits& limits) {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return;
  if (found->second->set_limits(limits)) limits_changed(found->second);
}

void Proxy::set_profile_limits(const Uuid& session_id, const TrafficLimits& limits) {
  const auto session = sessions_.find(session_id);
  if (session == sessions_.end() || session->second.served->profile_limits == limits) return;
  session->second.served->profile_limits = limits;
  for (const ServedForwardPtr& forward : session->second.forwards) {
    if (forward->apply_profile_limits()) limits_changed(forward);
  }
}

void Proxy::limits_changed(const ServedForwardPtr& forward) {
  for (const auto& worker : workers_) worker->post(Worker::LimitsChanged{forward});
}

void Proxy::set_source(const ForwardId& id, ForwardSource source) {
  const auto found = forwards_.find(id);
  if (found != forwards_.end()) found->second->source.store(source, std::memory_order_relaxed);
}

Result<ConnectionPage> Proxy::connections(const ForwardId& id, ConnectionId after, std::size_t limit) {
  ConnectionPage page;
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return page;
  auto answers = ask<std::vector<LiveConnection>>(workers_, [&](auto answer) {
    return Worker::ListConnections{found->second, after, limit + 1, std::move(answer)};
  });
  if (!answers) return answers.error();
  for (auto& answer : *answers) {
    page.connections.insert(page.connections.end(), answer.begin(), answer.end());
  }
  std::ranges::sort(page.connections, {}, &LiveConnection::id);
  page.more = page.connections.size() > limit;
  if (page.more) page.connections.resize(limit);
  return page;
}

Result<std::size_t> Proxy::end_connections(const ForwardId& id, ConnectionId connection) {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return std::size_t{0};
  auto answers = ask<std::size_t>(workers_, [&](auto answer) {
    return Worker::EndConnections{found->second, connection, std::move(answer)};
  });
  if (!answers) return answers.error();
  return std::accumulate(answers->begin(), answers->end(), std::size_t{0});
}

bool Proxy::refuses(const ForwardId& id, const std::optional<IpAddress>& client) const {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return false;
  ServedForward& forward = *found->second;
  if (!client) return forward.refusing[0].load() || forward.refusing[1].load();
  if (forward.refusing[forward.guest().goes_v6(*client)].load()) return true;
  const std::lock_guard lock(forward.listeners_mutex);
  return std::ranges::any_of(forward.refused_clients,
                             [&](const auto& refused) { return refused.second == *client; });
}

std::optional<ForwardStats> Proxy::forward_stats(const ForwardId& id) const {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return std::nullopt;
  return found->second->stats();
}

std::vector<ForwardStats> Proxy::forward_stats() const {
  std::vector<ForwardStats> all;
  all.reserve(forwards_.size());
  for (const auto& [id, forward] : forwards_) all.push_back(forward->stats());
  return all;
}

NodeStats Proxy::node_stats() const {
  NodeStats stats{.io_backend = backend_,
                  .io_backend_reason = backend_reason_,
                  .workers = {},
                  .connections_max = share_.capacity()};
  for (const auto& worker : workers_) stats.workers.push_back(&worker->counters());
  return stats;
}

void Proxy::stop_accepting() {
  for (const auto& [id, forward] : forwards_) close(forward, ForwardPhase::kKept, CloseHow::kShutdown);
}

bool Proxy::idle() const {
  return std::ranges::all_of(workers_, [](const auto& worker) { return worker->load() == 0; });
}

}  // namespace portway
