#include "proxy/connections.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <memory>
#include <utility>

#include <boost/uuid/uuid_hash.hpp>

namespace portway {

Connections::Connections(Io& io, const ConnectionOptions& options, const ArenaTable& memory,
                         const FairShare* share, std::uint32_t pipes_max, WorkerCounters& counters,
                         CloseRecordRing& closes, std::size_t worker, Token token_base)
    : table_(memory.slots),
      context_(io, options, pipes_max, counters, closes, worker, token_base, memory.relay, share) {}

Connections::~Connections() {
  assert(table_.in_use() == 0 && "reset_all() and run until empty first");
}

// --- From accept to a slot.

std::optional<OpenedConnection> Connections::open(int downstream, const ServedForwardPtr& forward,
                                                  int& upstream) {
  Client client;  // no address and port if they are unknown
  context_.io.take_client(downstream, client);
  const auto turn_away = [&](RejectReason reason) {
    reject(downstream, forward, reason, client.endpoint);
    return std::nullopt;
  };
  if (forward->phase.load() == ForwardPhase::kEnded) return turn_away(RejectReason::kForwardGone);
  // The guest must not see the node's address in place of an unknown client's.
  if (client.endpoint.port() == 0) return turn_away(RejectReason::kClientGone);
  const ConnectionOptions& options = context_.options;
  // Both are read before the source, which is set first.
  const int device = forward->session->device.load();
  const Endpoint guest = forward->guest().of(client.endpoint.address());
  // The source plan is not known before there is a device.
  const bool waits = device == kNoDevice && options.device_requests != nullptr && !forward->route.socket;
  const auto plan = waits ? SourcePlan::kPlain : first_plan(*forward, client.endpoint, guest);
  if (!plan) return turn_away(RejectReason::kSourceAddress);
  OpenedConnection opened{.forward = forward,
                          .downstream = downstream,
                          .client = client.endpoint,
                          .guest = guest,
                          .dscp = options.config.copy_dscp ? client.dscp : std::uint8_t{0},
                          .source = *plan,
                          .waits_for_device = waits,
                          .admitted = forward->admission.limited(),
                          .accepted_at = context_.io.now()};
  ServedOwner& owner = forward->session->owner();
  if (!owner.try_enter()) return turn_away(RejectReason::kOwnerConnectionsMax);
  opened.owner = &owner;
  if (opened.admitted) {
    if (const auto refused = forward->admission.ask(client.endpoint.address(), opened.accepted_at)) {
      owner.leave();
      return turn_away(*refused);
    }
  }
  if (!forward->route.socket) opened.device = device;
  if (waits) return opened;
  if (upstream >= 0 && opened.source == SourcePlan::kTransparent) {
    opened.upstream = std::exchange(upstream, -1);
    return opened;
  }
  const UpstreamOpener::Target target{
      .forward = *forward, .device = device, .client = client.endpoint, .guest = guest, .dscp = opened.dscp};
  opened.error = context_.upstream.open(target, opened.source, opened.upstream);
  if (opened.error == EAGAIN && forward->backlog) opened.backlog = BacklogQueue::Place(forward->backlog);
  return opened;
}

void Connections::start(OpenedConnection opened) {
  // The phase advances before the workers get the message, and close_forward() finds what was started
  // before that.
  if (opened.forward->phase.load() == ForwardPhase::kEnded ||
      of(*opened.forward).end_until == ForwardConnections::kAll)
    return reject(opened, RejectReason::kForwardGone);
  const auto index = table_.take();
  if (!index) return reject(opened, RejectReason::kConnectionsMax);
  if (*index == connections_.size()) connections_.emplace_back(context_, table_[*index], *index);
  Connection& connection = connections_[*index];
  connection.start(std::move(opened));
  // As with the phase: guest_changed() and device_changed() find what was started before the change was
  // published.
  if (!connection.is_live()) return;
  if (connection.misses_guest()) return connection.terminate({CloseSide::kNode, CloseHow::kAddressChanged});
  if (connection.misses_device()) connection.terminate({CloseSide::kNode, CloseHow::kDeviceGone});
}

// --- From a predecessor.

bool Connections::put(const ConnectionSlot& slot) {
  const auto index = table_.take(slot);
  if (!index) return false;
  if (*index == connections_.size()) connections_.emplace_back(context_, table_[*index], *index);
  orphans_[slot.forward].push_back(*index);
  return true;
}

void Connections::adopt(const ServedForwardPtr& forward) {
  const auto found = orphans_.extract(forward->route.id);
  if (found.empty()) return;
  context_.turn_began = context_.io.now();  // there may have been no turn before
  for (const std::uint32_t index : found.mapped()) {
    Connection& connection = connections_[index];
    connection.adopt(forward);
    // As in start().
    if (!connection.is_live()) continue;
    if (forward->phase.load() == ForwardPhase::kEnded) {
      connection.terminate({CloseSide::kNode, forward->why.load()});
    } else if (connection.misses_guest()) {
      connection.terminate({CloseSide::kNode, CloseHow::kAddressChanged});
    } else if (connection.misses_device()) {
      connection.terminate({CloseSide::kNode, CloseHow::kDeviceGone});
    }
  }
}

std::size_t Connections::reset_orphans() {
  std::size_t count = 0;
  for (const auto& [forward, indices] : std::exchange(orphans_, {})) {
    for (const std::uint32_t index : indices) {
      for (const Side side : kSides) {
        discard_kept(context_.pipes, table_[index].relay[side]);
        context_.io.close_with_reset(table_[index].socket[side].fd);
      }
      table_.give_back(index);
      ++count;
    }
  }
  return count;
}

bool Connections::refuses(ServedForward& forward, int downstream) {
  Endpoint client;
  if (context_.io.remote_endpoint(downstream, client) < 0 ||
      !first_plan(forward, client, forward.guest().of(client.address()))) {
    return true;
  }
  if (forward.session->owner().is_full()) return true;
  return forward.admission.limited() && forward.admission.refuses(client.address(), context_.io.now());
}

void Connections::reject(const OpenedConnection& opened, RejectReason reason) {
  if (opened.admitted) opened.forward->admission.leave(opened.client.address());
  if (opened.owner != nullptr) opened.owner->leave();
  if (opened.upstream >= 0) context_.io.close_with_reset(opened.upstream);
  reject(opened.downstream, opened.forward, reason, opened.client);
}

void Connections::reject(int downstream, const ServedForwardPtr& forward, RejectReason reason) {
  Client client;
  context_.io.take_client(downstream, client);
  reject(downstream, forward, reason, client.endpoint);
}

void Connections::reject(int downstream, const ServedForwardPtr& forward, RejectReason reason,
                         const Endpoint& client) {
  context_.counters.rejected[static_cast<std::size_t>(reason)].add();
  forward->counters[context_.worker].rejected[static_cast<std::size_t>(reason)].add();
  CloseRecord record{.forward = forward};
  record.client = to_plain(client);
  record.guest = forward->guest().of(client.address());
  record.accepted_at = record.ended_at = context_.io.now();
  record.cause.how = close_how(reason);
  record.rejected = reason;
  context_.push(std::move(record));
  context_.io.close_with_reset(downstream);
}

// --- A turn.

void Connections::on_poll(Token token, const Completion& completion) {
  connections_[Connection::index_of(token)].on_poll(Connection::side_of(token), completion);
}

void Connections::run() {
  if (!context_.perhaps_urgent.empty()) find_urgent();
  if (!runnable()) return;
  context_.turn_began = context_.io.now();
  if (!ending_.empty()) end_some();
  context_.queue.run([this](RunQueue::Entry& entry) {
    Connection& connection = connection_of(entry);
    if (connection.advance()) release(connection);
  });
}

/// The object is constructed again for the slot's next connection.
void Connections::release(Connection& connection) {
  const std::uint32_t index = connection.index();
  connection.release();
  std::destroy_at(&connection);
  table_.give_back(index);
  std::construct_at(&connection, context_, table_[index], index);
  released_ = true;
}

/// Call it before anything is read: a plain read would skip an urgent byte that is next.
void Connections::find_urgent() {
  const auto& marked = context_.perhaps_urgent;
  asked_urgent_.clear();
  for (const auto& [connection, side] : marked) {
    asked_urgent_.push_back({connection->is_live() ? connection->fd(side) : -1, POLLPRI, 0});
  }
  context_.io.find_urgent(asked_urgent_);
  for (std::size_t i = 0; i < marked.size(); ++i) {
    if (asked_urgent_[i].revents != 0) marked[i].first->on_urgent(marked[i].second);
  }
  context_.perhaps_urgent.clear();
}

Nanos Connections::until_next_deadline() const {
  const Nanos now = context_.io.now();
  Nanos next = context_.half_closed.next_due();
  if (!draining_.empty()) next = std::min(next, draining_.front().deadline);
  if (next != TimerWheel::kNever) next = std::max(Nanos::zero(), next - now);
  return std::min(next, context_.timers.until_next(now));
}

/// Many may be due at once: run() handles them.
void Connections::expire() {
  const Nanos now = context_.io.now();
  context_.timers.expire(now, [this](std::uint32_t index) { connections_[index].expire(); });
  while (!draining_.empty() && draining_.front().deadline <= now) {
    end(draining_.front().forward, ForwardConnections::kAll, draining_.front().how);
    draining_.pop_front();
  }
}

// --- Ends.

void Connections::close_forward(const ServedForwardPtr& forward) {
  const ForwardPhase phase = forward->phase.load();
  if (phase == ForwardPhase::kEnded) {
    end(forward, ForwardConnections::kAll, forward->why.load());
  } else if (phase == ForwardPhase::kDraining) {
    const Nanos deadline = context_.io.now() + context_.options.config.drain_timeout;
    draining_.push_back({deadline, forward, forward->why.load()});
  }
}

void Connections::end(const ServedForwardPtr& forward, std::uint64_t until, CloseHow how) {
  ForwardConnections& own = of(*forward);
  if (own.end_until == 0) ending_.push_back(forward);
  own.end_until = std::max(own.end_until, until);
  own.end_how = how;
}

/// A few of each forward in turn: ending tens of thousands at once delays nobody else.
void Connections::end_some() {
  for (std::size_t left = RunQueue::kStepsAtOnce; left > 0 && !ending_.empty(); --left) {
    ServedForwardPtr forward = std::move(ending_.front());
    ending_.pop_front();
    ForwardConnections& own = of(*forward);
    if (!own.all.empty() && connection_of(own.all.front()).serial() <= own.end_until) {
      connection_of(own.all.front()).terminate({CloseSide::kNode, own.end_how});
      ending_.push_back(std::move(forward));
    } else if (own.end_until != ForwardConnections::kAll) {
      own.end_until = 0;
    }
  }
}

void Connections::guest_changed(const ServedForwardPtr& forward) {
  end_if(forward, CloseHow::kAddressChanged, [](const Connection& each) { return each.misses_guest(); });
}

void Connections::device_changed(const ServedForwardPtr& forward) {
  end_if(forward, CloseHow::kDeviceGone, [](const Connection& each) { return each.misses_device(); });
}

/// Connections start in the order of the list, so those that miss their guest or device come first in it: all
/// but a few, which waited for their session's device meanwhile.
template <class Misses>
void Connections::end_if(const ServedForwardPtr& forward, CloseHow how, Misses misses) {
  std::uint64_t last = 0;
  bool all_miss = true;
  for_each_live(*forward, [&](Connection& connection) {
    const bool missed = misses(connection);
    all_miss = all_miss && missed;
    if (all_miss) {
      last = connection.serial();
    } else if (missed) {
      connection.terminate({CloseSide::kNode, how});
    }
  });
  if (last != 0) end(forward, last, how);
}

void Connections::reset_all(CloseHow how) {
  for (Connection& connection : connections_) {
    if (connection.is_live()) connection.terminate({CloseSide::kNode, how});
  }
}

std::size_t Connections::kill(const ServedForwardPtr& forward, ConnectionId id) {
  std::size_t count = 0;
  std::uint64_t last = 0;
  for_each_live(*forward, [&](Connection& connection) {
    last = connection.serial();
    if (id == 0) {
      ++count;
    } else if (connection.id() == id) {
      connection.terminate({CloseSide::kNode, CloseHow::kKilled});
      ++count;
    }
  });
  if (id == 0 && count != 0) end(forward, last, CloseHow::kKilled);
  return count;
}

// --- All of a forward.

/// Calls visit(Connection&) for each connection of the forward that is not being ended; `visit` may end the
/// one that it is given.
template <class Visit>
void Connections::for_each_live(const ServedForward& forward, Visit visit) {
  ForwardConnections& own = of(forward);
  for (auto next = own.all.begin(); next != own.all.end();) {
    Connection& connection = connection_of(*next++);
    if (connection.serial() > own.end_until) visit(connection);
  }
}

void Connections::limits_changed(ServedForward& forward) {
  const bool limited = forward.admission.limited();
  for_each_live(forward, [&](Connection& connection) {
    if (limited && connection.admit()) forward.admission.enter(connection.client().address());
    connection.count_for_owner();
    connection.schedule();  // its idle timeout may be another one
  });
}

std::vector<LiveConnection> Connections::list(const ServedForward& forward, ConnectionId after,
                                              std::size_t limit) {
  std::vector<std::pair<ConnectionId, const Connection*>> found;
  for_each_live(forward, [&](const Connection& connection) {
    if (connection.id() > after) found.emplace_back(connection.id(), &connection);
  });
  const std::size_t count = std::min(limit, found.size());
  std::partial_sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count), found.end());
  std::vector<LiveConnection> live;
  live.reserve(count);
  for (std::size_t i = 0; i < count; ++i) live.push_back(found[i].second->live());
  return live;
}

}  // namespace portway
