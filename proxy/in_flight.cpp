#include "proxy/in_flight.h"

namespace portway {
namespace {

/// The last `size` of these bytes.
std::optional<std::span<const std::byte>> last(std::span<const std::byte> bytes, std::uint64_t size) {
  if (size > bytes.size()) return std::nullopt;
  return bytes.last(static_cast<std::size_t>(size));
}

std::optional<std::span<const std::byte>> find_rest(std::uint64_t size, const DirectionProgress& progress,
                                                    const RelayState& state, const RelayMemory& memory,
                                                    bool is_in_hand) {
  if (state.in_spare) {
    if (memory.spare_begin > memory.spare_end || memory.spare_end > memory.spare.size()) return std::nullopt;
    return last(memory.in_spare(), size);
  }
  if (!is_in_hand || progress.read < memory.before_read) return std::nullopt;
  const std::uint64_t read = progress.read - memory.before_read;
  if (read > memory.buffer.size()) return std::nullopt;
  return last(std::span(memory.buffer).first(static_cast<std::size_t>(read)), size);
}

}  // namespace

std::optional<InFlight> in_flight(const DirectionProgress& progress, const RelayState& state,
                                  const RelayMemory& memory, bool is_in_hand) {
  InFlight found{.bytes = progress.written, .pipe_bytes = progress.piped, .rest = {}, .sent_before = 0};
  if (progress.written > progress.read) {
    if (progress.piped != 0) return std::nullopt;
    found.sent_before = progress.written - progress.read;
    return found;
  }
  const std::uint64_t under_way = progress.read - progress.written;
  if (under_way < progress.piped) return std::nullopt;
  const std::uint64_t in_memory = under_way - progress.piped;
  if (in_memory == 0) return found;
  const auto rest = find_rest(in_memory, progress, state, memory, is_in_hand);
  if (!rest) return std::nullopt;
  found.rest = *rest;
  return found;
}

}  // namespace portway
