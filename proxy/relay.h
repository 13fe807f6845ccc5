// One direction of a connection: moves bytes from the source's socket to the sink's, adaptively.
//
// Small messages are copied: recv(2) into the worker's buffer, send(2); what the sink does not take waits
// in a pipe. Bulk is spliced, socket to pipe to socket, and never enters user space. Between two calls no
// byte is in our memory, except what a pipe did not take (PipePool). So back-pressure is TCP's own, and an
// idle direction holds nothing.
//
// The sockets' `readable` and `writable` say whether a byte may be moved: the caller sets them when poll
// reports readiness, the relay clears them on EAGAIN.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "proxy/connection_table.h"
#include "proxy/io.h"
#include "proxy/pipe_pool.h"
#include "proxy/relay_memory.h"

namespace portway {

/// Bulk streams move about this many bytes in a turn of their worker, in moves that fill a pipe. Streams
/// that were not served go first in the next turn. If other connections have messages in a turn, a stream
/// gets only the share.
inline constexpr std::size_t kRelayBudgetBytes = 1024 * 1024;
inline constexpr std::size_t kRelayShareBesideMessages = 24 * 1024;
/// At most this many moves per direction and turn.
inline constexpr unsigned kRelayBudgetMoves = 16;

/// What a worker's relays share.
struct RelayContext {
  Io& io;
  PipePool& pipes;
  WorkerCounters& counters;
  RelayMemory& memory;
  const std::atomic<std::uint32_t>& instance_pipes;  // that the instance's relays hold between their turns
  std::size_t budget = kRelayBudgetBytes;            // of this call; the last move may go beyond it
  std::size_t bytes_max = SIZE_MAX;                  // of this call; a hard limit
};

enum class RelayStatus : std::uint8_t {
  kWaiting,      // for readiness of one of the sockets
  kBudgetSpent,  // more could be moved: call again after the other connections' turn
  kSourceEnded,  // the source's FIN or error was read (source.error says which) and the sink's socket has all
                 // that came before
  kSinkBroken,   // the sink takes nothing any more: sink.error says why; what was in the pipe is discarded.
                 // With ENOMEM or ENOBUFS the sink is sound, but the relay cannot continue
};

/// Copying turns into splicing after this many bytes in reads of at least kLargeRead in a row; splicing
/// turns back after kSmallSplices moves in a row below kSmallSplice. Messages of 16 and 32 KiB are cheaper
/// to copy than to splice, and splicing needs a pipe for each: docs/performance.md.
inline constexpr std::uint32_t kSpliceAfter = 128 * 1024;
inline constexpr std::size_t kLargeRead = 48 * 1024;
inline constexpr std::size_t kSmallSplice = 24 * 1024;
inline constexpr std::uint32_t kSmallSplices = 8;

/// Moves what can be moved now. Do not call it again after kSourceEnded or kSinkBroken.
RelayStatus relay(const RelayContext& context, RelayState& state, SocketState& source, SocketState& sink);

/// Returns what the direction holds to the pool, and discards the bytes in it.
void discard_kept(PipePool& pipes, RelayState& state);

}  // namespace portway
