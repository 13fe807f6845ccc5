// Relays the bytes of a connection: state kRelaying.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>

#include "proxy/connection.h"

namespace portway {

void Connection::advance_relaying() {
  context_.memory.in_hand = index_;
  for (const Side from : kSides) {
    relay_from(from);
    if (slot_.state != ConnectionState::kRelaying) return;
  }
  if (slot_.relay[kDownstream].ended && slot_.relay[kUpstream].ended) {
    // Both FINs were passed on. A later error changes nothing: everything was delivered.
    return terminate({close_side(slot_.first_ended), CloseHow::kFin});
  }
  for (const Side side : kSides) {
    if (slot_.socket[side].error != 0 && slot_.socket[side].read_ended) return on_reset(side);
  }
}

void Connection::relay_from(Side from) {
  RelayState& state = slot_.relay[from];
  if (state.ended) return;
  RelayContext relaying{.io = context_.io,
                        .pipes = context_.pipes,
                        .counters = context_.counters,
                        .memory = context_.memory,
                        .instance_pipes = forward_->session->pipes,
                        .budget = context_.queue.budget()};
  ByteRate& rate = forward_->rate[from];
  const std::uint64_t limit = rate.limit();
  if (limit != 0) {
    const std::uint64_t allowance = rate.allowance(limit, now());
    if (allowance == 0) return throttle(rate.wait(now()));
    relaying.bytes_max = allowance;
  }
  const std::uint64_t before = state.bytes;
  const RelayStatus status = relay(relaying, state, slot_.socket[from], slot_.socket[other(from)]);
  if ((state.pipe[0] >= 0) != pipe_counted_[from]) count_pipe(from);
  if (state.bytes != before) {
    count_moved(from, before);
    if (limit != 0) rate.spend(limit, state.bytes - before, now());
  }
  switch (status) {
    case RelayStatus::kWaiting:
      break;
    case RelayStatus::kBudgetSpent:
      enqueue();
      break;
    case RelayStatus::kSourceEnded:
      state.ended = true;
      on_source_ended(from);
      break;
    case RelayStatus::kSinkBroken:
      on_sink_broken(from);
      break;
  }
}

/// After a turn: a pipe that only lasted for the turn is nobody's.
void Connection::count_pipe(Side from) {
  const bool holds = slot_.relay[from].pipe[0] >= 0;
  if (holds == pipe_counted_[from]) return;
  pipe_counted_[from] = holds;
  forward_->session->pipes.fetch_add(holds ? 1U : -1U, std::memory_order_relaxed);
}

void Connection::count_moved(Side from, std::uint64_t before) {
  const std::uint64_t bytes = slot_.relay[from].bytes;
  const std::uint64_t moved = bytes - before;
  const std::int64_t at_ns = context_.turn_began.count();
  const std::size_t worker = context_.worker;
  const ServedForward& forward = *forward_;
  const bool from_client = from == kDownstream;
  ForwardCounters& counts = forward.counters[worker];
  (from_client ? counts.received_bytes : counts.sent_bytes).add(moved);
  forward.meters[0]->moved(worker, from_client, moved, at_ns);
  forward.meters[1]->moved(worker, from_client, moved, at_ns);
  context_.queue.count_moved(moved);
  slot_.active_ns = at_ns;
  if (receive_buffer_[from].due(bytes)) fit_receive_buffer(from);
  if (from == kDownstream && before < UpstreamOpener::kMuch && bytes >= UpstreamOpener::kMuch && !to_unix())
    context_.upstream.limit_unsent(fd(kUpstream));
}

void Connection::on_source_ended(Side from) {
  if (slot_.socket[from].error != 0) return on_reset(from);
  SocketState& sink = slot_.socket[other(from)];
  if (!slot_.relay[other(from)].ended) slot_.first_ended = from;
  context_.io.shutdown(sink.fd, SHUT_WR);
  sink.write_ended = true;
  slot_.active_ns = context_.turn_began.count();  // the other side's timeout starts now
  context_.half_closed.add(*this);
  schedule();
}

/// A service behind a Unix socket may have shut down its reading side only, which a TCP socket does not show.
/// Then the direction has not ended: as under TCP, its client waits once the buffers are full, and its end or
/// reset is passed on (relay.cpp, drop()). Reading the sink shows if that is so.
void Connection::on_sink_broken(Side from) {
  SocketState& sink = slot_.socket[other(from)];
  slot_.relay[from].ended = !sink.is_unix;
  if (is_shortage(sink.error)) {
    // No event reports that memory is free again: the sink would wait for the rest for ever.
    slot_.error = sink.error;
    return terminate({CloseSide::kNode, CloseHow::kResources});
  }
  // What the broken side has sent is still to be delivered: read on to its error or end.
  sink.readable = true;
  sink.peer_closed = true;
  if (sink.read_ended) {
    on_reset(other(from));
  } else {
    enqueue();
  }
}

void Connection::fit_receive_buffer(Side side) {
  const std::uint32_t least =
      side == kUpstream ? config().guest_receive_buffer : config().client_receive_buffer;
  if (least == 0 || slot_.socket[side].is_unix) return;  // what a Unix socket gets counts for its sender
  Io& io = context_.io;
  const Nanos round_trip =
      side == kUpstream ? Nanos::zero() : std::chrono::microseconds(io.tcp_summary(fd(side)).rtt_us);
  const auto fit = receive_buffer_[side].fit(slot_.relay[side].bytes, context_.turn_began, least, round_trip);
  if (!fit) return;
  const auto size = static_cast<int>(*fit);
  // Beyond net.core.rmem_max only with CAP_NET_ADMIN. Without it, the kernel sizes a client's buffer:
  // net.core.rmem_max is too small for a long path.
  const bool forced = io.set_option(fd(side), SOL_SOCKET, SO_RCVBUFFORCE, size) == 0;
  if (side == kUpstream) {
    if (!forced) io.set_option(fd(side), SOL_SOCKET, SO_RCVBUF, size);
  } else if (forced) {
    io.set_option(fd(side), IPPROTO_TCP, TCP_WINDOW_CLAMP, size);  // the window does not follow the buffer
  }
}

/// Only the timer resumes it: no event reports that bytes are allowed again.
void Connection::throttle(Nanos wait) {
  throttled_until_ = std::min(throttled_until_, now() + wait);
  schedule();
}

}  // namespace portway
