#include "proxy/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cassert>
#include <cerrno>

#include "network/proxy_header.h"
#include "network/source_plan.h"
#include "proxy/device_requests.h"

namespace portway {
namespace {

// How often a side that is to be reset is asked whether it has acknowledged everything, and for how long at
// most: a client that reads nothing must not hold a slot for ever.
constexpr Nanos kResetPollMin = std::chrono::milliseconds(4);
constexpr Nanos kResetPollMax = std::chrono::milliseconds(250);
constexpr Nanos kResetDeliveryMax = std::chrono::seconds(10);

// Steps of connections in a turn, each of 5 to 40 us: so long does a neighbour wait for its turn. As many
// bulk streams at most.
constexpr std::size_t kStepsAtOnce = 32;

// Half-closed connections are looked at once a second; so many of them in a turn.
constexpr Nanos kHalfClosedEvery = std::chrono::seconds(1);
constexpr std::size_t kHalfClosedAtOnce = 256;
constexpr std::size_t kHalfClosedOfForward = 64;
constexpr std::size_t kEvictionsSeen = 64;
constexpr std::size_t kForwardsSeen = 256;

// An ICMP error that comes before connect(2) has returned, as over a veth pair, ends no connection, and no
// event tells it: the socket is asked once (SO_ERROR). The next SYN, and so the next error, is a second away.
constexpr Nanos kAskAfter = std::chrono::milliseconds(20);

// Of a forward's latest connections, to find out who has most of them: at least, at most, and how often.
constexpr std::size_t kSourcesSeenMin = 16;
constexpr std::size_t kSourcesSeenMax = 1024;
constexpr Nanos kSourcesEvery = std::chrono::milliseconds(100);

// How long a client waits for its session's device, and how often that is looked for.
constexpr Nanos kDeviceWait = std::chrono::milliseconds(300);
constexpr Nanos kDeviceLooks = std::chrono::milliseconds(10);

// A connection is looked at when it has lasted for so long, then at intervals in which little is missed of
// options.user_timeout. Many that are due together are looked at together, so that a worker may sleep.
constexpr Nanos kFirstLook = std::chrono::seconds(10);
constexpr Nanos kLooksMin = std::chrono::milliseconds(250);
constexpr int kLooksInTimeout = 16;
constexpr int kGrainsInLooks = 64;

Nanos look_after(Nanos now, Nanos wait) {
  const Nanos grain = std::max(wait / kGrainsInLooks, TimerWheel::kTick);
  return (now + wait) / grain * grain + grain;
}

CloseSide close_side(Side side) {
  return side == kDownstream ? CloseSide::kClient : CloseSide::kGuest;
}

ConnectError connect_error(int error) {
  switch (error) {
    case ECONNREFUSED:
      return ConnectError::kRefused;
    case ETIMEDOUT:
      return ConnectError::kTimeout;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:    // the rest: as ICMP errors say it (icmp_err_convert[], tab_unreach[] of icmpv6)
    case ENONET:       //
    case ENOPROTOOPT:  //
    case EOPNOTSUPP:   //
    case EPROTO:       //
    case EACCES:       // prohibited, of IPv6
      return ConnectError::kUnreachable;
    case ENODEV:
      return ConnectError::kDeviceGone;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
      return ConnectError::kResources;
    case EADDRNOTAVAIL:
      return ConnectError::kSourcePorts;
    default:
      return ConnectError::kOther;
  }
}

CloseHow close_how(ConnectError error) {
  switch (error) {
    case ConnectError::kRefused:
      return CloseHow::kRefused;
    case ConnectError::kTimeout:
      return CloseHow::kConnectTimeout;
    default:
      return CloseHow::kConnectError;
  }
}

CloseHow close_how(RejectReason reason) {
  switch (reason) {
    case RejectReason::kForwardGone:
      return CloseHow::kForwardDeleted;
    case RejectReason::kDraining:
      return CloseHow::kShutdown;
    case RejectReason::kClientGone:
      return CloseHow::kReset;
    case RejectReason::kInstanceShare:
    case RejectReason::kForwardShare:
    case RejectReason::kSourceShare:
    case RejectReason::kSourceAddress:
    case RejectReason::kConnectionsMax:
    case RejectReason::kSourceNotAllowed:
    case RejectReason::kForwardConnectionsMax:
    case RejectReason::kSourceConnectionsMax:
    case RejectReason::kNewConnectionRate:
      break;
  }
  return CloseHow::kLimit;
}

/// How the guest is to see the client; nullopt if it must not see it at all.
std::optional<SourcePlan> first_plan(const ServedForward& forward, const Endpoint& client) {
  const ForwardSource wanted = forward.source_of(client.address());
  if (wanted.plan == SourcePlan::kNoReturnPath && wanted.required) return std::nullopt;
  if (wanted.plan != SourcePlan::kTransparent) return wanted.plan;
  const auto plan = plan_source(client, forward.route.upstream_of(client.address()));
  if (plan == SourcePlan::kFamily && wanted.required) return std::nullopt;
  return plan;
}

/// TCP itself gave a peer up: it answered neither keepalive probes nor retransmissions. Where an ICMP error
/// has come meanwhile, the socket tells that (sk_err_soft), a refusal among them.
bool is_silence(int error) {
  const ConnectError told = connect_error(error);
  return told == ConnectError::kTimeout || told == ConnectError::kUnreachable ||
         told == ConnectError::kRefused;
}

/// The peer of an established connection has reset it; EPIPE where it had sent FIN before. A refused connect
/// is told as ECONNREFUSED.
bool is_reset(int error) {
  return error == ECONNRESET || error == EPIPE;
}

/// Of the node's memory: the peer has nothing to do with it.
bool is_shortage(int error) {
  return error == ENOMEM || error == ENOBUFS;
}

/// What ended an established connection, by the error that this side's socket told.
CloseCause cause_of(Side side, int error) {
  if (is_silence(error)) return {close_side(side), CloseHow::kKeepaliveTimeout};
  if (is_shortage(error)) return {CloseSide::kNode, CloseHow::kResources};
  return {close_side(side), CloseHow::kReset};
}

std::uint64_t elapsed_us(std::int64_t from_ns, std::int64_t to_ns) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, to_ns - from_ns) / 1000);
}

Nanos deadline_after(std::int64_t from_ns, Nanos span) {
  return span == Nanos::zero() ? TimerWheel::kNever : Nanos(from_ns) + span;
}

}  // namespace

ConnectionSet::ConnectionSet(Io& io, const ConnectionOptions& options, std::span<ConnectionSlot> slots,
                             std::uint32_t pipes_max, WorkerCounters& counters, CloseRecordRing& closes,
                             std::size_t worker, Token token_base)
    : io_(io),
      options_(options),
      counters_(counters),
      closes_(closes),
      worker_(worker),
      token_base_(token_base),
      table_(slots),
      pipes_(io, pipes_max, counters),
      upstream_(io, options_),
      timers_(io.now()) {}

ConnectionSet::~ConnectionSet() {
  assert(table_.in_use() == 0 && "reset_all() and run until empty first");
}

// --- From accept to connect.

std::optional<OpenedConnection> ConnectionSet::open(int downstream, const ServedForwardPtr& forward) {
  const Client client = client_of(downstream);
  const auto turn_away = [&](RejectReason reason) {
    reject(downstream, forward, reason, client);
    return std::nullopt;
  };
  if (forward->phase.load() == ForwardPhase::kEnded) return turn_away(RejectReason::kForwardGone);
  // Whoever it was, the guest is not to see the node in its place.
  if (client.endpoint.port() == 0) return turn_away(RejectReason::kClientGone);
  const int device = forward->session->device.load();  // before the source, which is set first
  // What the guest is to see is not known before there is a device.
  const bool waits = device == kNoDevice && options_.device_requests != nullptr;
  const auto plan = waits ? SourcePlan::kPlain : first_plan(*forward, client.endpoint);
  if (!plan) return turn_away(RejectReason::kSourceAddress);
  OpenedConnection opened{.forward = forward,
                          .downstream = downstream,
                          .client = client.endpoint,
                          .dscp = options_.config.copy_dscp ? client.dscp : std::uint8_t{0},
                          .source = *plan,
                          .waits_for_device = waits,
                          .admitted = forward->admission.limited(),
                          .accepted_at = io_.now()};
  if (opened.admitted) {
    if (const auto refused = forward->admission.ask(client.endpoint.address(), opened.accepted_at))
      return turn_away(*refused);
  }
  if (!waits) connect(opened, device);
  return opened;
}

void ConnectionSet::connect(OpenedConnection& opened, int device) {
  const int result = upstream_.open({.guest = opened.forward->route.upstream_of(opened.client.address()),
                                     .device = device,
                                     .client = opened.client,
                                     .dscp = opened.dscp},
                                    opened.source, opened.upstream);
  if (result != 0 && result != -EINPROGRESS) opened.error = -result;
}

void ConnectionSet::start(OpenedConnection opened) {
  // The end of a forward is told to the workers after its phase has moved on: what is started before that
  // message comes, close_forward() finds.
  if (opened.forward->phase.load() == ForwardPhase::kEnded ||
      of(*opened.forward).end_until == ForwardConnections::kAll)
    return reject(opened, RejectReason::kForwardGone);
  const auto taken = table_.take();
  if (!taken) return reject(opened, RejectReason::kConnectionsMax);
  const std::uint32_t index = *taken;
  if (index >= connections_.size()) connections_.resize(index + 1);
  ConnectionSlot& slot = table_[index];
  slot.forward = opened.forward->route.id;
  slot.socket[kDownstream].fd = opened.downstream;
  slot.socket[kUpstream].fd = opened.upstream;
  slot.accepted_ns = slot.active_ns = opened.accepted_at.count();
  slot.client = to_plain(opened.client);
  slot.source = opened.source;
  // The forward may have got limits since it was opened.
  if (!opened.admitted && opened.forward->admission.limited()) {
    opened.forward->admission.enter(opened.client.address());
    opened.admitted = true;
  }
  connections_[index].admitted = opened.admitted;
  connections_[index].forward = std::move(opened.forward);
  const ServedForward& served = *connections_[index].forward;
  append(of(served).all, &Connection::in_forward, index);
  served.session->connections.fetch_add(1, std::memory_order_relaxed);
  counters_.connections_active.add();
  served.counters[worker_].connections_active.add();
  served.counters[worker_].connections_accepted.add();

  set_state(index, ConnectionState::kConnecting);
  arm(index, kDownstream);
  if (opened.waits_for_device) {
    connections_[index].dscp = opened.dscp;
    wait_for_device(index);
  } else {
    go_on(index, opened.error);
  }
}

/// The connection to the guest is under way, or failed at once.
void ConnectionSet::go_on(std::uint32_t index, int error) {
  if (error != 0) return on_connect_failed(index, error);
  arm(index, kUpstream);
  schedule(index);
}

/// The machine may have come, and the kernel not have told: somebody looks, within the control thread's tick.
void ConnectionSet::wait_for_device(std::uint32_t index) {
  const ServedForward& forward = *connections_[index].forward;
  connections_[index].device_due = io_.now() + kDeviceWait;
  if (!forward.session->device_asked_for.exchange(true))
    options_.device_requests->ask(forward.route.instance_id);
  timers_.set(index, io_.now() + kDeviceLooks);
}

void ConnectionSet::look_for_device(std::uint32_t index) {
  ConnectionSlot& slot = table_[index];
  Connection& connection = connections_[index];
  ServedForward& forward = *connection.forward;
  const int device = forward.session->device.load();  // before the source, which is set first
  if (device == kNoDevice && io_.now() < connection.device_due) {
    timers_.set(index, io_.now() + kDeviceLooks);
    return;
  }
  connection.device_due = TimerWheel::kNever;
  forward.session->device_asked_for.store(false);
  const Endpoint client = to_endpoint(slot.client);
  const auto plan = device == kNoDevice ? SourcePlan::kPlain : first_plan(forward, client);
  if (!plan) {
    terminate(index, CloseSide::kNode, CloseHow::kLimit, true, true);
    return;
  }
  OpenedConnection opened{
      .forward = connection.forward, .client = client, .dscp = connection.dscp, .source = *plan};
  connect(opened, device);
  slot.source = opened.source;
  slot.socket[kUpstream].fd = opened.upstream;
  go_on(index, opened.error);
}

void ConnectionSet::reject(const OpenedConnection& opened, RejectReason reason) {
  if (opened.admitted) opened.forward->admission.leave(opened.client.address());
  if (opened.upstream >= 0) io_.close_with_reset(opened.upstream);
  reject(opened.downstream, opened.forward, reason, {.endpoint = opened.client});
}

/// Without address and port where it is not known.
Client ConnectionSet::client_of(int downstream) {
  Client client;
  io_.take_client(downstream, client);
  return client;
}

void ConnectionSet::reject(int downstream, const ServedForwardPtr& forward, RejectReason reason,
                           const Client& client) {
  counters_.rejected[static_cast<std::size_t>(reason)].add();
  forward->counters[worker_].rejected[static_cast<std::size_t>(reason)].add();
  CloseRecord record{.forward = forward};
  record.client = to_plain(client.endpoint);
  record.accepted_at = record.ended_at = io_.now();
  record.cause.how = close_how(reason);
  push_record(std::move(record));
  io_.close_with_reset(downstream);
}

/// 0, or the errno with which the socket, which is new and empty, does not take it as a whole.
int ConnectionSet::send_proxy_header(const ConnectionSlot& slot) {
  Endpoint destination;
  if (const int result = io_.local_endpoint(slot.socket[kDownstream].fd, destination); result < 0)
    return -result;
  const ProxyHeader header = proxy_header(to_endpoint(slot.client), destination);
  const std::ptrdiff_t sent =
      io_.send(slot.socket[kUpstream].fd, header.bytes.data(), header.size, MSG_NOSIGNAL);
  if (sent < 0) return static_cast<int>(-sent);
  return sent == static_cast<std::ptrdiff_t>(header.size) ? 0 : ENOBUFS;
}

void ConnectionSet::advance_connecting(std::uint32_t index) {
  ConnectionSlot& slot = table_[index];
  SocketState& downstream = slot.socket[kDownstream];
  SocketState& upstream = slot.socket[kUpstream];
  if (downstream.error != 0) {
    connections_[index].error = downstream.error;
    const CloseCause cause = cause_of(kDownstream, downstream.error);
    terminate(index, cause.side, cause.how, true, true);
    return;
  }
  if (upstream.error != 0 && !is_reset(upstream.error)) {
    on_connect_failed(index, upstream.error);
    return;
  }
  if (!upstream.writable) return;
  ServedForward& forward = *connections_[index].forward;
  if (slot.source == SourcePlan::kProxyV2) {
    if (const int error = send_proxy_header(slot); error != 0) {
      const CloseCause cause =
          is_reset(error) ? cause_of(kUpstream, error) : CloseCause{CloseSide::kNode, CloseHow::kResources};
      connections_[index].error = static_cast<std::int16_t>(error);
      terminate(index, cause.side, cause.how, true, true);
      return;
    }
  }
  counters_.sources[static_cast<std::size_t>(slot.source)].add();
  slot.connected_ns = slot.active_ns = io_.now().count();
  connections_[index].receive_buffer[kUpstream].begin(options_.config.guest_receive_buffer,
                                                      Nanos(slot.connected_ns));
  counters_.connect_duration.observe_us(elapsed_us(slot.accepted_ns, slot.connected_ns), kConnectBoundsS);
  forward.counters[worker_].connections_established.add();
  downstream.writable = true;
  if (options_.config.user_timeout.count() > 0 || options_.config.keepalive.count() > 0) {
    const Nanos wait =
        options_.config.user_timeout.count() > 0 ? std::min(looks_every(), kFirstLook) : kFirstLook;
    connections_[index].look_at = look_after(io_.now(), wait);
  }
  set_state(index, ConnectionState::kRelaying);
  // The guest may have answered, said something and reset since: that is told in one event.
  if (upstream.error != 0) doom(index, kUpstream);
  schedule(index);
  advance_relaying(index);
}

void ConnectionSet::on_connect_failed(std::uint32_t index, int error) {
  const ConnectError reason = connect_error(error);
  connections_[index].error = static_cast<std::int16_t>(error);
  connections_[index].forward->counters[worker_].connect_errors[static_cast<std::size_t>(reason)].add();
  if (reason == ConnectError::kRefused && options_.config.refused_probe.count() > 0) {
    const ConnectionSlot& slot = table_[index];
    const IpAddress client = to_endpoint(slot.client).address();
    Refusal refusal{
        .forward = connections_[index].forward,
        .client = client,
        .local = {},
        .own_address = is_transparent(slot.source),
        .concerns_all = connections_[index].forward->source_of(client).plan != SourcePlan::kTransparent};
    if (io_.local_endpoint(slot.socket[kDownstream].fd, refusal.local) == 0)
      refused_.push_back(std::move(refusal));
  }
  const bool by_guest = reason == ConnectError::kRefused || reason == ConnectError::kTimeout;
  // RST, never FIN: a clean end would say that a service was there and had nothing to say.
  terminate(index, by_guest ? CloseSide::kGuest : CloseSide::kNode, close_how(reason), true, true);
}

// --- What the ring tells.

void ConnectionSet::on_poll(Token token, const Completion& completion) {
  const auto index = static_cast<std::uint32_t>(token >> 1);
  const Side side = (token & 1) != 0 ? kUpstream : kDownstream;
  connections_[index].armed[side] = completion.more;
  if (table_[index].state == ConnectionState::kClosing) {
    join(index);
    return;
  }
  if (completion.result < 0) {
    // The poll could not be armed, for want of memory: without it the connection is blind.
    connections_[index].error = static_cast<std::int16_t>(-completion.result);
    terminate(index, CloseSide::kNode, CloseHow::kResources, true, true);
    return;
  }
  on_events(index, side, static_cast<std::uint32_t>(completion.result));
  if (!completion.more) arm(index, side);
  enqueue(index);
}

void ConnectionSet::on_events(std::uint32_t index, Side side, std::uint32_t events) {
  SocketState& socket = table_[index].socket[side];
  if ((events & (POLLIN | POLLRDHUP | POLLHUP | POLLERR)) != 0) socket.readable = true;
  if ((events & (POLLOUT | POLLHUP | POLLERR)) != 0) socket.writable = true;
  if ((events & (POLLRDHUP | POLLHUP | POLLERR)) != 0) socket.peer_closed = true;
  if ((events & POLLPRI) != 0) perhaps_urgent_.emplace_back(index, side);
  if ((events & POLLERR) == 0) return;
  // While the sockets relay, an error is found by reading, after the bytes before it. Only where nothing is
  // read, before the connection is made or after FIN, it has to be asked for: asking clears it.
  const bool unread = table_[index].state != ConnectionState::kRelaying || socket.read_ended;
  if (unread && socket.error == 0) socket.error = static_cast<std::int16_t>(-io_.socket_error(socket.fd));
  doom(index, side);
}

/// An error was told while the bytes before it may still be on their way to a side that does not read: that
/// lasts kResetDeliveryMax at most.
void ConnectionSet::doom(std::uint32_t index, Side side) {
  Connection& connection = connections_[index];
  if (table_[index].state != ConnectionState::kRelaying || connection.reset_deadline != TimerWheel::kNever)
    return;
  connection.reset_deadline = io_.now() + kResetDeliveryMax;
  connection.doomed = side;
  schedule(index);
}

/// The error was not read in time: nothing is read any more, so that it can be asked for.
void ConnectionSet::on_doom(std::uint32_t index) {
  Connection& connection = connections_[index];
  SocketState& socket = table_[index].socket[connection.doomed];
  if (socket.error == 0) socket.error = static_cast<std::int16_t>(-io_.socket_error(socket.fd));
  if (socket.error == 0) socket.error = ECONNRESET;  // told, and gone since
  connection.error = socket.error;
  const CloseCause cause = cause_of(connection.doomed, socket.error);
  terminate(index, cause.side, cause.how, true, true);
}

/// Before anything is read: a plain read would step over an urgent byte that is next.
void ConnectionSet::find_urgent() {
  asked_urgent_.clear();
  for (const auto& [index, side] : perhaps_urgent_) {
    asked_urgent_.push_back({is_live(index) ? table_[index].socket[side].fd : -1, POLLPRI, 0});
  }
  io_.find_urgent(asked_urgent_);
  for (std::size_t i = 0; i < asked_urgent_.size(); ++i) {
    if (asked_urgent_[i].revents == 0) continue;
    const auto& [index, side] = perhaps_urgent_[i];
    SocketState& socket = table_[index].socket[side];
    // An urgent byte that is next is no POLLIN: but only a read gets past it.
    socket.urgent = socket.readable = true;
  }
  perhaps_urgent_.clear();
}

void ConnectionSet::run() {
  if (!perhaps_urgent_.empty()) find_urgent();
  if (!runnable()) return;
  turn_began_ = io_.now();
  if (!ending_.empty()) end_some();
  // Where there are messages, a stream gets only a little between two of them.
  budget_ = ready_ != 0
                ? kRelayShareBesideMessages
                : std::max<std::size_t>(kRelayBudgetBytes / std::max(1U, streams_.size), PipePool::kPipeSize);
  // Messages first, one of each forward in turn: a forward that much happens to does not keep the others
  // waiting. What is left has its turn after what happens meanwhile was looked at.
  for (std::size_t left = std::min(ready_, kStepsAtOnce); left > 0; --left) {
    ServedForward* const forward = ready_forwards_.front();
    ready_forwards_.pop_front();
    ConnectionList& ready = of(*forward).ready;
    const std::uint32_t index = ready.first;
    dequeue(ready, index);
    if (!ready.empty()) ready_forwards_.push_back(forward);
    advance(index);
  }
  turn_bytes_ = 0;  // messages, however large, take nothing from the streams' budget
  for (std::size_t left = std::min<std::size_t>(streams_.size, kStepsAtOnce);
       left > 0 && turn_bytes_ < kRelayBudgetBytes; --left) {
    const std::uint32_t index = streams_.first;
    dequeue(streams_, index);
    advance(index);
  }
}

/// Has nothing to move but what is spliced.
bool ConnectionSet::is_bulk(std::uint32_t index) const {
  const ConnectionSlot& slot = table_[index];
  const auto has_message = [&slot](Side from) {
    return slot.relay[from].mode == RelayMode::kCopy && slot.socket[from].readable && !slot.relay[from].ended;
  };
  return slot.state == ConnectionState::kRelaying && std::ranges::none_of(kSides, has_message);
}

void ConnectionSet::advance(std::uint32_t index) {
  if (std::exchange(connections_[index].due, false)) {
    on_deadline(index);
    if (!is_live(index)) return;
  }
  switch (table_[index].state) {
    case ConnectionState::kConnecting:
      advance_connecting(index);
      break;
    case ConnectionState::kRelaying:
      advance_relaying(index);
      break;
    case ConnectionState::kResetting:
      advance_resetting(index);
      break;
    case ConnectionState::kClosing:
      if (is_joined(index)) release(index);
      break;
    case ConnectionState::kFree:
      assert(false && "it has left the queue");
      break;
  }
}

// --- Relaying.

void ConnectionSet::advance_relaying(std::uint32_t index) {
  for (const Side from : kSides) {
    relay_from(index, from);
    if (table_[index].state != ConnectionState::kRelaying) return;
  }
  const ConnectionSlot& slot = table_[index];
  if (slot.relay[kDownstream].ended && slot.relay[kUpstream].ended) {
    // Both FINs were passed on. An error told since then ends it the same way: all was delivered.
    terminate(index, close_side(slot.first_ended), CloseHow::kFin, false, false);
    return;
  }
  for (const Side side : kSides) {
    if (slot.socket[side].error != 0 && slot.socket[side].read_ended) {
      on_reset(index, side);
      return;
    }
  }
}

void ConnectionSet::relay_from(std::uint32_t index, Side from) {
  ConnectionSlot& slot = table_[index];
  RelayState& state = slot.relay[from];
  if (state.ended) return;
  SocketState& source = slot.socket[from];
  SocketState& sink = slot.socket[other(from)];
  const std::uint64_t before = state.bytes;
  RelayContext context{
      .io = io_, .pipes = pipes_, .counters = counters_, .buffer = buffer_, .budget = budget_};
  ByteRate& rate = connections_[index].forward->rate[from];
  const std::uint64_t limit = rate.limit();
  if (limit != 0) {
    const std::uint64_t allowance = rate.allowance(limit, io_.now());
    if (allowance == 0) return throttle(index, rate.wait(io_.now()));
    context.bytes_max = allowance;
  }
  const RelayStatus status = relay(context, state, source, sink);
  if (const std::uint64_t moved = state.bytes - before; moved != 0) {
    ForwardCounters& counts = connections_[index].forward->counters[worker_];
    (from == kDownstream ? counts.received_bytes : counts.sent_bytes).add(moved);
    turn_bytes_ += moved;
    slot.active_ns = turn_began_.count();
    if (limit != 0) rate.spend(limit, moved, io_.now());
    if (connections_[index].receive_buffer[from].due(state.bytes)) fit_receive_buffer(index, from);
    if (from == kDownstream && before < UpstreamOpener::kMuch && state.bytes >= UpstreamOpener::kMuch)
      upstream_.limit_unsent(sink.fd);
  }
  switch (status) {
    case RelayStatus::kWaiting:
      break;
    case RelayStatus::kBudgetSpent:
      enqueue(index);
      break;
    case RelayStatus::kSourceEnded:
      state.ended = true;
      if (source.error != 0) {
        on_reset(index, from);
      } else {
        if (!slot.relay[other(from)].ended) slot.first_ended = from;
        io_.shutdown(sink.fd, SHUT_WR);
        sink.write_ended = true;
        slot.active_ns = turn_began_.count();  // the other side has its time from now on
        set_half_closed(index, true);
        schedule(index);
      }
      break;
    case RelayStatus::kSinkBroken:
      state.ended = true;
      if (is_shortage(sink.error)) {
        // Nothing tells when there is memory, and the sink would wait for the rest for ever.
        connections_[index].error = sink.error;
        terminate(index, CloseSide::kNode, CloseHow::kResources, true, true);
        return;
      }
      // What the broken side sent before it broke is still to be delivered: read on, to its error or its end.
      sink.readable = true;
      sink.peer_closed = true;
      if (sink.read_ended) {
        on_reset(index, other(from));
      } else {
        enqueue(index);
      }
      break;
  }
}

void ConnectionSet::fit_receive_buffer(std::uint32_t index, Side side) {
  const std::uint32_t least =
      side == kUpstream ? options_.config.guest_receive_buffer : options_.config.client_receive_buffer;
  if (least == 0) return;
  const ConnectionSlot& slot = table_[index];
  const int fd = slot.socket[side].fd;
  const Nanos round_trip =
      side == kUpstream ? Nanos::zero() : std::chrono::microseconds(io_.tcp_summary(fd).rtt_us);
  const auto fit =
      connections_[index].receive_buffer[side].fit(slot.relay[side].bytes, turn_began_, least, round_trip);
  if (!fit) return;
  const auto size = static_cast<int>(*fit);
  // Beyond net.core.rmem_max with CAP_NET_ADMIN only. A client's socket is then left to the kernel, or a long
  // path could not be filled.
  const bool forced = io_.set_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, size) == 0;
  if (side == kUpstream) {
    if (!forced) io_.set_option(fd, SOL_SOCKET, SO_RCVBUF, size);
  } else if (forced) {
    io_.set_option(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, size);  // the window does not follow by itself
  }
}

/// The timer goes on with it: nothing else tells that there are bytes to spend again.
void ConnectionSet::throttle(std::uint32_t index, Nanos wait) {
  Connection& connection = connections_[index];
  connection.throttled_until = std::min(connection.throttled_until, io_.now() + wait);
  schedule(index);
}

// --- Ends.

/// `side` was reset, and everything it sent before is in the other side's socket: the other one is reset as
/// well, once it has acknowledged that. A linger-0 close at once would take back what it has not read yet.
void ConnectionSet::on_reset(std::uint32_t index, Side side) {
  ConnectionSlot& slot = table_[index];
  Connection& connection = connections_[index];
  const int error = slot.socket[side].error;
  connection.cause = cause_of(side, error);
  connection.error = static_cast<std::int16_t>(error);
  for (const Side from : kSides) slot.relay[from].ended = true;
  set_half_closed(index, false);
  connection.reset_deadline = std::min(connection.reset_deadline, io_.now() + kResetDeliveryMax);
  slot.first_ended = side;
  set_state(index, ConnectionState::kResetting);
  advance_resetting(index);
}

void ConnectionSet::advance_resetting(std::uint32_t index) {
  const ConnectionSlot& slot = table_[index];
  const Connection& connection = connections_[index];
  const SocketState& survivor = slot.socket[other(slot.first_ended)];
  const Nanos now = io_.now();
  const bool delivered = survivor.error != 0 || io_.unacknowledged(survivor.fd) <= 0;
  if (delivered || now >= connection.reset_deadline) {
    terminate(index, connection.cause.side, connection.cause.how, true, true);
  } else {
    // No event tells of an acknowledgement. The longer nothing has moved, the less often it is asked for.
    const Nanos still = now - Nanos(slot.active_ns);
    timers_.set(index, now + std::clamp<Nanos>(still / 8, kResetPollMin, kResetPollMax));
  }
}

void ConnectionSet::terminate(std::uint32_t index, CloseSide side, CloseHow how, bool reset_downstream,
                              bool reset_upstream) {
  ConnectionSlot& slot = table_[index];
  Connection& connection = connections_[index];
  connection.cause = {side, how};
  if (connection.device_due != TimerWheel::kNever) connection.forward->session->device_asked_for.store(false);
  set_half_closed(index, false);
  if (how == CloseHow::kFin) connection.error = 0;  // told after everything was delivered
  remove(of(*connection.forward).all, &Connection::in_forward, index);
  connection.reset[kDownstream] = reset_downstream;
  connection.reset[kUpstream] = reset_upstream;
  timers_.clear(index);
  connection.due = false;
  set_state(index, ConnectionState::kClosing);
  for (const Side each : kSides) {
    // close(2) would neither send FIN nor RST while the ring holds the file.
    if (connection.armed[each]) io_.cancel(token_of(index, each), slot.socket[each].fd);
  }
  join(index);
}

void ConnectionSet::join(std::uint32_t index) {
  if (is_joined(index)) enqueue(index);
}

bool ConnectionSet::is_joined(std::uint32_t index) const {
  return !connections_[index].armed[kDownstream] && !connections_[index].armed[kUpstream];
}

void ConnectionSet::release(std::uint32_t index) {
  ConnectionSlot& slot = table_[index];
  Connection& connection = connections_[index];
  connection.forward->session->connections.fetch_sub(1, std::memory_order_relaxed);
  count_close(slot, connection);
  CloseRecord record = record_of(slot, connection);
  // Its TIME_WAIT holds one of the node's own ports: with the client's address it is the client's, which does
  // not come back with it any sooner.
  const bool time_wait = record.cause == CloseCause{CloseSide::kClient, CloseHow::kFin} &&
                         record.tcp[kUpstream].closed && !is_transparent(slot.source);
  for (const Side side : kSides) {
    discard_kept(pipes_, slot.relay[side]);
    const int fd = slot.socket[side].fd;
    if (fd < 0) continue;
    if (connection.reset[side]) {
      io_.close_with_reset(fd);
      continue;
    }
    if (side == kUpstream && connection.lasting && !record.tcp[kUpstream].closed) upstream_.end_lasting(fd);
    if (side == kUpstream && time_wait) {
      io_.close_time_wait(fd, record.guest(), record.forward->session->device.load());
    } else {
      io_.close(fd);
    }
  }
  push_record(std::move(record));
  connection = Connection{};
  table_.give_back(index);
  released_ = true;
}

void ConnectionSet::count_close(const ConnectionSlot& slot, const Connection& connection) {
  counters_.connections_active.sub();
  if (connection.admitted) connection.forward->admission.leave(to_endpoint(slot.client).address());
  connection.forward->counters[worker_].connections_active.sub();
  counters_
      .closed[static_cast<std::size_t>(connection.cause.side)][static_cast<std::size_t>(connection.cause.how)]
      .add();
  counters_.connection_duration.observe_us(elapsed_us(slot.accepted_ns, io_.now().count()),
                                           kConnectionBoundsS);
}

/// Takes the connection's forward with it.
CloseRecord ConnectionSet::record_of(const ConnectionSlot& slot, Connection& connection) {
  CloseRecord record{.forward = std::move(connection.forward), .id = id_of(slot), .client = slot.client};
  record.accepted_at = Nanos(slot.accepted_ns);
  record.connected_at = Nanos(slot.connected_ns);
  record.ended_at = io_.now();
  record.received_bytes = slot.relay[kDownstream].bytes;
  record.sent_bytes = slot.relay[kUpstream].bytes;
  for (const Side side : kSides) {
    if (slot.socket[side].fd >= 0) record.tcp[side] = io_.tcp_summary(slot.socket[side].fd);
  }
  record.cause = connection.cause;
  record.source = slot.source;
  record.error = connection.error;
  return record;
}

void ConnectionSet::push_record(CloseRecord&& record) {
  record.worker = static_cast<std::uint16_t>(worker_);
  if (!closes_.push(std::move(record))) counters_.close_records_dropped.add();
}

void ConnectionSet::close_forward(const ServedForwardPtr& forward) {
  const ForwardPhase phase = forward->phase.load();
  if (phase == ForwardPhase::kEnded) {
    end(forward, ForwardConnections::kAll, forward->why.load());
  } else if (phase == ForwardPhase::kDraining) {
    draining_.push_back({io_.now() + options_.config.drain_timeout, forward, forward->why.load()});
  }
}

void ConnectionSet::end(const ServedForwardPtr& forward, std::uint64_t until, CloseHow how) {
  ForwardConnections& own = of(*forward);
  if (own.end_until == 0) ending_.push_back(forward);
  own.end_until = std::max(own.end_until, until);
  own.end_how = how;
}

/// A few of each forward in turn: tens of thousands that end at once keep nobody else waiting.
void ConnectionSet::end_some() {
  for (std::size_t left = kStepsAtOnce; left > 0 && !ending_.empty(); --left) {
    ServedForwardPtr forward = std::move(ending_.front());
    ending_.pop_front();
    ForwardConnections& own = of(*forward);
    const std::uint32_t index = own.all.first;
    if (!own.all.empty() && table_[index].serial <= own.end_until) {
      terminate(index, CloseSide::kNode, own.end_how, true, true);
      ending_.push_back(std::move(forward));
    } else if (own.end_until != ForwardConnections::kAll) {
      own.end_until = 0;
    }
  }
}

void ConnectionSet::reset_all(CloseHow how) {
  for (std::uint32_t index = 0; index < table_.high_water(); ++index) {
    if (is_live(index)) terminate(index, CloseSide::kNode, how, true, true);
  }
}

// --- Where connections are short.

void ConnectionSet::set_half_closed(std::uint32_t index, bool half_closed) {
  Connection& connection = connections_[index];
  if (connection.half_closed == half_closed) return;
  connection.half_closed = half_closed;
  ConnectionList& list = of(*connection.forward).half_closed;
  if (half_closed) {
    if (list.first == ConnectionList::kNone) {
      of(*connection.forward).half_closed_place = static_cast<std::uint32_t>(with_half_closed_.size());
      with_half_closed_.push_back(connection.forward.get());
    }
    connection.half_closed_seen = io_.now();
    append(list, &Connection::in_half_closed, index);
    if (half_closed_due_ == TimerWheel::kNever) half_closed_due_ = io_.now() + kHalfClosedEvery;
  } else {
    remove(list, &Connection::in_half_closed, index);
    if (list.first != ConnectionList::kNone) return;
    ServedForward* const last = with_half_closed_.back();
    const std::uint32_t place = of(*connection.forward).half_closed_place;
    of(*last).half_closed_place = place;
    with_half_closed_[place] = last;
    with_half_closed_.pop_back();
    if (with_half_closed_.empty()) half_closed_due_ = TimerWheel::kNever;
  }
}

void ConnectionSet::expire_half_closed(const std::function<Nanos(std::size_t)>& limit) {
  const Nanos now = io_.now();
  std::size_t ended = 0;
  std::size_t seen = 0;
  bool unseen = false;
  // Goes on behind the forward that it has stopped at, so that each gets its turn.
  for (std::size_t left = with_half_closed_.size();
       left > 0 && seen < kHalfClosedAtOnce && !with_half_closed_.empty(); --left) {
    half_closed_next_ = std::min(half_closed_next_ - 1, with_half_closed_.size() - 1);  // 0 - 1: the last
    const ServedForwardPtr forward =
        with_half_closed_[half_closed_next_]->shared_from_this();  // or it may end
    ConnectionList& list = of(*forward).half_closed;
    const std::size_t seen_max = seen + kHalfClosedOfForward;
    for (bool more = true; more && list.first != ConnectionList::kNone && seen < seen_max; ++seen) {
      const std::uint32_t oldest = list.first;
      const Nanos active(table_[oldest].active_ns);
      const Nanos most = limit(ended);
      if (most != Nanos::zero() && now - active >= most) {
        terminate(oldest, CloseSide::kNode, CloseHow::kHalfCloseTimeout, true, true);
        ++ended;
      } else if (active > connections_[oldest].half_closed_seen) {
        // It has moved bytes since it came into the list: others may have been silent for longer.
        connections_[oldest].half_closed_seen = now;
        remove(list, &Connection::in_half_closed, oldest);
        append(list, &Connection::in_half_closed, oldest);
      } else {
        more = false;
      }
    }
    unseen = unseen || seen == seen_max;
  }
  // The rest in the next turn.
  half_closed_due_ = with_half_closed_.empty() ? TimerWheel::kNever
                     : ended > 0 || unseen     ? now
                                               : now + kHalfClosedEvery;
}

bool ConnectionSet::refuses(ServedForward& forward, int downstream) {
  Endpoint client;
  if (io_.remote_endpoint(downstream, client) < 0 || !first_plan(forward, client)) return true;
  return forward.admission.limited() && forward.admission.refuses(client.address(), io_.now());
}

bool ConnectionSet::replace_of_forward(const ServedForward& forward) {
  return evict_from(of(forward).half_closed, Nanos::zero());
}

bool ConnectionSet::replace_of_session(const ServedForward& forward) {
  const std::uint64_t own = forward.connections_now();
  const ServedForward* most = heaviest([&](const ServedForward& each) {
    if (each.session != forward.session) return std::uint64_t{0};
    const std::uint64_t connections = each.connections_now();
    return connections > own ? connections : 0;
  });
  return (most != nullptr && evict_from(of(*most).half_closed, kHalfClosedEvery)) ||
         replace_of_forward(forward);
}

bool ConnectionSet::replace_of_heaviest(std::uint64_t kept) {
  const ServedForward* most = heaviest([&](const ServedForward& each) {
    const std::uint64_t connections = each.session->connections.load(std::memory_order_relaxed);
    return connections > kept ? connections : 0;
  });
  return most != nullptr && evict_from(of(*most).half_closed, kHalfClosedEvery);
}

/// Of the forwards that have half-closed connections here, the one that weighs most; null where none weighs
/// anything. Looks at some of them, and goes on behind these the next time.
template <class Weigh>
const ServedForward* ConnectionSet::heaviest(Weigh weigh) {
  const ServedForward* found = nullptr;
  std::uint64_t most = 0;
  for (std::size_t left = std::min(kForwardsSeen, with_half_closed_.size()); left > 0; --left) {
    if (++weighed_ >= with_half_closed_.size()) weighed_ = 0;
    const ServedForward& each = *with_half_closed_[weighed_];
    if (const std::uint64_t weight = weigh(each); weight > most) {
      most = weight;
      found = &each;
    }
  }
  return found;
}

/// Of those that have been half-closed for longest and are `wanted`, the one that has been silent for
/// longest, and for `least` at least: a download goes on long after its client's FIN.
template <class Wanted>
bool ConnectionSet::evict_from(const ConnectionList& list, Nanos least, Wanted wanted) {
  std::uint32_t most_silent = ConnectionList::kNone;
  std::size_t seen = 0;
  for (std::uint32_t index = list.first; index != ConnectionList::kNone && seen < kEvictionsSeen;
       index = connections_[index].in_half_closed.next, ++seen) {
    if (!wanted(index)) continue;
    if (most_silent == ConnectionList::kNone || table_[index].active_ns < table_[most_silent].active_ns)
      most_silent = index;
  }
  if (most_silent == ConnectionList::kNone || io_.now() - Nanos(table_[most_silent].active_ns) < least)
    return false;
  terminate(most_silent, CloseSide::kNode, CloseHow::kEvicted, true, true);
  return true;
}

bool ConnectionSet::evict_from(const ConnectionList& list, Nanos least) {
  return evict_from(list, least, [](std::uint32_t) { return true; });
}

bool ConnectionSet::replace_of_source(const ServedForward& forward, int downstream) {
  const auto wanted = source_of_client(downstream);
  return wanted && evict_from(of(forward).half_closed, Nanos::zero(),
                              [&](std::uint32_t index) { return source_of_slot(index) == *wanted; });
}

bool ConnectionSet::has_most(const ServedForward& forward, int downstream) {
  ForwardConnections& own = of(forward);
  if (io_.now() >= own.sources_due) {
    own.sources_due = io_.now() + kSourcesEvery;
    own.main_source = main_source(forward);
  }
  return own.main_source && own.main_source == source_of_client(downstream);
}

/// The source that has more than half of the forward's latest connections, if they are enough to tell.
std::optional<IpAddress> ConnectionSet::main_source(const ServedForward& forward) {
  const auto for_each_latest = [&](auto visit) {
    std::size_t seen = 0;
    for (std::uint32_t index = of(forward).all.last; index != ConnectionList::kNone && seen < kSourcesSeenMax;
         index = connections_[index].in_forward.previous, ++seen) {
      visit(source_of_slot(index));
    }
    return seen;
  };
  // Boyer and Moore's majority vote: if one has more than half, it is the candidate that is left.
  IpAddress candidate;
  std::size_t votes = 0;
  const std::size_t seen = for_each_latest([&](const IpAddress& source) {
    if (votes == 0) candidate = source;
    votes = source == candidate ? votes + 1 : votes - 1;
  });
  std::size_t have = 0;
  for_each_latest([&](const IpAddress& source) { have += source == candidate ? 1U : 0U; });
  const std::uint64_t of_worker = forward.connections_now() / forward.worker_count;
  if (seen < std::min<std::uint64_t>(kSourcesSeenMin, of_worker) || 2 * have <= seen) return std::nullopt;
  return candidate;
}

IpAddress ConnectionSet::source_of_slot(std::uint32_t index) const {
  return source_of(to_endpoint(table_[index].client).address());
}

std::optional<IpAddress> ConnectionSet::source_of_client(int downstream) {
  Endpoint client;
  if (io_.remote_endpoint(downstream, client) < 0) return std::nullopt;
  return source_of(client.address());
}

void ConnectionSet::count_for_limits(ServedForward& forward) {
  for_each_live(forward, [&](std::uint32_t index) {
    if (std::exchange(connections_[index].admitted, true)) return;
    forward.admission.enter(to_endpoint(table_[index].client).address());
  });
}

// --- What the control plane asks.

std::vector<LiveConnection> ConnectionSet::list(const ServedForward& forward, ConnectionId after,
                                                std::size_t limit) {
  std::vector<std::pair<ConnectionId, std::uint32_t>> found;
  for_each_live(forward, [&](std::uint32_t index) {
    if (const ConnectionId id = id_of(table_[index]); id > after) found.emplace_back(id, index);
  });
  const std::size_t count = std::min(limit, found.size());
  std::partial_sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count), found.end());
  std::vector<LiveConnection> live;
  live.reserve(count);
  for (std::size_t i = 0; i < count; ++i) live.push_back(live_connection(table_[found[i].second]));
  return live;
}

LiveConnection ConnectionSet::live_connection(const ConnectionSlot& slot) {
  LiveConnection live{.id = id_of(slot), .client = to_endpoint(slot.client)};
  if (slot.state == ConnectionState::kResetting) {
    live.state = LiveState::kClosing;
  } else if (slot.state == ConnectionState::kRelaying) {
    live.state = slot.relay[kDownstream].ended ? LiveState::kClientEnded
                 : slot.relay[kUpstream].ended ? LiveState::kGuestEnded
                                               : LiveState::kEstablished;
  }
  live.age = io_.now() - Nanos(slot.accepted_ns);
  live.idle = io_.now() - Nanos(slot.active_ns);
  live.received_bytes = slot.relay[kDownstream].bytes;
  live.sent_bytes = slot.relay[kUpstream].bytes;
  for (const Side side : kSides) {
    if (slot.socket[side].fd >= 0) live.tcp[side] = io_.tcp_summary(slot.socket[side].fd);
  }
  live.received_queued_bytes = queued(slot, kDownstream);
  live.sent_queued_bytes = queued(slot, kUpstream);
  live.worker = static_cast<std::uint16_t>(worker_);
  live.source = slot.source;
  return live;
}

/// Bytes from one side that are in the node.
std::uint64_t ConnectionSet::queued(const ConnectionSlot& slot, Side from) {
  const int source = slot.socket[from].fd;
  const int sink = slot.socket[other(from)].fd;
  const int unread = source < 0 ? 0 : std::max(0, io_.unread(source));
  const int unacknowledged = sink < 0 ? 0 : std::max(0, io_.unacknowledged(sink));
  const std::uint64_t kept =
      slot.relay[from].pipe_bytes + (slot.relay[from].in_spare ? pipes_.spare().size() : 0);
  return kept + static_cast<std::uint64_t>(unread) + static_cast<std::uint64_t>(unacknowledged);
}

std::size_t ConnectionSet::kill(const ServedForwardPtr& forward, ConnectionId connection) {
  std::size_t count = 0;
  std::uint64_t last = 0;
  for_each_live(*forward, [&](std::uint32_t index) {
    last = table_[index].serial;
    if (connection == 0) {
      ++count;
    } else if (id_of(table_[index]) == connection) {
      terminate(index, CloseSide::kNode, CloseHow::kKilled, true, true);
      ++count;
    }
  });
  if (connection == 0 && count != 0) end(forward, last, CloseHow::kKilled);
  return count;
}

// --- Time.

Nanos ConnectionSet::until_next_deadline() const {
  const Nanos now = io_.now();
  Nanos next = half_closed_due_;
  if (!draining_.empty()) next = std::min(next, draining_.front().deadline);
  if (next != TimerWheel::kNever) next = std::max(Nanos::zero(), next - now);
  return std::min(next, timers_.until_next(now));
}

/// Many may be due at once: run() deals with them.
void ConnectionSet::expire() {
  const Nanos now = io_.now();
  timers_.expire(now, [this](std::uint32_t index) {
    connections_[index].due = true;
    enqueue(index);
  });
  while (!draining_.empty() && draining_.front().deadline <= now) {
    end(draining_.front().forward, ForwardConnections::kAll, draining_.front().how);
    draining_.pop_front();
  }
}

/// Sets the earliest deadline that the connection's state has. Bytes moved do not move it: on_deadline()
/// looks again.
void ConnectionSet::schedule(std::uint32_t index) {
  const ConnectionSlot& slot = table_[index];
  Nanos deadline = TimerWheel::kNever;
  if (slot.state == ConnectionState::kConnecting) {
    deadline = deadline_after(slot.accepted_ns, options_.config.connect_timeout);
    const Nanos ask = deadline_after(slot.accepted_ns, kAskAfter);
    if (io_.now() < ask) deadline = std::min(deadline, ask);
  } else if (slot.state == ConnectionState::kRelaying) {
    deadline =
        std::min({deadline, connections_[index].reset_deadline, connections_[index].throttled_until,
                  connections_[index].look_at, deadline_after(slot.active_ns, options_.config.idle_timeout)});
    if (slot.relay[kDownstream].ended || slot.relay[kUpstream].ended) {
      deadline = std::min(deadline, deadline_after(slot.active_ns, options_.config.half_close_timeout));
    }
  } else {
    return;  // kResetting sets its own
  }
  timers_.set(index, deadline);
}

void ConnectionSet::on_deadline(std::uint32_t index) {
  const ConnectionSlot& slot = table_[index];
  const Nanos now = io_.now();
  if (slot.state == ConnectionState::kResetting) {
    advance_resetting(index);
  } else if (connections_[index].device_due != TimerWheel::kNever) {
    look_for_device(index);
  } else if (slot.state == ConnectionState::kConnecting) {
    if (now >= deadline_after(slot.accepted_ns, options_.config.connect_timeout)) {
      on_connect_failed(index, ETIMEDOUT);
    } else if (const int error = -io_.socket_error(slot.socket[kUpstream].fd); error != 0) {
      on_connect_failed(index, error);
    } else {
      schedule(index);
    }
  } else if (now >= connections_[index].reset_deadline) {
    on_doom(index);
  } else if (now >= connections_[index].throttled_until) {
    connections_[index].throttled_until = TimerWheel::kNever;
    enqueue(index);
    schedule(index);
  } else if (now >= deadline_after(slot.active_ns, options_.config.idle_timeout)) {
    terminate(index, CloseSide::kNode, CloseHow::kIdleTimeout, true, true);
  } else if ((slot.relay[kDownstream].ended || slot.relay[kUpstream].ended) &&
             now >= deadline_after(slot.active_ns, options_.config.half_close_timeout)) {
    terminate(index, CloseSide::kNode, CloseHow::kHalfCloseTimeout, true, true);
  } else if (now >= connections_[index].look_at) {
    look_at_guest(index);
    schedule(index);
  } else {
    schedule(index);  // bytes have moved since it was set
  }
}

/// The guest's silence counts from when it has something to answer, and only where it was asked: one whose
/// window is closed answers each probe, which come up to two minutes apart, and a paused one need not answer
/// keepalive.
void ConnectionSet::look_at_guest(std::uint32_t index) {
  ConnectionSlot& slot = table_[index];
  Connection& connection = connections_[index];
  const int fd = slot.socket[kUpstream].fd;
  if (!std::exchange(connection.lasting, true)) upstream_.set_lasting(fd);
  if (options_.config.user_timeout.count() == 0) {
    connection.look_at = TimerWheel::kNever;
    return;
  }
  const Nanos now = io_.now();
  Nanos wait = looks_every();
  if (io_.unacknowledged(fd) <= 0) {
    connection.guest_owes_since = TimerWheel::kNever;
  } else {
    const TcpSummary tcp = io_.tcp_summary(fd);
    connection.guest_owes_since = std::min(connection.guest_owes_since, now);
    const Nanos silence = std::min<Nanos>(now - connection.guest_owes_since, tcp.answered_ago);
    const Nanos left = options_.config.user_timeout - silence;
    if (left <= Nanos::zero() && tcp.unanswered > 0) {
      slot.socket[kUpstream].error = ETIMEDOUT;
      on_reset(index, kUpstream);
      return;
    }
    if (left > Nanos::zero()) wait = std::min(wait, left);
  }
  connection.look_at = look_after(now, wait);
}

Nanos ConnectionSet::looks_every() const {
  return std::max<Nanos>(Nanos(options_.config.user_timeout) / kLooksInTimeout, kLooksMin);
}

// --- Small parts.

void ConnectionSet::set_state(std::uint32_t index, ConnectionState state) {
  [[maybe_unused]] const ConnectionState old = table_[index].state;
  assert((state == ConnectionState::kConnecting && old == ConnectionState::kFree) ||
         (state == ConnectionState::kRelaying && old == ConnectionState::kConnecting) ||
         (state == ConnectionState::kResetting && old == ConnectionState::kRelaying) ||
         (state == ConnectionState::kClosing && old != ConnectionState::kFree &&
          old != ConnectionState::kClosing));
  table_[index].state = state;
}

/// It is there, and its end has not begun.
bool ConnectionSet::is_live(std::uint32_t index) const {
  const ConnectionState state = table_[index].state;
  return state != ConnectionState::kFree && state != ConnectionState::kClosing;
}

void ConnectionSet::append(ConnectionList& list, ListLinks Connection::*links, std::uint32_t index) {
  ListLinks& own = connections_[index].*links;
  own = {.next = ConnectionList::kNone, .previous = list.last};
  (list.last != ConnectionList::kNone ? (connections_[list.last].*links).next : list.first) = index;
  list.last = index;
  ++list.size;
}

void ConnectionSet::remove(ConnectionList& list, ListLinks Connection::*links, std::uint32_t index) {
  const ListLinks own = connections_[index].*links;
  (own.previous != ConnectionList::kNone ? (connections_[own.previous].*links).next : list.first) = own.next;
  (own.next != ConnectionList::kNone ? (connections_[own.next].*links).previous : list.last) = own.previous;
  --list.size;
}

/// Calls visit(index) for each connection of the forward that is not being ended; `visit` may end the one
/// that it is given.
template <class Visit>
void ConnectionSet::for_each_live(const ServedForward& forward, Visit visit) {
  for (std::uint32_t index = of(forward).all.first; index != ConnectionList::kNone;) {
    const std::uint32_t next = connections_[index].in_forward.next;
    if (table_[index].serial > of(forward).end_until) visit(index);
    index = next;
  }
}

ConnectionId ConnectionSet::id_of(const ConnectionSlot& slot) const {
  return slot.serial << kConnectionIdWorkerBits | worker_;
}

void ConnectionSet::enqueue(std::uint32_t index) {
  Connection& connection = connections_[index];
  if (connection.queue == Queue::kReady) return;
  const bool bulk = is_bulk(index) && !connection.due;
  if (connection.queue == Queue::kStreams) {
    if (bulk) return;
    dequeue(streams_, index);  // a message is not to wait with the streams
  }
  if (bulk) {
    connection.queue = Queue::kStreams;
    append(streams_, &Connection::in_queue, index);
    return;
  }
  connection.queue = Queue::kReady;
  ConnectionList& ready = of(*connection.forward).ready;
  if (ready.empty()) ready_forwards_.push_back(connection.forward.get());
  append(ready, &Connection::in_queue, index);
  ++ready_;
}

void ConnectionSet::dequeue(ConnectionList& list, std::uint32_t index) {
  if (std::exchange(connections_[index].queue, Queue::kNone) == Queue::kReady) --ready_;
  remove(list, &Connection::in_queue, index);
}

void ConnectionSet::arm(std::uint32_t index, Side side) {
  connections_[index].armed[side] = true;
  io_.poll(token_of(index, side), table_[index].socket[side].fd);
}

}  // namespace portway
