#include "proxy/relay.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <span>
#include <utility>

namespace portway {
namespace {

/// Empty or not.
void release_pipe(PipePool& pipes, RelayState& state) {
  if (state.pipe[0] < 0) return;
  const Pipe pipe{state.pipe[0], state.pipe[1], state.pipe_capacity};
  state.pipe[0] = state.pipe[1] = -1;  // first: what a slot names is open
  state.pipe_capacity = 0;
  pipes.give_back(pipe, state.pipe_bytes == 0);
}

/// One call's work on one direction. A step returns a status to stop with, or nothing to continue.
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
    if (state_.in_spare) {
      if (!sink_.writable) return RelayStatus::kWaiting;
      return flush_spare();
    }
    if (source_.read_ended) return RelayStatus::kSourceEnded;
    if (sink_.write_ended) return source_.readable && source_.peer_closed ? drop() : RelayStatus::kWaiting;
    if (!source_.readable || !sink_.writable) return RelayStatus::kWaiting;
    // splice(2) cannot cross the urgent mark: it would return EAGAIN for ever while poll reports
    // "readable".
    if (source_.urgent) return copy_urgent();
    if (state_.mode == RelayMode::kSplice && (state_.pipe[0] >= 0 || may_take_pipe()) &&
        context_.pipes.lend(state_))
      return fill();
    return copy();
  }

  /// Its instance is not over its share of pipes.
  bool may_take_pipe() const { return context_.pipes.is_open_to(context_.instance_pipes); }

  /// Moves bytes from the source into the (empty) pipe; the next step moves them to the sink.
  std::optional<RelayStatus> fill() {
    const std::size_t share =
        std::max(context_.budget - moved_, kSmallSplice);  // a lower one looks like a small move
    const std::size_t size = std::min<std::size_t>({state_.pipe_capacity, share, left()});
    const auto got = io_.splice(source_.fd, state_.pipe[1], size);
    if (got <= 0) return on_nothing_spliced(got);
    state_.pipe_bytes = static_cast<std::uint32_t>(got);
    state_.streak = static_cast<std::size_t>(got) < kSmallSplice ? state_.streak + 1 : 0;
    if (state_.streak >= kSmallSplices) set_mode(RelayMode::kCopy);
    return std::nullopt;
  }

  /// If the kernel has no page to splice with, it returns EAGAIN although there are bytes, and no event
  /// would follow. After FIN it returns 0, the end, and the stream would be cut off.
  std::optional<RelayStatus> on_nothing_spliced(std::ptrdiff_t result) {
    if ((result != 0 && result != -EAGAIN) || io_.unread(source_.fd) <= 0) return on_read_end(result);
    if (!std::exchange(spliced_in_vain_, true)) return std::nullopt;  // the bytes may have come only now
    return copy();
  }

  /// Moves bytes from the pipe to the sink.
  std::optional<RelayStatus> flush() {
    const auto sent = io_.splice(state_.pipe[0], sink_.fd, state_.pipe_bytes);
    if (sent <= 0) return on_write_failed(sent);
    state_.pipe_bytes -= static_cast<std::uint32_t>(sent);
    context_.counters.spliced_bytes.add(static_cast<std::uint64_t>(sent));
    delivered(sent);
    return std::nullopt;
  }

  std::optional<RelayStatus> flush_spare() {
    const std::span<const std::byte> spare = context_.memory.in_spare();
    const auto sent = io_.send(sink_.fd, spare.data(), spare.size(), 0);
    if (sent <= 0) return on_write_failed(sent);
    context_.pipes.take_from_spare(static_cast<std::size_t>(sent));
    context_.counters.copied_bytes.add(static_cast<std::uint64_t>(sent));
    delivered(sent);
    return std::nullopt;
  }

  std::optional<RelayStatus> copy() {
    if (!context_.pipes.may_keep()) return copy_without_pipe();
    // What the sink does not take must find room in an empty pipe: have one at hand before reading.
    if (state_.pipe[0] < 0 && !(may_take_pipe() && context_.pipes.reserve())) return copy_without_pipe();
    const std::uint32_t room = state_.pipe[0] < 0 ? context_.pipes.next_capacity() : state_.pipe_capacity;
    const std::size_t size = std::min<std::size_t>({context_.memory.buffer.size(), room, left()});
    context_.memory.before_read = state_.bytes;
    const auto got = io_.recv(source_.fd, context_.memory.buffer.data(), size, 0);
    if (got <= 0) return on_read_end(got);
    const auto read = static_cast<std::size_t>(got);
    // A short read means "drained", unless a FIN or an error is next, which only another read reports.
    if (read < size && !source_.peer_closed && !source_.urgent) source_.readable = false;
    note_read(read);
    return send_or_keep(std::span(context_.memory.buffer).first(read));
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

  /// The rest of a copied read waits in the pipe that copy() reserved. The pipe is empty, so it has room,
  /// but the kernel may have no pages for it.
  void keep(std::span<const std::byte> rest) {
    std::ptrdiff_t written =
        context_.pipes.lend(state_) ? io_.write(state_.pipe[1], rest.data(), rest.size()) : 0;
    written = std::max<std::ptrdiff_t>(written, 0);
    state_.pipe_bytes = static_cast<std::uint32_t>(written);
    const auto left = rest.subspan(static_cast<std::size_t>(written));
    if (!left.empty()) context_.pipes.put_in_spare(state_, left);
  }

  /// No pipe is available: peek at the bytes, send them, and only then read as many as were sent.
  std::optional<RelayStatus> copy_without_pipe() {
    const std::size_t size = std::min(context_.memory.buffer.size(), left());
    const auto seen = io_.recv(source_.fd, context_.memory.buffer.data(), size, MSG_PEEK);
    if (seen <= 0) return on_read_end(seen);
    const auto sent = io_.send(sink_.fd, context_.memory.buffer.data(), static_cast<std::size_t>(seen), 0);
    if (sent <= 0) return on_write_failed(sent);
    context_.counters.copied_bytes.add(static_cast<std::uint64_t>(sent));
    delivered(sent);
    return take_out(static_cast<std::size_t>(sent));
  }

  /// Reads the bytes that were peeked at and sent; any that stayed would be sent again. A read ends early
  /// at an urgent mark that was set meanwhile.
  std::optional<RelayStatus> take_out(std::size_t size) {
    while (size > 0) {
      const auto got = io_.recv(source_.fd, context_.memory.buffer.data(), size, 0);
      if (got <= 0) return on_read_end(got == -EAGAIN ? -ENOBUFS : got);
      size -= static_cast<std::size_t>(got);
    }
    return std::nullopt;
  }

  /// The sink's service reads no more (see Connection::on_sink_broken()), and the source has ended or was
  /// reset: what is in front of that is read and dropped. It is what fits into the receive buffer.
  std::optional<RelayStatus> drop() {
    if (source_.urgent && io_.at_urgent_mark(source_.fd))
      source_.urgent = false;  // a plain read steps over it
    const auto got = io_.recv(source_.fd, context_.memory.buffer.data(),
                              std::min(context_.memory.buffer.size(), left()), 0);
    if (got <= 0) return on_read_end(got);
    moved_ += static_cast<std::size_t>(got);
    return std::nullopt;
  }

  /// Up to the urgent mark by copying; at the mark, the urgent byte is passed on as one. A Unix socket gets
  /// it as an ordinary byte: services do not expect MSG_OOB there, and not every kernel has it.
  std::optional<RelayStatus> copy_urgent() {
    if (!io_.at_urgent_mark(source_.fd)) return copy();
    char byte;
    if (io_.recv(source_.fd, &byte, 1, MSG_OOB | MSG_PEEK) == 1) {
      const auto sent = io_.send(sink_.fd, &byte, 1, sink_.is_unix ? 0 : MSG_OOB);
      if (sent < 0) return on_write_failed(sent);
      io_.recv(source_.fd, &byte, 1, MSG_OOB);
      context_.counters.copied_bytes.add(1);
      delivered(1);
    }
    if (left() == 0) return std::nullopt;  // a read of nothing would look like FIN
    // A plain read steps over the mark, unless the byte's segment was lost after TCP had noted the byte. Then
    // there is nothing to read until it comes again, which poll reports as ordinary bytes.
    const std::optional<RelayStatus> status = copy();
    source_.urgent = io_.at_urgent_mark(source_.fd);
    return status;
  }

  /// How much may still be moved in this call.
  std::size_t left() const { return context_.bytes_max - moved_; }

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
      // The pipe is empty here, so EAGAIN comes from the source. At an urgent mark a plain read would get
      // further: poll reports POLLPRI, and copy_urgent() reads it.
      source_.readable = false;
      return RelayStatus::kWaiting;
    }
    source_.read_ended = true;
    source_.readable = false;
    if (result < 0 && source_.error == 0) source_.error = static_cast<std::int16_t>(-result);
    return RelayStatus::kSourceEnded;
  }

  std::optional<RelayStatus> on_write_failed(std::ptrdiff_t result) {
    if (result == 0) result = -EPIPE;
    if (result == -EAGAIN) {
      sink_.writable = false;
      return RelayStatus::kWaiting;
    }
    sink_.writable = false;
    sink_.write_ended = true;
    if (sink_.error == 0) sink_.error = static_cast<std::int16_t>(-result);
    discard_kept(context_.pipes, state_);
    return RelayStatus::kSinkBroken;
  }

  const RelayContext& context_;
  Io& io_;
  RelayState& state_;
  SocketState& source_;
  SocketState& sink_;
  std::size_t moved_ = 0;
  bool spliced_in_vain_ = false;
};

}  // namespace

RelayStatus relay(const RelayContext& context, RelayState& state, SocketState& source, SocketState& sink) {
  return Mover(context, state, source, sink).run();
}

void discard_kept(PipePool& pipes, RelayState& state) {
  if (state.in_spare) pipes.empty_spare();
  release_pipe(pipes, state);
  state.pipe_bytes = 0;
}

}  // namespace portway
