#include "proxy/worker.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <optional>
#include <thread>
#include <utility>

#include "proxy/crash_note.h"
#include "proxy/main_source.h"

namespace portway {
namespace {

// The kind of an armed operation, above the index in its token.
constexpr Token kKindShift = 40;
constexpr Token kListenerToken = Token{1} << kKindShift;
constexpr Token kConnectionToken = Token{2} << kKindShift;
constexpr Token kProbeToken = Token{4} << kKindShift;
constexpr Token kIndexMask = kListenerToken - 1;

/// Messages in a turn: closing a forward's listeners takes 10 us.
constexpr std::size_t kMessagesAtOnce = 32;

/// Records waiting for the control thread, which reads every 100 ms: enough for 40,000 closes a second.
constexpr std::size_t kCloseRecords = 4096;

/// Events in one turn: with more, sleeping costs nothing. See Worker::latency_bound().
constexpr std::size_t kFewEvents = 4;

Nanos earlier(Nanos a, Nanos b) {
  if (a < Nanos::zero()) return b;
  if (b < Nanos::zero()) return a;
  return std::min(a, b);
}

}  // namespace

Worker::Worker(std::unique_ptr<Io> io, const WorkerOptions& options, const ArenaTable& memory)
    : io_(std::move(io)),
      connections_max_(memory.slots.size()),
      share_(options.share),
      half_close_timeout_(options.connections.config.half_close_timeout),
      worker_(options.index),
      closes_(kCloseRecords),
      listeners_(*io_, counters_, kListenerToken),
      connections_(*io_, options.connections, memory, options.share, options.pipes_max, counters_, closes_,
                   options.index, kConnectionToken),
      gates_(*io_, options.connections.config.refused_probe, options.connections.client_refusals, counters_,
             kProbeToken,
             {.shut = [this](const ServedForwardPtr& forward, bool v6) { listeners_.shut(*forward, v6); },
              .open = [this](const ServedForwardPtr& forward,
                             bool v6) { return listeners_.reopen(*forward, v6); },
              .source_ports = [this] { return connections_.source_ports(); }},
             memory.refusals),
      busy_poll_(options.connections.config.busy_poll) {
  io_->count_in(counters_);
}

Worker::~Worker() {
  // Handed over after the last turn: no turn will handle them.
  const auto turn_away = [this](const Message& message) {
    if (const auto* client = std::get_if<TakeClient>(&message)) {
      io_->close_with_reset(client->downstream);
      if (client->upstream >= 0) io_->close_with_reset(client->upstream);
    }
    if (const auto* connection = std::get_if<TakeConnection>(&message))
      connections_.reject(connection->opened, RejectReason::kDraining);
  };
  for (; read_ < reading_.size(); ++read_) turn_away(reading_[read_]);
  for (const Message& message : mailbox_) turn_away(message);
}

void Worker::post(Message message) {
  const auto hand_over = [this](ServedForward& forward) {
    handed_over_.fetch_add(1, std::memory_order_relaxed);
    forward.handed_over.fetch_add(1, std::memory_order_relaxed);
  };
  if (const auto* connection = std::get_if<TakeConnection>(&message)) hand_over(*connection->opened.forward);
  if (const auto* client = std::get_if<TakeClient>(&message)) hand_over(*client->forward);
  {
    const std::lock_guard lock(mailbox_mutex_);
    mailbox_.push_back(std::move(message));
  }
  if (!mail_.exchange(true)) io_->wake();
}

bool Worker::ping() {
  if (pinged_.exchange(true, std::memory_order_relaxed)) return false;
  post(Ping{});
  return true;
}

void Worker::run() {
  note_crashes_in(&connections_.memory());
  while (!stopped()) turn(Nanos(-1));
  note_crashes_in(nullptr);
}

void Worker::turn(Nanos max_wait) {
  const std::span<const Completion> completions = wait(max_wait);
  events_before_ = completions.size();
  for (const Completion& completion : completions) {
    const Token token = completion.token & kIndexMask;
    if ((completion.token & kConnectionToken) != 0) {
      connections_.on_poll(token, completion);
    } else if ((completion.token & kProbeToken) != 0) {
      gates_.on_poll(token, completion);
    } else {
      listeners_.on_poll(token, completion);
    }
  }
  if (read_ < reading_.size() || mail_.load(std::memory_order_relaxed)) read_mailbox();
  if (listeners_.may_accept()) accept();
  connections_.run();
  connections_.expire();
  if (HalfClosed& half_closed = connections_.half_closed(); half_closed.due()) {
    half_closed.expire([this, total = total_load()](std::size_t ended) {
      if (share_ == nullptr) return Nanos::zero();
      return share_->half_close_limit(total - std::min<std::uint64_t>(total, ended), half_close_timeout_);
    });
  }
  connections_.take_refused([this](const Refusal& refusal) { on_refused(refusal); });
  if (!gates_.empty()) gates_.run();
  if (connections_.take_released()) listeners_.resume();
}

void Worker::accept() {
  io_->set_stays_in_namespaces(true);
  for (int left = Listeners::kAcceptsAtOnce; left > 0 && listeners_.may_accept(); --left) {
    ServedForwardPtr forward;
    const int downstream = listeners_.accept_next(forward);
    int upstream = -1;
    if (downstream >= 0) on_accepted(downstream, forward, upstream);
  }
  io_->set_stays_in_namespaces(false);
}

std::span<const Completion> Worker::wait(Nanos max_wait) {
  const Nanos limit = wait_time(max_wait);
  if (limit == Nanos::zero() || !latency_bound()) return io_->wait(limit);
  const Nanos began = io_->now();
  const Nanos window = limit < Nanos::zero() ? busy_poll_.window() : std::min(busy_poll_.window(), limit);
  Nanos idle{0};
  std::span<const Completion> completions;
  while (idle < window && completions.empty() && !mail_.load(std::memory_order_relaxed)) {
    completions = io_->wait(Nanos::zero());
    if (completions.empty()) std::this_thread::yield();
    idle = io_->now() - began;
  }
  counters_.busy_poll_ns.add(static_cast<std::uint64_t>(idle.count()));
  if (completions.empty() && !mail_.load(std::memory_order_relaxed)) {
    completions = io_->wait(limit < Nanos::zero() ? limit : std::max(Nanos::zero(), limit - idle));
    idle = io_->now() - began;
  }
  busy_poll_.happened(idle);
  return completions;
}

/// Whether the worker gets only a few small messages at a time. If it has more to do, sleeping is cheaper:
/// events and bytes gather, and it handles them together.
bool Worker::latency_bound() {
  const std::uint64_t spliced = counters_.spliced_bytes.get();
  const bool bulk = std::exchange(spliced_before_, spliced) != spliced;
  return !bulk && events_before_ <= kFewEvents;
}

Nanos Worker::wait_time(Nanos max_wait) const {
  if (connections_.runnable() || read_ < reading_.size()) return Nanos::zero();
  // It came while earlier messages were waiting for their turn: a wait may have used up its wake-up since.
  if (mail_.load(std::memory_order_relaxed)) return Nanos::zero();
  Nanos wait = max_wait;
  for (const Nanos next : {listeners_.until_next(), connections_.until_next_deadline()}) {
    if (next != TimerWheel::kNever) wait = earlier(wait, next);
  }
  if (!gates_.empty()) wait = earlier(wait, gates_.until_next());
  return wait;
}

// --- The mailbox.

void Worker::read_mailbox() {
  if (read_ == reading_.size()) {
    reading_.clear();
    read_ = 0;
    if (!mail_.exchange(false)) return;
    const std::lock_guard lock(mailbox_mutex_);
    reading_.swap(mailbox_);
  }
  for (const std::size_t end = std::min(reading_.size(), read_ + kMessagesAtOnce); read_ < end; ++read_) {
    std::visit([this](auto& each) { on(each); }, reading_[read_]);
  }
}

void Worker::on(OpenForward& message) {
  listeners_.add(message.forward, std::move(message.listeners));
}

void Worker::on(CloseForward& message) {
  if (this == &listening_worker(*message.forward)) listeners_.close(*message.forward);
  gates_.forget(message.forward);
  connections_.close_forward(message.forward);
}

void Worker::on(TakeConnection& message) {
  handed_over_.fetch_sub(1, std::memory_order_relaxed);
  const ServedForwardPtr forward = message.opened.forward;
  if (stopping_) {
    connections_.reject(message.opened, RejectReason::kDraining);
  } else {
    connections_.start(std::move(message.opened));
  }
  // Only now, when it counts as active: ServedForward::idle() never misses it.
  forward->handed_over.fetch_sub(1, std::memory_order_release);
}

void Worker::on(TakeClient& message) {
  handed_over_.fetch_sub(1, std::memory_order_relaxed);
  on_accepted(message.downstream, message.forward, message.upstream);
  if (message.upstream >= 0) io_->close_with_reset(message.upstream);  // its client was turned away
  message.forward->handed_over.fetch_sub(1, std::memory_order_release);
}

void Worker::on(ListConnections& message) {
  message.answer.set_value(connections_.list(*message.forward, message.after, message.limit));
}

void Worker::on(EndConnections& message) {
  message.answer.set_value(connections_.kill(message.forward, message.connection));
}

void Worker::on(LimitsChanged& message) {
  connections_.limits_changed(*message.forward);
}

void Worker::on(GuestChanged& message) {
  gates_.lift(message.forward);
  connections_.guest_changed(message.forward);
}

void Worker::on(DeviceChanged& message) {
  connections_.device_changed(message.forward);
}

void Worker::on(Refused& message) {
  if (stopping_ || message.refusal.forward->phase.load() != ForwardPhase::kOpen) return;
  if (message.adopted) {
    gates_.adopt(message.refusal);
  } else {
    gates_.add(message.refusal);
  }
}

void Worker::on(AdoptConnections& message) {
  connections_.adopt(message.forward);
}

void Worker::on(EndAdoption& message) {
  message.answer.set_value(connections_.reset_orphans());
}

void Worker::on(Pause& message) {
  connections_.note_quiet();
  message.answer.set_value(true);
  message.resumed.wait();
}

void Worker::on(Ping&) {
  pinged_.store(false, std::memory_order_relaxed);
}

void Worker::on(Stop&) {
  stopping_ = true;
  connections_.reset_orphans();
  gates_.forget_all();
  listeners_.close_all();
  connections_.reset_all(CloseHow::kShutdown);
}

// --- New connections.

void Worker::on_accepted(int downstream, const ServedForwardPtr& forward, int& upstream) {
  if (stopping_) return connections_.reject(downstream, forward, RejectReason::kDraining);
  Worker& worker = least_loaded();
  if (worker.load() >= worker.connections_max())
    return connections_.reject(downstream, forward, RejectReason::kConnectionsMax);
  if (!has_share(downstream, forward)) return;
  // Opened here, whichever worker gets it: the guest sees a forward's clients in the order of arrival.
  auto opened = connections_.open(downstream, forward, upstream);
  if (!opened) return;
  const bool failed = opened->upstream < 0 || opened->error != 0;
  Worker& taker = opened->backlog ? backlog_worker(opened->backlog) : failed ? *this : worker;
  if (&taker == this) {
    connections_.start(std::move(*opened));
  } else {
    taker.post(TakeConnection{std::move(*opened)});
  }
}

std::uint64_t Worker::total_load() const {
  if (peers_.empty()) return load();
  std::uint64_t total = 0;
  for (const std::unique_ptr<Worker>& peer : peers_) total += peer->load();
  return total;
}

/// False if the client was rejected.
bool Worker::has_share(int downstream, const ServedForwardPtr& forward) {
  if (share_ == nullptr) return true;
  using Verdict = FairShare::Verdict;
  HalfClosed& half_closed = connections_.half_closed();
  const std::uint64_t total = total_load();
  const bool may_replace = share_->may_replace(total);
  const auto reject = [&](RejectReason reason) {
    connections_.reject(downstream, forward, reason);
    return false;
  };
  std::optional<IpAddress> source;  // read only if it matters
  const Verdict verdict = share_->ask(total, *forward, [&] {
    Endpoint client;
    if (io_->remote_endpoint(downstream, client) < 0) return false;
    source = source_of(client.address());
    return has_most(*forward, worker_, *source, io_->now());
  });
  if (verdict == Verdict::kAdmit) return true;
  if (connections_.refuses(*forward, downstream)) return true;  // open() rejects it, with its own reason
  switch (verdict) {
    case Verdict::kAdmit:
      break;
    case Verdict::kMakeRoom:
      half_closed.replace_of_heaviest(share_->kept_for_instance());
      break;
    case Verdict::kInstanceShare:
      if (may_replace && half_closed.replace_of_session(*forward)) break;
      return reject(RejectReason::kInstanceShare);
    case Verdict::kForwardShare:
      if (may_replace && half_closed.replace_of_forward(*forward)) break;
      return reject(RejectReason::kForwardShare);
    case Verdict::kSourceShare:
      if (may_replace && half_closed.replace_of_source(*forward, *source)) break;
      return reject(RejectReason::kSourceShare);
  }
  return true;
}

Worker& Worker::least_loaded() {
  Worker* best = this;
  std::uint64_t least = load();
  for (const std::unique_ptr<Worker>& peer : peers_) {
    if (const std::uint64_t peer_load = peer->load(); peer_load < least) {
      best = peer.get();
      least = peer_load;
    }
  }
  return *best;
}

/// Those who wait for one Unix socket are one worker's, in the order of their arrival.
Worker& Worker::backlog_worker(const BacklogQueue::Place& place) {
  return peers_.empty() ? *this : *peers_[place.worker()];
}

// --- A guest's closed port.

/// Any worker refuses a single client; only the one with the listeners refuses everybody.
void Worker::on_refused(const Refusal& refusal) {
  const ServedForward& forward = *refusal.forward;
  const bool v6 = refusal.guest == forward.guest().endpoint_v6;
  if (forward.refusing[v6].load(std::memory_order_relaxed)) return;
  Worker& worker = refusal.concerns_all ? listening_worker(forward) : *this;
  Refused message{refusal};
  if (&worker == this) {
    on(message);
  } else {
    worker.post(std::move(message));
  }
}

Worker& Worker::listening_worker(const ServedForward& forward) {
  return peers_.empty() ? *this : *peers_[forward.listening_worker];
}

}  // namespace portway
