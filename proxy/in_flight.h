// Where a direction of a connection had got when its worker was killed: at any instruction.
//
// The kernel says how much was read from the source and written to the sink (network/tcp_progress.h), and
// how much is in the pipe. The difference is what the worker had in its memory (proxy/relay_memory.h), or, if
// it is negative, what it had peeked at and sent, but not yet read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "proxy/connection_table.h"
#include "proxy/relay_memory.h"

namespace portway {

struct InFlight {
  std::uint64_t bytes = 0;          // what the sink has taken: RelayState::bytes
  std::uint32_t pipe_bytes = 0;     // still in the pipe, next for the sink
  std::span<const std::byte> rest;  // of the relay memory, after those in the pipe
  std::uint64_t sent_before = 0;    // bytes that the sink has, and that are still to be read from the source
};

/// What the counters say.
struct DirectionProgress {
  std::uint64_t read = 0;     // from the source
  std::uint64_t written = 0;  // to the sink, without what the node itself has written to it
  std::uint32_t piped = 0;    // in the pipe
};

/// `is_in_hand`: the memory's note names this connection. nullopt: memory and counters contradict each other,
/// so that the bytes are not known.
std::optional<InFlight> in_flight(const DirectionProgress& progress, const RelayState& state,
                                  const RelayMemory& memory, bool is_in_hand);

}  // namespace portway
