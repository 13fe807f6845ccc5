#include "proxy/relay.h"

#include <sys/socket.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <optional>

namespace portway {
namespace {

/// One call's work on one direction. A step returns a status to stop with, or nothing to go on.
class Mover {
 public:
  Mover(const RelayContext& context, RelayState& state, SocketState& source, SocketState& sink)
      : context_(context), io_(context.io), state_(state), source_(source), sink_(sink) {}

  RelayStatus run() {
    const std::size_t enough = std::min(context_.budget, context_.bytes_max);
    for (unsigned move = 0; move < kRelayBudgetMoves && moved_ < enough; ++move) {
      if (const auto status = step()) {
        if (state_.pipe_bytes == 0) release_pipe(context_.pipes, state_);
        return *status;
      }
    }
    if (state_.pipe_bytes == 0) release_pipe(context_.pipes, state_);
    return RelayStatus::kBudgetSpent;
  }

 private:
  std::optional<RelayStatus> step() {
    if (state_.pipe_bytes > 0) {
      if (!sink_.writable) return RelayStatus::kWaiting;
      return flush();
    }
    if (source_.read_ended) return RelayStatus::kSourceEnded;
    if (!source_.readable || !sink_.writable) return RelayStatus::kWaiting;
    // splice(2) cannot cross the urgent mark: it would answer EAGAIN for ever while poll says "readable".
    if (source_.urgent) return copy_urgent();
    if (state_.mode == RelayMode::kSplice && ensure_pipe()) return fill();
    return copy();
  }

  /// Bytes from the source into the (empty) pipe; the next step takes them on.
  std::optional<RelayStatus> fill() {
    const std::size_t share =
        std::max(context_.budget - moved_, kSmallSplice);  // so that a small move is one
    const std::size_t size = std::min<std::size_t>({state_.pipe_capacity, share, left()});
    const auto got = io_.splice(source_.fd, state_.pipe[1], size);
    if (got <= 0) return on_read_end(got);
    state_.pipe_bytes = static_cast<std::uint32_t>(got);
    state_.streak = static_cast<std::size_t>(got) < kSmallSplice ? state_.streak + 1 : 0;
    if (state_.streak >= kSmallSplices) set_mode(RelayMode::kCopy);
    return std::nullopt;
  }

  /// Bytes from the pipe to the sink.
  std::optional<RelayStatus> flush() {
    const auto sent = io_.splice(state_.pipe[0], sink_.fd, state_.pipe_bytes);
    if (sent <= 0) return on_write_failed(sent == 0 ? -EPIPE : sent);
    state_.pipe_bytes -= static_cast<std::uint32_t>(sent);
    context_.counters.spliced_bytes.add(static_cast<std::uint64_t>(sent));
    delivered(sent);
    return std::nullopt;
  }

  std::optional<RelayStatus> copy() {
    // What the sink does not take must find room in an empty pipe: have one at hand before reading.
    if (state_.pipe[0] < 0 && !context_.pipes.reserve()) return copy_without_pipe();
    const std::uint32_t room = state_.pipe[0] < 0 ? context_.pipes.next_capacity() : state_.pipe_capacity;
    const std::size_t size = std::min<std::size_t>({context_.buffer.size(), room, left()});
    const auto got = io_.recv(source_.fd, context_.buffer.data(), size, 0);
    if (got <= 0) return on_read_end(got);
    const auto read = static_cast<std::size_t>(got);
    // A short read means "drained" unless the end is near: FIN and errors are told by a further read.
    if (read < size && !source_.peer_closed && !source_.urgent) source_.readable = false;
    note_read(read);
    return send_or_keep(context_.buffer.first(read));
  }

  std::optional<RelayStatus> send_or_keep(std::span<const std::byte> data) {
    const auto sent = io_.send(sink_.fd, data.data(), data.size(), 0);
    if (sent < 0 && sent != -EAGAIN) return on_write_failed(sent);
    const std::size_t taken = sent < 0 ? 0 : static_cast<std::size_t>(sent);
    context_.counters.copied_bytes.add(taken);
    delivered(static_cast<std::ptrdiff_t>(taken));
    if (taken == data.size()) return std::nullopt;
    if (sent < 0) sink_.writable = false;
    keep(data.subspan(taken));
    return std::nullopt;
  }

  /// The rest of a copied read waits in the pipe that copy() reserved; it was empty, so it has room.
  void keep(std::span<const std::byte> rest) {
    [[maybe_unused]] const bool had_pipe = ensure_pipe();
    assert(had_pipe);
    const auto written = io_.write(state_.pipe[1], rest.data(), rest.size());
    assert(written == static_cast<std::ptrdiff_t>(rest.size()));
    state_.pipe_bytes = static_cast<std::uint32_t>(written);
  }

  /// No pipe to be had: look at the bytes, send them, and only then take as many as were sent out of the
  /// source.
  std::optional<RelayStatus> copy_without_pipe() {
    const std::size_t size = std::min(context_.buffer.size(), left());
    const auto seen = io_.recv(source_.fd, context_.buffer.data(), size, MSG_PEEK);
    if (seen <= 0) return on_read_end(seen);
    const auto sent = io_.send(sink_.fd, context_.buffer.data(), static_cast<std::size_t>(seen), 0);
    if (sent <= 0) return on_write_failed(sent);
    [[maybe_unused]] const auto taken =
        io_.recv(source_.fd, context_.buffer.data(), static_cast<std::size_t>(sent), 0);
    assert(taken == sent);
    context_.counters.copied_bytes.add(static_cast<std::uint64_t>(sent));
    delivered(sent);
    return std::nullopt;
  }

  /// Up to the urgent mark by copying; at the mark, the urgent byte goes on as an urgent byte.
  std::optional<RelayStatus> copy_urgent() {
    if (!io_.at_urgent_mark(source_.fd)) return copy();
    char byte;
    if (io_.recv(source_.fd, &byte, 1, MSG_OOB | MSG_PEEK) == 1) {
      const auto sent = io_.send(sink_.fd, &byte, 1, MSG_OOB);
      if (sent < 0) return on_write_failed(sent);
      io_.recv(source_.fd, &byte, 1, MSG_OOB);
      context_.counters.copied_bytes.add(1);
      delivered(1);
    }
    source_.urgent = false;                // told again with the next one
    if (left() == 0) return std::nullopt;  // a read of nothing would look like FIN
    return copy();                         // a plain read steps over the mark
  }

  /// Of what may be moved at all.
  std::size_t left() const { return context_.bytes_max - moved_; }

  bool ensure_pipe() {
    if (state_.pipe[0] >= 0) return true;
    const auto pipe = context_.pipes.take();
    if (!pipe) return false;
    state_.pipe[0] = pipe->read_end;
    state_.pipe[1] = pipe->write_end;
    state_.pipe_capacity = pipe->capacity;
    return true;
  }

  void note_read(std::size_t size) {
    if (state_.mode != RelayMode::kCopy) return;
    state_.streak = size >= kLargeRead ? state_.streak + static_cast<std::uint32_t>(size) : 0;
    if (state_.streak >= kSpliceAfter) set_mode(RelayMode::kSplice);
  }

  void set_mode(RelayMode mode) {
    state_.mode = mode;
    state_.streak = 0;
  }

  void delivered(std::ptrdiff_t bytes) {
    state_.bytes += static_cast<std::uint64_t>(bytes);
    moved_ += static_cast<std::size_t>(bytes);
  }

  std::optional<RelayStatus> on_read_end(std::ptrdiff_t result) {
    if (result == -EAGAIN) {
      // The pipe is empty here, so this speaks of the source. At an urgent mark a plain read would get
      // further: poll tells POLLPRI with it, and copy_urgent() does that.
      source_.readable = false;
      return RelayStatus::kWaiting;
    }
    source_.read_ended = true;
    source_.readable = false;
    if (result < 0 && source_.error == 0) source_.error = static_cast<std::int16_t>(-result);
    return RelayStatus::kSourceEnded;
  }

  std::optional<RelayStatus> on_write_failed(std::ptrdiff_t result) {
    if (result == -EAGAIN) {
      sink_.writable = false;
      return RelayStatus::kWaiting;
    }
    sink_.writable = false;
    sink_.write_ended = true;
    if (sink_.error == 0) sink_.error = static_cast<std::int16_t>(-result);
    release_pipe(context_.pipes, state_);
    state_.pipe_bytes = 0;
    return RelayStatus::kSinkBroken;
  }

  const RelayContext& context_;
  Io& io_;
  RelayState& state_;
  SocketState& source_;
  SocketState& sink_;
  std::size_t moved_ = 0;
};

}  // namespace

RelayStatus relay(const RelayContext& context, RelayState& state, SocketState& source, SocketState& sink) {
  return Mover(context, state, source, sink).run();
}

void release_pipe(PipePool& pipes, RelayState& state) {
  if (state.pipe[0] < 0) return;
  pipes.give_back({state.pipe[0], state.pipe[1], state.pipe_capacity}, state.pipe_bytes == 0);
  state.pipe[0] = state.pipe[1] = -1;
  state.pipe_capacity = 0;
}

}  // namespace portway
