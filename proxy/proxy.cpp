#include "proxy/proxy.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/uuid/uuid_hash.hpp>
#include <chrono>
#include <future>
#include <numeric>
#include <utility>

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

/// Posts make_message(promise) to every worker and waits for what they answer.
template <class Answer, class MakeMessage>
Result<std::vector<Answer>> ask(const std::vector<std::unique_ptr<Worker>>& workers,
                                MakeMessage make_message) {
  std::vector<std::future<Answer>> pending;
  for (const auto& worker : workers) {
    std::promise<Answer> answer;
    pending.push_back(answer.get_future());
    worker->post(make_message(std::move(answer)));
  }
  const auto deadline = std::chrono::steady_clock::now() + kAnswerTimeout;
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

/// Signals are the control thread's: a worker never sees one.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, &old_);
  }
  ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &old_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t old_;
};

}  // namespace

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

Result<std::unique_ptr<Proxy>> Proxy::start(const ProxyOptions& options) {
  ProxyOptions chosen = options;
  if (chosen.workers == 0) chosen.workers = std::max(1U, std::thread::hardware_concurrency());
  std::string reason;
  if (chosen.io_backend != IoBackend::kEpoll) {
    auto ios = make_ios(make_uring_io, chosen.workers);
    if (ios) return std::unique_ptr<Proxy>(new Proxy(chosen, "uring", "", std::move(*ios)));
    if (chosen.io_backend == IoBackend::kUring) return ios.error();
    reason = ios.error().detail;
  }
  auto ios = make_ios(make_epoll_io, chosen.workers);
  if (!ios) return ios.error();
  return std::unique_ptr<Proxy>(new Proxy(chosen, "epoll", std::move(reason), std::move(*ios)));
}

Proxy::Proxy(const ProxyOptions& options, std::string backend, std::string backend_reason,
             std::vector<std::unique_ptr<Io>> ios)
    : options_(options),
      backend_(std::move(backend)),
      backend_reason_(std::move(backend_reason)),
      arena_(std::max<std::size_t>(options.connections_max, ios.size())) {
  const std::size_t count = ios.size();
  const std::size_t share = arena_.slots().size() / count;
  for (std::size_t i = 0; i < count; ++i) {
    const WorkerOptions worker{
        .index = i,
        .pipes_max = std::max<std::uint32_t>(1, options.pipes_max / static_cast<std::uint32_t>(count)),
        .busy_poll = options.busy_poll,
        .connections = options.connections};
    const std::size_t size = i + 1 == count ? arena_.slots().size() - i * share : share;
    workers_.push_back(
        std::make_unique<Worker>(std::move(ios[i]), worker, arena_.slots().subspan(i * share, size)));
  }
  const BlockedSignals blocked;
  for (const auto& worker : workers_) worker->set_peers(workers_);
  for (std::size_t i = 0; i < count; ++i) {
    threads_.emplace_back([worker = workers_[i].get()] { worker->run(); });
    ::pthread_setname_np(threads_.back().native_handle(), fmt::format("worker-{}", i).c_str());
  }
}

Proxy::~Proxy() {
  stop();
}

void Proxy::stop() {
  if (threads_.empty()) return;
  stop_accepting();
  for (const auto& worker : workers_) worker->post(Worker::Stop{});
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

Result<BoundPort> Proxy::bind(std::uint16_t port) {
  std::vector<Fd> listeners;
  for (const IpAddress& address : options_.public_addresses) {
    auto listener = open_listen_socket({address, port}, options_.connections.keepalive);
    if (!listener) return listener.error();
    listeners.push_back(std::move(*listener));
  }
  return BoundPort(port, std::move(listeners));
}

void Proxy::open(ForwardRoute route, BoundPort port) {
  const ForwardId id = route.id;
  const std::size_t worker = next_worker_++ % workers_.size();
  Entry entry{.forward = std::make_shared<ServedForward>(std::move(route), workers_.size(), worker),
              .listeners = {}};
  std::vector<Fd> listeners = port.take_listeners();
  for (const Fd& listener : listeners) entry.listeners.push_back(listener.get());
  workers_[worker]->post(Worker::OpenForward{entry.forward, std::move(listeners)});
  forwards_.insert_or_assign(id, std::move(entry));
}

void Proxy::close(const ForwardId& id, ClosePolicy policy, CloseHow why) {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return;
  close(found->second, policy, why);
  closing_.insert_or_assign(id, std::move(found->second.forward));
  forwards_.erase(found);
  if (closing_.size() <= closing_max_) return;
  std::erase_if(closing_, [](const auto& entry) { return entry.second->stats().connections_active == 0; });
  closing_max_ = std::max<std::size_t>(64, 2 * closing_.size());
}

bool Proxy::ended(const ForwardId& id) {
  if (forwards_.contains(id)) return false;
  const auto found = closing_.find(id);
  if (found == closing_.end()) return true;
  if (found->second->stats().connections_active != 0) return false;
  closing_.erase(found);
  return true;
}

void Proxy::close(const Entry& entry, ClosePolicy policy, CloseHow why) {
  entry.forward->closed.store(true, std::memory_order_relaxed);
  // At once, not when the worker gets to it: from here on a client is refused, and the port can be bound
  // again.
  for (const int listener : entry.listeners) ::shutdown(listener, SHUT_RD);
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    if (i == entry.forward->listening_worker || policy != ClosePolicy::kKeep)
      workers_[i]->post(Worker::CloseForward{entry.forward, policy, why});
  }
}

void Proxy::set_limits(const ForwardId& id, const TrafficLimits& limits) {
  const auto found = forwards_.find(id);
  if (found != forwards_.end()) found->second.forward->set_limits(limits);
}

void Proxy::set_source(const ForwardId& id, SourcePlan source) {
  const auto found = forwards_.find(id);
  if (found != forwards_.end()) found->second.forward->source.store(source, std::memory_order_relaxed);
}

Result<ConnectionPage> Proxy::connections(const ForwardId& id, ConnectionId after, std::size_t limit) {
  auto answers = ask<std::vector<LiveConnection>>(workers_, [&](auto answer) {
    return Worker::ListConnections{id, after, limit + 1, std::move(answer)};
  });
  if (!answers) return answers.error();
  ConnectionPage page;
  for (auto& answer : *answers) {
    page.connections.insert(page.connections.end(), answer.begin(), answer.end());
  }
  std::ranges::sort(page.connections, {}, &LiveConnection::id);
  page.more = page.connections.size() > limit;
  if (page.more) page.connections.resize(limit);
  return page;
}

Result<std::size_t> Proxy::end_connections(const ForwardId& id, ConnectionId connection) {
  auto answers = ask<std::size_t>(workers_, [&](auto answer) {
    return Worker::EndConnections{id, connection, std::move(answer)};
  });
  if (!answers) return answers.error();
  return std::accumulate(answers->begin(), answers->end(), std::size_t{0});
}

std::optional<ForwardStats> Proxy::forward_stats(const ForwardId& id) const {
  const auto found = forwards_.find(id);
  if (found == forwards_.end()) return std::nullopt;
  return found->second.forward->stats();
}

std::vector<ForwardStats> Proxy::forward_stats() const {
  std::vector<ForwardStats> all;
  all.reserve(forwards_.size());
  for (const auto& [id, entry] : forwards_) all.push_back(entry.forward->stats());
  return all;
}

NodeStats Proxy::node_stats() const {
  NodeStats stats{.io_backend = backend_, .io_backend_reason = backend_reason_, .workers = {}};
  for (const auto& worker : workers_) stats.workers.push_back(&worker->counters());
  return stats;
}

void Proxy::stop_accepting() {
  for (const auto& [id, entry] : forwards_) close(entry, ClosePolicy::kKeep, CloseHow::kShutdown);
  forwards_.clear();
}

bool Proxy::idle() const {
  return std::ranges::all_of(workers_, [](const auto& worker) { return worker->load() == 0; });
}

}  // namespace portway
