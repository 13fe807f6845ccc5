// What a worker's relays have in user space: the bytes that were read and not yet written, and the note that
// says whose they are. It is part of the SlotArena, so that a successor can continue where a killed worker
// has stopped (proxy/in_flight.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace portway {

struct RelayMemory {
  static constexpr std::size_t kBufferBytes = 64 * 1024;
  static constexpr std::uint32_t kNobody = UINT32_MAX;

  // The connection that is being relayed, or was last: the index of its slot in the table.
  std::uint32_t in_hand = kNobody;
  // 1: the worker's thread got a fatal signal while it was that connection's turn, or after it.
  std::uint32_t crashed = 0;
  // Of the direction of it whose bytes are in `buffer`: RelayState::bytes when the read began. Nothing was
  // under way there then.
  std::uint64_t before_read = 0;

  // Of one direction, which has RelayState::in_spare set: what neither its sink nor its pipe has taken, after
  // the bytes in its pipe.
  std::uint32_t spare_begin = 0;
  std::uint32_t spare_end = 0;

  std::array<std::byte, kBufferBytes> buffer{};  // scratch for copying
  // Written to at construction, as the buffer: there may be no memory left when it is needed.
  std::array<std::byte, kBufferBytes> spare{};

  std::span<const std::byte> in_spare() const {
    return std::span(spare).subspan(spare_begin, spare_end - spare_begin);
  }
};

}  // namespace portway
