#include "proxy/connection.h"

#include <algorithm>
#include <cassert>
#include <cerrno>

#include "proxy/device_requests.h"

namespace portway {
namespace {

// How often, and for how long at most, a side that is to be reset is checked for acknowledgement of
// everything: a client that reads nothing must not hold a slot for ever.
constexpr Nanos kResetPollMin = std::chrono::milliseconds(4);
constexpr Nanos kResetPollMax = std::chrono::milliseconds(250);
constexpr Nanos kResetDeliveryMax = std::chrono::seconds(10);

// An ICMP error that arrives before connect(2) has returned, as over a veth pair, does not end the
// connection, and no event reports it. So SO_ERROR is read once: the next SYN, and with it the next error,
// is a second away.
constexpr Nanos kAskAfter = std::chrono::milliseconds(20);

// How often a Unix socket with a full backlog is tried again: by the first of those that wait.
constexpr Nanos kBacklogMin = std::chrono::milliseconds(2);
constexpr Nanos kBacklogMax = std::chrono::milliseconds(100);

// How long a client waits for its session's device, and how often the connection looks for it.
constexpr Nanos kDeviceWait = std::chrono::milliseconds(300);
constexpr Nanos kDeviceLooks = std::chrono::milliseconds(10);

std::uint64_t elapsed_us(std::int64_t from_ns, std::int64_t to_ns) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, to_ns - from_ns) / 1000);
}

}  // namespace

// --- From accept to connect.

void Connection::start(OpenedConnection opened) {
  slot_.forward = opened.forward->route.id;
  slot_.socket[kDownstream].fd = opened.downstream;
  slot_.socket[kUpstream].fd = opened.upstream;
  slot_.socket[kUpstream].is_unix = opened.forward->route.socket.has_value();
  slot_.accepted_ns = slot_.active_ns = opened.accepted_at.count();
  slot_.client = to_plain(opened.client);
  slot_.source = opened.source;
  // The forward may have been given limits since the connection was opened.
  if (!opened.admitted && opened.forward->admission.limited()) {
    opened.forward->admission.enter(opened.client.address());
    opened.admitted = true;
  }
  admitted_ = opened.admitted;
  owner_ = opened.owner;
  slot_.device = opened.device;
  backlog_place_ = std::move(opened.backlog);
  forward_ = std::move(opened.forward);
  slot_.guest = to_plain(opened.guest);
  enter_forward();
  forward_counters().connections_accepted.add();
  for (const UsageMeterPtr& meter : forward_->meters) meter->opened(context_.worker, slot_.accepted_ns);

  set_state(ConnectionState::kConnecting);
  arm(kDownstream);
  if (opened.waits_for_device) {
    slot_.dscp = opened.dscp;
    wait_for_device();
  } else {
    on_connecting(opened.error);
  }
}

void Connection::enter_forward() {
  count_for_owner();  // it may have changed since the connection was opened
  siblings().all.push_back(*this);
  forward_->session->connections.fetch_add(1, std::memory_order_relaxed);
  context_.counters.connections_active.add();
  forward_counters().connections_active.add();
}

void Connection::count_for_owner() {
  ServedOwner& owner = forward_->session->owner();
  if (owner_ == &owner) return;
  if (owner_ != nullptr) owner_->leave();
  owner.enter();
  owner_ = &owner;
}

void Connection::adopt(const ServedForwardPtr& forward) {
  forward_ = forward;
  if (forward_->admission.limited()) {
    forward_->admission.enter(client().address());
    admitted_ = true;
  }
  enter_forward();
  for (const UsageMeterPtr& meter : forward_->meters) meter->adopted(context_.worker);
  for (const Side side : kSides) {
    SocketState& socket = slot_.socket[side];
    // Found by trying; the poll reports what holds when it is armed, and later changes.
    socket.readable = socket.writable = true;
    if (!socket.is_unix && !socket.read_ended) context_.perhaps_urgent.emplace_back(this, side);
    arm(side);
    context_.pipes.adopt(slot_.relay[side]);
    count_pipe(side);
  }
  if (slot_.state == ConnectionState::kRelaying) {
    if (has_ended_side()) context_.half_closed.add(*this);
    plan_first_look();
    for (const Side side : kSides) {
      // The end of a direction may have been noted and not yet passed on.
      if (slot_.relay[side].ended && !slot_.socket[other(side)].write_ended) on_source_ended(side);
      if (slot_.state != ConnectionState::kRelaying) return;
      if (slot_.socket[side].error != 0 && slot_.socket[side].read_ended) return on_reset(side);
    }
  }
  schedule();
  enqueue();
}

/// The connection to the guest is under way, or has failed at once.
void Connection::on_connecting(int error) {
  if (error == EAGAIN && to_unix()) return await_backlog();
  leave_backlog();
  if (error != 0) return on_connect_failed(error);
  arm(kUpstream);
  const Nanos ask = Nanos(slot_.accepted_ns) + kAskAfter;
  look_at_ = now() < ask && !to_unix() ? ask : TimerWheel::kNever;
  schedule();
}

/// The backlog of the Unix socket is full. Only the first that waits tries again.
void Connection::await_backlog() {
  BacklogQueue& queue = *forward_->backlog;
  InBacklog& own = *this;
  if (!own.is_linked()) {
    if (queue.clients.empty()) queue.first_since = now();
    queue.clients.push_back(own);
  }
  if (&queue.clients.front() == &own)
    look_at_ = now() + std::clamp<Nanos>((now() - queue.first_since) / 8, kBacklogMin, kBacklogMax);
  schedule();
}

/// It waits no longer; if it was the first, the next one tries at once.
void Connection::leave_backlog() {
  InBacklog& own = *this;
  if (!own.is_linked()) return;
  BacklogQueue& queue = *forward_->backlog;
  const bool was_first = &queue.clients.front() == &own;
  queue.clients.erase(queue.clients.iterator_to(own));
  backlog_place_ = {};
  if (!was_first || queue.clients.empty()) return;
  queue.first_since = now();
  Connection& next = connection_of(queue.clients.front());
  next.look_at_ = now();
  next.expire();
}

/// The virtual machine may be up before the kernel has reported it: asks the control thread to check.
void Connection::wait_for_device() {
  device_due_ = now() + kDeviceWait;
  if (!forward_->session->device_asked_for.exchange(true))
    context_.options.device_requests->ask(forward_->route.instance_id);
  look_at_ = now() + kDeviceLooks;
  schedule();
}

void Connection::look_for_device() {
  const int device = forward_->session->device.load();  // read before the source, which is set first
  if (device == kNoDevice && now() < device_due_) {
    look_at_ = now() + kDeviceLooks;
    return schedule();
  }
  device_due_ = TimerWheel::kNever;
  forward_->session->device_asked_for.store(false);
  // It may have changed meanwhile; read before the source.
  const Endpoint guest = forward_->guest().of(client().address());
  slot_.guest = to_plain(guest);
  const auto plan = device == kNoDevice ? SourcePlan::kPlain : first_plan(*forward_, client(), guest);
  if (!plan) return terminate({CloseSide::kNode, CloseHow::kLimit});
  slot_.source = *plan;
  slot_.device = device;
  const UpstreamOpener::Target target{
      .forward = *forward_, .device = device, .client = client(), .guest = guest, .dscp = slot_.dscp};
  on_connecting(context_.upstream.open(target, slot_.source, slot_.socket[kUpstream].fd));
}

bool Connection::misses_guest() const {
  const bool waits = device_due_ != TimerWheel::kNever;
  return !to_unix() && !waits && !forward_->guest().has_address(guest().address());
}

void Connection::advance_connecting() {
  const SocketState& downstream = slot_.socket[kDownstream];
  const SocketState& upstream = slot_.socket[kUpstream];
  if (downstream.error != 0) return fail(kDownstream, downstream.error);
  if (upstream.error != 0 && !is_reset(upstream.error)) return on_connect_failed(upstream.error);
  if (!upstream.writable) return;
  if (to_unix() && !reaches_service()) return;
  if (slot_.source == SourcePlan::kProxyV2) {
    if (const int error = context_.upstream.send_proxy_header(upstream.fd, client(), downstream.fd)) {
      slot_.error = static_cast<std::int16_t>(error);
      return terminate(is_reset(error) ? cause_of(kUpstream, error)
                                       : CloseCause{CloseSide::kNode, CloseHow::kResources});
    }
  }
  on_connected();
  advance_relaying();
}

/// True once the Unix socket leads to the service: at once, or after Firecracker's answer. False: the answer
/// is still to come, or the connection has failed.
bool Connection::reaches_service() {
  const SocketTarget& target = *forward_->route.socket;
  const SocketState& upstream = slot_.socket[kUpstream];
  if (target.kind != TargetKind::kFirecrackerVsock) return true;
  int error = 0;
  if (!std::exchange(requested_, true)) error = context_.upstream.request_vsock(upstream.fd, target);
  const bool ended = upstream.peer_closed || upstream.error != 0;
  if (error == 0 || is_reset(error)) error = context_.upstream.take_vsock_answer(upstream.fd, ended);
  if (error != 0 && error != EAGAIN) on_connect_failed(error);
  return error == 0;
}

void Connection::on_connected() {
  context_.counters.sources[static_cast<std::size_t>(slot_.source)].add();
  slot_.connected_ns = slot_.active_ns = now().count();
  receive_buffer_[kUpstream].begin(config().guest_receive_buffer, active());
  context_.counters.connect_duration.observe_us(elapsed_us(slot_.accepted_ns, slot_.connected_ns),
                                                kConnectBoundsS);
  forward_counters().connections_established.add();
  slot_.socket[kDownstream].writable = true;
  if (to_unix()) slot_.socket[kUpstream].peer_closed = true;
  set_state(ConnectionState::kRelaying);
  plan_first_look();
  // The guest may have answered, sent data and reset: one event reports all of it.
  if (slot_.socket[kUpstream].error != 0) await_error(kUpstream);
  schedule();
}

void Connection::on_connect_failed(int error) {
  const ConnectError reason = connect_error(error);
  slot_.error = static_cast<std::int16_t>(error);
  forward_counters().connect_errors[static_cast<std::size_t>(reason)].add();
  // There is no SYN to probe a Unix socket with: each client is accepted and reset.
  if (reason == ConnectError::kRefused && config().refused_probe.count() > 0 && !to_unix()) add_refusal();
  // RST, never FIN: a clean end would look like a service with nothing to send.
  terminate(cause_of(reason));
}

void Connection::add_refusal() {
  const IpAddress address = client().address();
  Refusal refusal{.forward = forward_,
                  .client = address,
                  .guest = guest(),
                  .local = {},
                  .own_address = is_transparent(slot_.source),
                  .concerns_all = forward_->source_to(guest()).plan != SourcePlan::kTransparent};
  if (context_.io.local_endpoint(fd(kDownstream), refusal.local) == 0)
    context_.refused.push_back(std::move(refusal));
}

// --- Events.

void Connection::on_poll(Side side, const Completion& completion) {
  armed_[side] = completion.more;
  if (slot_.state == ConnectionState::kClosing) return join();
  if (completion.result < 0) {
    // The poll could not be armed for lack of memory, and the connection gets no events without it.
    slot_.error = static_cast<std::int16_t>(-completion.result);
    return terminate({CloseSide::kNode, CloseHow::kResources});
  }
  on_events(side, static_cast<std::uint32_t>(completion.result));
  if (!completion.more) arm(side);
  enqueue();
}

void Connection::on_events(Side side, std::uint32_t events) {
  SocketState& socket = slot_.socket[side];
  if ((events & (POLLIN | POLLRDHUP | POLLHUP | POLLERR)) != 0) socket.readable = true;
  if ((events & (POLLOUT | POLLHUP | POLLERR)) != 0) socket.writable = true;
  if ((events & (POLLRDHUP | POLLHUP | POLLERR)) != 0) socket.peer_closed = true;
  if ((events & POLLPRI) != 0 && !socket.is_unix) context_.perhaps_urgent.emplace_back(this, side);
  if ((events & POLLERR) == 0) return;
  // While the sockets relay, reading finds the error after the bytes that came before it. Only if nothing
  // is read, before the connection is made or after FIN, SO_ERROR must be read, which clears it.
  const bool unread = slot_.state != ConnectionState::kRelaying || socket.read_ended;
  if (unread && socket.error == 0)
    socket.error = static_cast<std::int16_t>(-context_.io.socket_error(socket.fd));
  await_error(side);
}

void Connection::on_urgent(Side side) {
  // If the next byte is urgent, POLLIN is not reported, but only a read gets past it.
  slot_.socket[side].urgent = slot_.socket[side].readable = true;
}

/// An error was reported, but bytes before it may still be on their way to a side that does not read.
/// Waits for them kResetDeliveryMax at most.
void Connection::await_error(Side side) {
  if (slot_.state != ConnectionState::kRelaying || reset_deadline() != TimerWheel::kNever) return;
  set_reset_deadline(now() + kResetDeliveryMax);
  slot_.failed = side;
  schedule();
}

/// The error was not read in time. Nothing is read any more, so SO_ERROR can be used.
void Connection::on_error_unread() {
  SocketState& socket = slot_.socket[slot_.failed];
  if (socket.error == 0) socket.error = static_cast<std::int16_t>(-context_.io.socket_error(socket.fd));
  if (socket.error == 0) socket.error = ECONNRESET;  // reported, but cleared since
  fail(slot_.failed, socket.error);
}

void Connection::expire() {
  due_ = true;
  enqueue();
}

bool Connection::advance() {
  if (std::exchange(due_, false)) {
    on_deadline();
    if (!is_live()) return false;  // join() has queued it, or the last completion will
  }
  switch (slot_.state) {
    case ConnectionState::kConnecting:
      advance_connecting();
      break;
    case ConnectionState::kRelaying:
      advance_relaying();
      break;
    case ConnectionState::kResetting:
      advance_resetting();
      break;
    case ConnectionState::kClosing:
      return is_joined();
    case ConnectionState::kFree:
      assert(false && "it has left the queue");
      break;
  }
  return false;
}

// --- Ends.

/// `side` was reset, and everything it had sent is in the other side's socket. The other side is reset
/// too, once it has acknowledged that: an immediate close with linger 0 would discard what is still
/// unacknowledged.
void Connection::on_reset(Side side) {
  const int error = slot_.socket[side].error;
  slot_.cause = cause_of(side, error);
  slot_.error = static_cast<std::int16_t>(error);
  for (const Side from : kSides) slot_.relay[from].ended = true;
  context_.half_closed.remove(*this);
  set_reset_deadline(std::min(reset_deadline(), now() + kResetDeliveryMax));
  slot_.first_ended = side;
  set_state(ConnectionState::kResetting);
  advance_resetting();
}

void Connection::advance_resetting() {
  const SocketState& survivor = slot_.socket[other(slot_.first_ended)];
  // What a Unix socket has taken is its peer's, even after close(2).
  const bool delivered =
      survivor.error != 0 || survivor.is_unix || context_.io.unacknowledged(survivor.fd) <= 0;
  if (delivered || now() >= reset_deadline()) return terminate(slot_.cause);
  // No event reports an acknowledgement. The longer nothing has moved, the less often the socket is
  // checked.
  look_at_ = now() + std::clamp<Nanos>((now() - active()) / 8, kResetPollMin, kResetPollMax);
  schedule();
}

/// The socket of `side` reported an error, and nothing is left to deliver.
void Connection::fail(Side side, int error) {
  slot_.error = static_cast<std::int16_t>(error);
  terminate(cause_of(side, error));
}

void Connection::terminate(const CloseCause& cause) {
  slot_.cause = cause;
  if (device_due_ != TimerWheel::kNever) forward_->session->device_asked_for.store(false);
  leave_backlog();
  context_.half_closed.remove(*this);
  if (cause.how == CloseHow::kFin) slot_.error = 0;  // reported after everything had been delivered
  siblings().all.erase(ConnectionList::s_iterator_to(static_cast<InForward&>(*this)));
  context_.timers.clear(index_);
  due_ = false;
  set_state(ConnectionState::kClosing);
  for (const Side side : kSides) {
    // close(2) would send neither FIN nor RST while the ring holds the file.
    if (armed_[side]) context_.io.cancel(context_.token_base | token_of(index_, side), fd(side));
  }
  join();
}

/// Queues its release once the last completions have come.
void Connection::join() {
  if (is_joined()) enqueue();
}

void Connection::release() {
  forward_->session->connections.fetch_sub(1, std::memory_order_relaxed);
  if (admitted_) forward_->admission.leave(client().address());
  owner_->leave();
  WorkerCounters& counters = context_.counters;
  counters.connections_active.sub();
  forward_counters().connections_active.sub();
  for (const UsageMeterPtr& meter : forward_->meters) meter->closed(context_.worker, now().count());
  for (const Side side : kSides) {
    discard_kept(context_.pipes, slot_.relay[side]);
    count_pipe(side);
  }
  counters.closed[static_cast<std::size_t>(slot_.cause.side)][static_cast<std::size_t>(slot_.cause.how)]
      .add();
  counters.connection_duration.observe_us(elapsed_us(slot_.accepted_ns, now().count()), kConnectionBoundsS);
  CloseRecord record = make_record();
  record.forward = std::move(forward_);
  const bool tcp_closed = record.tcp[kUpstream].closed;
  // A TIME_WAIT holds one of the node's own ports. With the client's address the port is the client's, and
  // ending the TIME_WAIT gains nothing.
  const bool time_wait = slot_.cause == CloseCause{CloseSide::kClient, CloseHow::kFin} && tcp_closed &&
                         !is_transparent(slot_.source);
  const SessionNetns& place = record.forward->session->netns;
  const auto netns = time_wait ? place.get() : std::nullopt;
  for (const Side side : kSides) {
    // A socket that is in no slot is a client that was just accepted, for a successor, unless it has sent FIN
    // or is to be reset; one that is in a slot is its connection's.
    const bool is_reset = slot_.cause.how != CloseHow::kFin;
    if (is_reset && fd(side) >= 0) context_.io.set_reset_at_end(fd(side), true);
    const int socket = std::exchange(slot_.socket[side].fd, -1);
    if (socket < 0) continue;
    if (is_reset) {
      context_.io.close(socket);
      continue;
    }
    if (side == kUpstream && slot_.lasting && !tcp_closed) context_.upstream.end_lasting(socket);
    if (side == kUpstream && netns) {
      context_.io.close_time_wait(socket, record.guest, slot_.device, *netns);
    } else {
      if (side == kUpstream && !place.is_nodes_own()) context_.io.set_reset_at_end(socket, false);
      context_.io.close(socket);
    }
  }
  context_.push(std::move(record));
}

/// Without the forward.
CloseRecord Connection::make_record() const {
  CloseRecord record{.id = id(), .client = slot_.client, .guest = guest()};
  record.accepted_at = Nanos(slot_.accepted_ns);
  record.connected_at = Nanos(slot_.connected_ns);
  record.ended_at = now();
  record.received_bytes = slot_.relay[kDownstream].bytes;
  record.sent_bytes = slot_.relay[kUpstream].bytes;
  for (const Side side : kSides) {
    if (fd(side) >= 0) record.tcp[side] = context_.io.tcp_summary(fd(side));
  }
  record.cause = slot_.cause;
  record.source = slot_.source;
  record.error = slot_.error;
  return record;
}

// --- What the control plane asks.

LiveConnection Connection::live() const {
  LiveConnection live{.id = id(), .client = client()};
  if (slot_.state == ConnectionState::kResetting) {
    live.state = LiveState::kClosing;
  } else if (slot_.state == ConnectionState::kRelaying) {
    live.state = slot_.relay[kDownstream].ended ? LiveState::kClientEnded
                 : slot_.relay[kUpstream].ended ? LiveState::kGuestEnded
                                                : LiveState::kEstablished;
  }
  live.age = now() - Nanos(slot_.accepted_ns);
  live.idle = now() - active();
  live.received_bytes = slot_.relay[kDownstream].bytes;
  live.sent_bytes = slot_.relay[kUpstream].bytes;
  for (const Side side : kSides) {
    if (fd(side) >= 0) live.tcp[side] = context_.io.tcp_summary(fd(side));
  }
  live.received_queued_bytes = queued(kDownstream);
  live.sent_queued_bytes = queued(kUpstream);
  live.worker = static_cast<std::uint16_t>(context_.worker);
  live.source = slot_.source;
  return live;
}

/// Bytes from one side that the node still holds.
std::uint64_t Connection::queued(Side from) const {
  const int sink = fd(other(from));
  const int unread = fd(from) < 0 ? 0 : std::max(0, context_.io.unread(fd(from)));
  const int unacknowledged = sink < 0 ? 0 : std::max(0, context_.io.unacknowledged(sink));
  const RelayState& relay = slot_.relay[from];
  const std::uint64_t kept = relay.pipe_bytes + (relay.in_spare ? context_.memory.in_spare().size() : 0);
  return kept + static_cast<std::uint64_t>(unread) + static_cast<std::uint64_t>(unacknowledged);
}

// --- State, polls, queue.

void Connection::set_state(ConnectionState state) {
  [[maybe_unused]] const ConnectionState old = slot_.state;
  assert((state == ConnectionState::kConnecting && old == ConnectionState::kFree) ||
         (state == ConnectionState::kRelaying && old == ConnectionState::kConnecting) ||
         (state == ConnectionState::kResetting && old == ConnectionState::kRelaying) ||
         (state == ConnectionState::kClosing && old != ConnectionState::kFree &&
          old != ConnectionState::kClosing));
  slot_.state = state;
}

void Connection::arm(Side side) {
  armed_[side] = true;
  context_.io.poll(context_.token_base | token_of(index_, side), fd(side));
}

/// Has only spliced bytes to move.
bool Connection::is_stream() const {
  const auto has_message = [this](Side from) {
    return slot_.relay[from].mode == RelayMode::kCopy && slot_.socket[from].readable &&
           !slot_.relay[from].ended;
  };
  return slot_.state == ConnectionState::kRelaying && !due_ && std::ranges::none_of(kSides, has_message);
}

void Connection::enqueue() {
  if (RunQueue::is_first(*this)) return;
  if (is_stream()) {
    context_.queue.add_stream(*this);
  } else {
    context_.queue.add_message(*this, siblings().ready);
  }
}

}  // namespace portway
