#include "tests/sim/sim_network.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace portway::test {

namespace {
constexpr Nanos kRetransmission = std::chrono::milliseconds(200);  // TCP_RTO_MIN
}

SimSocket::SimSocket(SimNetwork& network, std::uint64_t serial)
    : network_(network),
      serial_(serial),
      receive_buffer_(network.options().receive_buffer),
      send_buffer_(network.options().send_buffer) {}

// --- Opening and closing.

int SimSocket::connect(const Endpoint& to) {
  if (connecting_) return -EALREADY;
  if (connected_ || dead_) return -EISCONN;
  connecting_ = true;
  remote_ = to;
  put_on_wire([this] { network_.on_syn(*this); });
  return -EINPROGRESS;
}

void SimSocket::on_connected() {
  if (closed_) {
    peer_->on_reset();
    return;
  }
  connecting_ = false;
  connected_ = true;
  wake(0);
}

void SimSocket::on_refused(int error) {
  if (closed_) return;
  die(error);
  wake(0);
}

int SimSocket::shutdown(int how) {
  if (dead_ || !connected_) return -ENOTCONN;
  if (how == SHUT_RD || how == SHUT_RDWR) shut_read_ = true;
  if ((how == SHUT_WR || how == SHUT_RDWR) && !shut_write_) {
    shut_write_ = true;
    ++unacked_;
    transmit();
  }
  wake(0);
  return 0;
}

void SimSocket::close() {
  closed_ = true;
  wake_ = nullptr;
  if (dead_ || !connected_) return;
  if (received_bytes_ > 0) {
    // RFC 2525, 2.17: the peer must learn that its data was discarded.
    abort_connection();
  } else {
    shutdown(SHUT_WR);
  }
}

void SimSocket::close_with_reset() {
  closed_ = true;
  wake_ = nullptr;
  if (dead_ || !connected_) return;
  const bool both_ended = fin_received_ && fin_sent_;
  if (!both_ended) {
    abort_connection();
  } else {
    die(0);
  }
}

void SimSocket::abort_connection() {
  put_on_wire([this] { peer_->on_reset(); });
  die(0);
}

/// Nothing is sent any more; what was received stays readable.
void SimSocket::die(int error) {
  dead_ = true;
  connecting_ = false;
  error_ = error;
  unsent_.clear();
  unacked_ = 0;
  if (!closed_) return;
  received_.clear();
  received_bytes_ = 0;
}

void SimSocket::on_reset() {
  if (dead_ || (fin_received_ && fin_acked_)) return;
  const bool close_wait = fin_received_ && !shut_write_;
  die(close_wait ? EPIPE : ECONNRESET);
  wake(0);
}

// --- Sending.

std::ptrdiff_t SimSocket::send(std::string_view data, int flags) {
  if (connecting_) return -EAGAIN;
  if (error_ != 0) return take_error();
  if (dead_ || shut_write_ || !connected_) return -EPIPE;
  const std::size_t taken = std::min(data.size(), send_room());
  if (taken < data.size()) no_space_ = true;
  if (taken == 0) return data.empty() ? 0 : -EAGAIN;
  const bool urgent = (flags & MSG_OOB) != 0;
  const std::size_t room =
      unsent_.empty() || unsent_.back().urgent || urgent
          ? 0
          : network_.options().segment - std::min(network_.options().segment, unsent_.back().size());
  // What waits for the window is sent together.
  const std::size_t joined = std::min(room, taken);
  if (joined > 0) unsent_.back().data.append(data.substr(0, joined));
  for (std::size_t at = joined; at < taken;) {
    const std::size_t size = std::min(taken - at, network_.options().segment);
    unsent_.push_back({std::string(data.substr(at, size)), 0, urgent && at + size == taken});
    at += size;
  }
  unacked_ += taken;
  transmit();
  return static_cast<std::ptrdiff_t>(taken);
}

/// The peer's room beyond what is already on its way.
std::size_t SimSocket::window() const {
  if (peer_->closed_) return SIZE_MAX;
  const std::size_t used = peer_->received_bytes_ + in_flight_;
  return peer_->receive_buffer_ > used ? peer_->receive_buffer_ - used : 0;
}

void SimSocket::transmit() {
  if (dead_) return;
  while (!unsent_.empty()) {
    Segment& next = unsent_.front();
    // A receiver does not offer less than a segment or half of its buffer: the silly window syndrome (RFC
    // 9293, 3.8.6.2).
    if (window() < std::min(next.size(), peer_->receive_buffer_ / 2)) return;
    const std::size_t size = std::min(next.size(), window());
    Segment segment{std::string(next.view().substr(0, size)), 0, next.urgent && size == next.size()};
    next.offset += size;
    if (next.size() == 0) unsent_.pop_front();
    in_flight_ += size;
    if (segment.urgent && std::exchange(lose_urgent_, false)) {
      put_on_wire([this, byte = segment.view().back(), size] {
        peer_->on_urgent(byte, peer_->arrived_ + size - 1);
        peer_->wake(POLLIN | POLLPRI);
      });
      last_arrival_ += kRetransmission;
    }
    put_on_wire([this, segment = std::move(segment)] { peer_->on_segment(segment); });
  }
  if (shut_write_ && !fin_sent_) {
    fin_sent_ = true;
    put_on_wire([this] { peer_->on_fin(); });
  }
}

/// What one side sends arrives in order.
void SimSocket::put_on_wire(std::function<void()> arrival) {
  const SimNetworkOptions& options = network_.options();
  Nanos delay = options.latency;
  if (options.jitter > Nanos::zero())
    delay += Nanos(network_.random()() % static_cast<std::uint64_t>(options.jitter.count()));
  last_arrival_ = std::max(last_arrival_, network_.now() + delay);
  network_.at(last_arrival_, std::move(arrival));
}

void SimSocket::on_acknowledged(std::size_t bytes) {
  if (dead_) return;
  unacked_ -= bytes;
  if (no_space_ && writable()) {
    no_space_ = false;
    wake(POLLOUT);
  }
}

// --- Receiving.

void SimSocket::on_segment(const Segment& segment) {
  const std::size_t size = segment.size();
  peer_->in_flight_ -= size;
  if (dead_) return;
  if (closed_) {
    // Nobody is there to read it.
    abort_connection();
    return;
  }
  if (segment.urgent) on_urgent(segment.view().back(), arrived_ + size - 1);
  received_.push_back(segment);
  received_bytes_ += size;
  arrived_ += size;
  put_on_wire([this, size] { peer_->on_acknowledged(size); });
  wake(POLLIN | POLLPRI);
}

void SimSocket::on_urgent(char byte, std::uint64_t at) {
  if (dead_ || (urgent_ != Urgent::kNone && urgent_at_ == at)) return;  // it comes again
  // A newer urgent byte replaces the older one, which becomes ordinary data, or is dropped if it would have
  // been next.
  if (at_urgent_mark() && !urgent_inline_ && received_bytes_ > 0) consume(1);
  urgent_ = Urgent::kUnread;
  urgent_at_ = at;
  urgent_byte_ = byte;
}

void SimSocket::on_fin() {
  if (dead_) return;
  fin_received_ = true;
  put_on_wire([this] {
    peer_->fin_acked_ = true;
    peer_->on_acknowledged(1);
  });
  wake(0);
}

/// Bytes that can be read in one go.
std::size_t SimSocket::bytes_to_mark() const {
  if (urgent_ == Urgent::kNone || urgent_inline_) return received_bytes_;
  return std::min<std::size_t>(received_bytes_, urgent_at_ - read_);
}

/// The order is that of tcp_recvmsg(): a FIN that was read hides a later error.
std::ptrdiff_t SimSocket::nothing_to_read() {
  if (fin_received_) return 0;
  if (error_ != 0) return take_error();
  if (dead_ || shut_read_) return 0;
  return connected_ || connecting_ ? -EAGAIN : -ENOTCONN;
}

std::ptrdiff_t SimSocket::recv(std::span<char> out, int flags) {
  if ((flags & MSG_OOB) != 0) return recv_urgent(out, flags);
  const bool peek = (flags & MSG_PEEK) != 0;
  // At the mark: the urgent byte is stepped over.
  const std::size_t skip = at_urgent_mark() && !urgent_inline_ && received_bytes_ > 0 ? 1 : 0;
  const std::size_t available = skip == 1 ? received_bytes_ - 1 : bytes_to_mark();
  const std::size_t size = std::min(out.size(), available);
  std::size_t copied = 0;
  std::size_t skipped = skip;
  for (const Segment& segment : received_) {
    if (copied == size) break;
    const std::string_view bytes = segment.view().substr(std::min(skipped, segment.size()));
    skipped -= std::min(skipped, segment.size());
    const std::size_t part = std::min(bytes.size(), size - copied);
    std::memcpy(out.data() + copied, bytes.data(), part);
    copied += part;
  }
  if (!peek) consume(skip + copied);
  if (copied == 0 && !out.empty()) return nothing_to_read();
  return static_cast<std::ptrdiff_t>(copied);
}

std::ptrdiff_t SimSocket::recv_urgent(std::span<char> out, int flags) {
  if (urgent_inline_ || urgent_ != Urgent::kUnread) return -EINVAL;
  if (dead_ && !fin_received_) return -ENOTCONN;
  if ((flags & MSG_PEEK) == 0) urgent_ = Urgent::kRead;
  if (out.empty()) return 0;
  out[0] = urgent_byte_;
  return 1;
}

std::ptrdiff_t SimSocket::splice_out(std::size_t size,
                                     const std::function<std::size_t(std::string_view)>& take) {
  // Also if urgent bytes are read in line: tcp_read_sock() stops at any mark.
  std::size_t left =
      urgent_ == Urgent::kNone ? received_bytes_ : std::min<std::size_t>(received_bytes_, urgent_at_ - read_);
  left = std::min(left, size);
  if (left == 0) return received_bytes_ > 0 ? -EAGAIN : nothing_to_read();
  std::size_t moved = 0;
  for (const Segment& segment : received_) {
    if (left == 0) break;
    const std::string_view bytes = segment.view().substr(0, left);
    const std::size_t taken = take(bytes);
    moved += taken;
    left -= taken;
    if (taken < bytes.size()) break;
  }
  consume(moved);
  return moved == 0 ? -EAGAIN : static_cast<std::ptrdiff_t>(moved);
}

void SimSocket::consume(std::size_t bytes) {
  read_ += bytes;
  received_bytes_ -= bytes;
  while (bytes > 0) {
    Segment& first = received_.front();
    const std::size_t part = std::min(bytes, first.size());
    first.offset += part;
    bytes -= part;
    if (first.size() == 0) received_.pop_front();
  }
  if (urgent_ != Urgent::kNone && read_ > urgent_at_) urgent_ = Urgent::kNone;
  // The window opens.
  if (!dead_ && peer_ != nullptr && !peer_->unsent_.empty()) {
    put_on_wire([this] { peer_->transmit(); });
  }
}

// --- Looking.

int SimSocket::take_error() {
  return -std::exchange(error_, 0);
}

short SimSocket::poll_mask() {
  const int error = error_ != 0 ? POLLERR : 0;
  if (connecting_) return static_cast<short>(error);
  if (dead_) return static_cast<short>(POLLIN | POLLOUT | POLLRDHUP | POLLHUP | error);
  if (!connected_) return POLLOUT | POLLHUP;
  int mask = error;
  if (fin_received_ || shut_read_) mask |= POLLIN | POLLRDHUP;
  if ((fin_received_ || shut_read_) && shut_write_) mask |= POLLHUP;
  // An urgent byte that is next does not count: a plain read does not get it.
  const std::size_t least = at_urgent_mark() && !urgent_inline_ ? 2 : 1;
  if (received_bytes_ >= least) mask |= POLLIN;
  if (urgent_ == Urgent::kUnread) mask |= POLLPRI;
  if (shut_write_ || writable()) {
    mask |= POLLOUT;
  } else {
    no_space_ = true;
  }
  return static_cast<short>(mask);
}

void SimSocket::wake_later(short bits, Nanos delay) {
  network_.at(network_.now() + delay, [this, bits] { wake(bits); });
}

// --- The listening end.

SimSocket* SimListener::accept() {
  if (backlog_.empty()) return nullptr;
  SimSocket* socket = backlog_.front();
  backlog_.pop_front();
  return socket;
}

void SimListener::shut_down() {
  shut_ = true;
  while (SimSocket* socket = accept()) socket->close_with_reset();
  if (wake_) wake_(POLLHUP);
}

// --- The network.

void SimNetwork::at(Nanos time, std::function<void()> action) {
  events_.push({time, event_serial_++, std::move(action)});
}

void SimNetwork::advance_to(Nanos time) {
  while (!events_.empty() && events_.top().time <= time) {
    now_ = std::max(now_, events_.top().time);
    const std::function<void()> action = std::move(const_cast<Event&>(events_.top()).action);
    events_.pop();
    action();
  }
  now_ = std::max(now_, time);
}

SimSocket& SimNetwork::socket() {
  sockets_.push_back(std::make_unique<SimSocket>(*this, sockets_.size()));
  return *sockets_.back();
}

SimListener& SimNetwork::listen(const Endpoint& endpoint) {
  const auto [place, added] = listeners_.emplace(endpoint, std::make_unique<SimListener>());
  if (!added) {
    std::fprintf(stderr, "SimNetwork: %s is taken\n", to_string(endpoint).c_str());
    std::abort();
  }
  return *place->second;
}

void SimNetwork::unlisten(const Endpoint& endpoint) {
  auto listener = listeners_.extract(endpoint);
  if (listener.empty()) return;
  listener.mapped()->shut_down();
  old_listeners_.push_back(std::move(listener.mapped()));  // a handshake may be under way
}

bool SimRefusals::asks(const Endpoint& local, const IpAddress& client) {
  const auto found = refused_.find({local, client});
  if (found == refused_.end()) return false;
  found->second = network_.now();
  return true;
}

void SimNetwork::on_syn(SimSocket& client) {
  if (client.closed_) return;
  const auto number = static_cast<std::uint32_t>(client.serial());
  const Endpoint from = client.source_.value_or(
      Endpoint(boost::asio::ip::address_v4(0xc6120a01), static_cast<std::uint16_t>(10000 + number % 50000)));
  const auto answer = answers_.find(client.remote_);
  int outcome = answer == answers_.end() ? kAnswer : answer->second;
  const auto answer_to = answers_to_.find({client.remote_, from.address()});
  if (answer_to != answers_to_.end()) outcome = answer_to->second;
  if (refusals_.asks(client.remote_, from.address())) outcome = ECONNREFUSED;
  if (outcome == kSilent || (outcome == kSilentToOthers && client.source_)) return;
  if (outcome == kSilentToOthers) outcome = kAnswer;
  const auto found = listeners_.find(client.remote_);
  if (outcome == kAnswer && (found == listeners_.end() || found->second->shut())) outcome = ECONNREFUSED;
  if (outcome != kAnswer) {
    client.put_on_wire([&client, outcome] { client.on_refused(outcome); });
    return;
  }
  if (client.half_open_) {
    client.put_on_wire([&client] {
      if (client.closed_) return;
      client.die(0);
      client.wake(0);
    });
    return;
  }
  SimSocket& server = socket();
  server.connected_ = true;
  server.local_ = client.remote_;
  server.peer_ = &client;
  client.peer_ = &server;
  server.remote_ = from;
  server.put_on_wire([&client, &server, listener = found->second.get()] {
    client.on_connected();
    if (!client.connected_) return;
    client.put_on_wire([&server, listener] {
      if (listener->shut()) {
        server.close_with_reset();
      } else {
        listener->backlog_.push_back(&server);
        if (listener->wake_) listener->wake_(POLLIN);
      }
    });
  });
}

}  // namespace portway::test
