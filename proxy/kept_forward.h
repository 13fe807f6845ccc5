// What a successor must know of a forward that exists only for its connections.
#pragma once

#include <cstdint>

#include "base/forward.h"
#include "proxy/stats.h"

namespace portway {

/// A forward that was deleted and whose connections continue: the store has it no more. Entries whose `id` is
/// nil are free.
struct KeptForward {
  ForwardId id{};
  Uuid session_id{};
  std::uint64_t max_bytes_per_second = 0;  // 0: no limit
  std::uint16_t guest_port = 0;
  bool draining = false;  // ClosePolicy::kDrain; otherwise kKeep
  CloseHow why = CloseHow::kForwardDeleted;
};

}  // namespace portway
