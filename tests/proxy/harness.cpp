#include "tests/proxy/harness.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <future>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>

namespace portway::test {
namespace {

constexpr std::size_t kChunk = 64 * 1024;  // a multiple of eight, as Pattern wants
constexpr std::size_t kChunksPerTurn = 16;

}  // namespace

// --- Peer.

void Peer::send_pattern(std::uint64_t seed, std::uint64_t bytes) {
  source_.emplace(seed);
  to_send_ = bytes;
}

void Peer::send_urgent(char byte) {
  if (socket_->send({&byte, 1}, MSG_OOB) != 1) throw std::runtime_error("the urgent byte was not taken");
  ++sent_bytes_;
}

void Peer::reset() {
  closed_ = true;
  socket_->close_with_reset();
}

void Peer::close() {
  closed_ = true;
  socket_->close();
}

void Peer::forget() {
  closed_ = true;
  socket_->forget();
}

bool Peer::pump() {
  if (closed_) return false;
  const bool sent = pump_out();
  const bool read = pump_in();
  return sent || read;
}

void Peer::refill() {
  if (!outbox_.empty() || to_send_ == 0) return;
  const std::size_t size = std::min<std::uint64_t>(to_send_, kChunk);
  outbox_.resize(size);
  source_->fill(outbox_);
  to_send_ -= size;
}

bool Peer::pump_out() {
  bool moved = false;
  for (std::size_t i = 0; i < kChunksPerTurn; ++i) {
    refill();
    if (outbox_.empty() || was_reset()) break;
    const std::ptrdiff_t sent = socket_->send(std::string_view(outbox_).substr(0, write_size_), 0);
    if (sent == -EAGAIN) return moved;
    if (sent < 0) {
      // Not final: what came before the reset may still be read, and then the error is gone. EPIPE reports
      // nothing that reading does not.
      if (sent != -EPIPE) error_ = static_cast<int>(-sent);
      outbox_.clear();
      to_send_ = 0;
      fin_wanted_ = fin_sent_;
      return true;
    }
    outbox_.erase(0, static_cast<std::size_t>(sent));
    sent_bytes_ += static_cast<std::uint64_t>(sent);
    moved = true;
  }
  if (fin_wanted_ && !fin_sent_ && outbox_.empty() && to_send_ == 0) {
    socket_->shutdown_write();
    fin_sent_ = moved = true;
  }
  return moved;
}

bool Peer::pump_in() {
  static std::array<char, kChunk> buffer;
  bool moved = false;
  std::size_t left = read_size_;
  for (std::size_t i = 0; i < kChunksPerTurn && left > 0 && !paused_ && !read_ended_; ++i) {
    const std::ptrdiff_t got = socket_->recv(std::span(buffer).first(std::min(left, buffer.size())), 0);
    if (got == -EAGAIN) break;
    moved = true;
    if (got > 0) {
      left -= static_cast<std::size_t>(got);
      take({buffer.data(), static_cast<std::size_t>(got)});
    } else {
      // If a send has got the error, a read finds only the end.
      read_ended_ = true;
      if (got < 0 && !was_reset()) error_ = static_cast<int>(-got);
      eof_ = !was_reset();
      if (echo_) shutdown_write();
    }
  }
  return moved;
}

void Peer::take(std::string_view data) {
  received_bytes_ += data.size();
  if (echo_) send(data);
  if (!expected_) {
    received_.append(data);
    return;
  }
  while (!data.empty()) {
    if (expected_rest_.empty()) {
      expected_rest_.resize(kChunk);
      expected_->fill(expected_rest_);
    }
    const std::size_t size = std::min(data.size(), expected_rest_.size());
    if (data.substr(0, size) != std::string_view(expected_rest_).substr(0, size)) intact_ = false;
    data.remove_prefix(size);
    expected_rest_.erase(0, size);
  }
}

// --- Rig.

Rig::Rig(Backend backend, const RigOptions& options)
    : world_(make_world(backend, options.network)), arena_(options.connections_max) {
  service_ = world_->serve(options.family, options.guest);
  GuestEndpoints guest{.endpoint = service_};
  if (options.dual_stack) guest.endpoint_v6 = service_v6_ = world_->serve(AF_INET6, options.guest);
  descriptors_before_ = backend == Backend::kSim ? 0 : world_->open_descriptors();
  if (options.uring_enter) world_->set_enter(options.uring_enter);
  auto io = world_->make_io(why_not_);
  if (!io) return;
  ForwardRoute route{.id = make_uuid(), .guest = guest, .device = options.device, .source = options.source};
  if (options.unix_socket) {
    route.socket.emplace();
    sim()->serve_unix(service_);
  }
  forward_ = std::make_shared<ServedForward>(std::move(route), 1);
  WorkerOptions worker{.index = 0, .pipes_max = options.pipes_max, .connections = options.connections};
  worker.connections.config.busy_poll = {};
  worker.connections.client_refusals = world_->refusals();
  worker.share = options.share;
  worker_ = std::make_unique<Worker>(std::move(io), worker, arena_.table(0));
  std::vector<Fd> listeners;
  listeners.push_back(world_->listen(options.family, entry_));
  listener_ = listeners.front().get();
  if (options.dual_stack) {
    listeners.push_back(world_->listen(AF_INET6, entry_v6_));
    listener_v6_ = listeners.back().get();
  }
  worker_->post(Worker::OpenForward{forward_, std::move(listeners)});
  turn();
  if (sim() != nullptr) sim()->set_faults(options.faults);
}

Rig::~Rig() {
  if (!worker_) return;
  stop();
  check_nothing_is_left();
}

void Rig::stop() {
  if (worker_->stopped()) return;
  if (sim() != nullptr) sim()->set_faults({});
  worker_->post(Worker::Stop{});
  EXPECT_TRUE(run_until([this] { return worker_->stopped(); })) << "the worker does not stop";
}

void Rig::check_nothing_is_left() {
  const WorkerCounters& counts = counters();
  EXPECT_EQ(counts.connections_active.get(), 0u);
  EXPECT_EQ(counts.pipes_in_use.get(), 0u);
  const ForwardStats forward = stats();
  EXPECT_EQ(forward.connections_active, 0u);
  std::uint64_t closes = 0;
  for (const auto& side : counts.closed) {
    for (const Counter& how : side) closes += how.get();
  }
  EXPECT_EQ(closes, forward.connections_accepted) << "each connection is closed once and counted once";
  check_records();
  const std::size_t pipe_ends = 2 * counts.pipes_open.get();
  if (sim() != nullptr) {
    EXPECT_EQ(sim()->open_sockets(), 0u);
    EXPECT_EQ(sim()->open_pipe_ends(), pipe_ends);
    EXPECT_EQ(sim()->piped_bytes(), 0u) << "a pipe with bytes in it is in the pool";
    worker_.reset();  // the simulated Io aborts if anything is still open
    return;
  }
  peers_.clear();
  worker_.reset();
  EXPECT_EQ(world_->open_descriptors(), descriptors_before_) << "descriptors leaked";
}

/// Checks that each connection has exactly one record, and that their sums match the counts.
void Rig::check_records() {
  EXPECT_EQ(counters().close_records_dropped.get(), 0u);
  std::uint64_t rejected = 0;
  std::uint64_t received_bytes = 0;
  std::uint64_t sent_bytes = 0;
  std::set<ConnectionId> ids;
  std::map<std::pair<CloseSide, CloseHow>, std::uint64_t> causes;
  for (const CloseRecord& record : records()) {
    EXPECT_EQ(record.forward, forward_);
    EXPECT_LE(record.accepted_at, record.ended_at);
    if (record.id == 0) {
      ++rejected;
      continue;
    }
    EXPECT_TRUE(ids.insert(record.id).second) << "two records of one connection";
    ++causes[{record.cause.side, record.cause.how}];
    received_bytes += record.received_bytes;
    sent_bytes += record.sent_bytes;
  }
  const ForwardStats forward = stats();
  EXPECT_EQ(ids.size(), forward.connections_accepted);
  EXPECT_EQ(received_bytes, forward.received_bytes);
  EXPECT_EQ(sent_bytes, forward.sent_bytes);
  std::uint64_t rejects = 0;
  for (const std::uint64_t count : forward.rejected) rejects += count;
  EXPECT_EQ(rejected, rejects);
  for (const auto& [cause, count] : causes) EXPECT_EQ(count, closed(cause.first, cause.second));
}

std::uint64_t Rig::closed(CloseSide side, CloseHow how) const {
  return counters().closed[static_cast<std::size_t>(side)][static_cast<std::size_t>(how)].get();
}

Peer& Rig::connect(const std::optional<IpAddress>& from) {
  return connect_to(entry_, from);
}

Peer& Rig::connect_v6(const std::optional<IpAddress>& from) {
  const bool needs_one = !from && sim() != nullptr;  // the simulator's own are IPv4
  return connect_to(entry_v6_, needs_one ? boost::asio::ip::make_address("2001:db8::7") : from);
}

Peer& Rig::connect_to(const Endpoint& entry, const std::optional<IpAddress>& from) {
  peers_.push_back(std::make_unique<Peer>(world_->connect(entry, from)));
  return *peers_.back();
}

Endpoint Rig::add_listener() {
  Endpoint entry;
  std::vector<Fd> listeners;
  listeners.push_back(world_->listen(forward_->guest().endpoint.protocol().family(), entry));
  worker_->post(Worker::OpenForward{forward_, std::move(listeners)});
  turn();
  return entry;
}

Peer* Rig::try_accept() {
  return try_accept_at(service_);
}

Peer* Rig::try_accept_v6() {
  return try_accept_at(service_v6_);
}

Peer* Rig::try_accept_at(const Endpoint& service) {
  auto socket = world_->accept(service);
  if (!socket) return nullptr;
  peers_.push_back(std::make_unique<Peer>(std::move(socket)));
  return peers_.back().get();
}

Peer& Rig::accept() {
  Peer* peer = nullptr;
  if (!run_until([&] { return (peer = try_accept()) != nullptr; })) {
    throw std::runtime_error("no connection came to the guest");
  }
  return *peer;
}

Rig::Pair Rig::open() {
  Peer& client = connect();
  return {client, accept()};
}

void Rig::drop(Peer& peer) {
  if (!peer.is_closed()) peer.close();
  std::erase_if(peers_, [&peer](const auto& each) { return each.get() == &peer; });
}

void Rig::close_forward(ClosePolicy policy, CloseHow why) {
  forward_->advance(policy == ClosePolicy::kKeep    ? ForwardPhase::kKept
                    : policy == ClosePolicy::kDrain ? ForwardPhase::kDraining
                                                    : ForwardPhase::kEnded,
                    why);
  shut_down(listener_);
  if (listener_v6_ >= 0) shut_down(listener_v6_);
  worker_->post(Worker::CloseForward{forward_});
}

void Rig::shut_down(int listener) {
  if (sim() != nullptr) {
    sim()->shutdown(listener, SHUT_RD);
  } else {
    ::shutdown(listener, SHUT_RD);
  }
}

void Rig::move_guest(GuestAnswer answer) {
  service_ = serve(service_.protocol().family(), answer);
  change_guest({.endpoint = service_, .endpoint_v6 = forward_->guest().endpoint_v6});
}

void Rig::drop_guest_v6() {
  change_guest({.endpoint = service_});
}

/// A new service, whose descriptors are no leak.
Endpoint Rig::serve(int family, GuestAnswer answer) {
  const std::size_t before = world_->open_descriptors();
  const Endpoint service = world_->serve(family, answer);
  descriptors_before_ += world_->open_descriptors() - before;
  return service;
}

void Rig::change_guest(const GuestEndpoints& guest) {
  worker_->post(Worker::GuestChanged{forward_, forward_->replace_guest(guest)});
}

std::vector<LiveConnection> Rig::connections(ConnectionId after, std::size_t limit) {
  std::promise<std::vector<LiveConnection>> answer;
  auto live = answer.get_future();
  worker_->post(Worker::ListConnections{forward_, after, limit, std::move(answer)});
  worker_->turn(Nanos::zero());
  return live.get();
}

std::size_t Rig::end_connections(ConnectionId connection) {
  std::promise<std::size_t> answer;
  auto count = answer.get_future();
  worker_->post(Worker::EndConnections{forward_, connection, std::move(answer)});
  worker_->turn(Nanos::zero());
  return count.get();
}

const std::vector<CloseRecord>& Rig::records() {
  worker_->drain_closes([this](CloseRecord&& record) { records_.push_back(std::move(record)); });
  return records_;
}

bool Rig::turn(Nanos wait) {
  records();
  worker_->turn(moved_ ? Nanos::zero() : wait);
  moved_ = false;
  for (const auto& peer : peers_) moved_ |= peer->pump();
  return moved_;
}

bool Rig::run_until(const std::function<bool()>& condition, Nanos limit) {
  const Nanos deadline = world_->now() + limit;
  while (!condition()) {
    if (world_->now() >= deadline) return false;
    turn();
  }
  return true;
}

void Rig::pass_time(Nanos span) {
  const Nanos end = world_->now() + span;
  Nanos wait = kTurn;
  while (world_->now() < end) {
    const std::uint64_t before = moved_bytes();
    const bool quiet = !turn(std::min(wait, end - world_->now())) && moved_bytes() == before;
    wait = quiet ? std::min<Nanos>(2 * wait, std::chrono::milliseconds(64)) : kTurn;
  }
}

void Rig::settle() {
  for (int quiet = 0; quiet < 20; ++quiet) {
    const std::uint64_t before = moved_bytes();
    if (turn() || moved_bytes() != before) quiet = 0;
  }
}

bool Rig::worker_sleeps() {
  // Deadlines and late events may still end a wait or two early.
  for (int i = 0; i < 10; ++i) {
    const Nanos before = world_->now();
    worker_->turn(std::chrono::milliseconds(20));
    if (world_->now() - before >= std::chrono::milliseconds(19)) return true;
  }
  return false;
}

}  // namespace portway::test
