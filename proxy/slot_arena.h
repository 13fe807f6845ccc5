// The shared memory with the slots of all connections: a header, then forwards that were deleted and have
// connections left, then the meters of what was carried, then what the relays of each worker have in user
// space, then the clients that each worker refuses, then one table of slots a worker.
//
// Another process of the same boot can map it and read what every connection is doing. The header says
// whether it may: who wrote it, and in which layout. Pages are touched, and so cost memory, only once a
// slot in them has been in use.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/fd.h"
#include "proxy/connection_table.h"
#include "proxy/kept_forward.h"
#include "proxy/noted_refusal.h"
#include "proxy/relay_memory.h"
#include "proxy/usage_meter.h"

namespace portway {

/// The version of ConnectionSlot, RelayMemory, NotedRefusal, MeterHead, MeterCell and ArenaHeader. A process
/// does not touch slots of another layout.
inline constexpr std::uint32_t kSlotLayout = 4;

struct ArenaHeader {
  std::array<char, 8> magic{};
  std::uint32_t layout = 0;
  std::uint32_t slot_bytes = 0;  // sizeof(ConnectionSlot)
  std::uint32_t tables = 0;
  std::uint32_t slots = 0;  // of all tables; the first ones have slots / tables each, the last one the rest
  std::uint32_t relay_bytes = 0;   // sizeof(RelayMemory)
  std::array<char, 40> boot_id{};  // of the kernel, as text with a zero at its end; empty: not known
  // When workers of the latest processes crashed, the last one first, on the clock CLOCK_BOOTTIME; 0: none.
  std::array<std::int64_t, 4> crashes_ns{};
  std::uint32_t meters = 0;       // rows of meter_bytes(tables)
  std::uint32_t meters_used = 0;  // those behind were never in use
};

/// Of one memory. Connections of further ones do not outlive the daemon.
inline constexpr std::size_t kKeptForwardsMax = 1024;
/// Of one memory: instances and forwards. What further ones have carried is as old as the store has it after
/// SIGKILL.
inline constexpr std::size_t kMetersMax = 32'768;

/// Why a mapping cannot be used.
enum class ArenaFault : std::uint8_t {
  kNone,
  kNoMemory,     // it cannot be mapped
  kNotAnArena,   // another kind of file, or one that could still shrink
  kOtherLayout,  // written by a version with other slots
  kOtherBoot,    // written before the machine started: its descriptors are gone
  kDamaged,      // the header contradicts itself or the size of the memory
};
std::string_view to_string(ArenaFault fault);

/// What one worker has of it.
struct ArenaTable {
  std::span<ConnectionSlot> slots;
  RelayMemory& relay;
  std::span<NotedRefusal> refusals;  // kGatesMax
};

class SlotArena {
 public:
  /// At least one slot a table. Throws std::bad_alloc if memory or a descriptor is refused.
  explicit SlotArena(std::size_t slots, std::size_t tables = 1, std::size_t meters = 0);
  /// That of another process. Check fault() before anything else.
  explicit SlotArena(Fd memory);
  ~SlotArena();
  SlotArena(const SlotArena&) = delete;
  SlotArena& operator=(const SlotArena&) = delete;

  ArenaFault fault() const { return fault_; }
  std::span<ConnectionSlot> slots() const { return slots_; }
  std::size_t tables() const { return tables_; }
  ArenaTable table(std::size_t index) const;
  std::span<KeptForward> kept_forwards() const { return kept_; }
  /// For UsageMeters.
  std::span<std::byte> meters() const { return meters_; }
  ArenaHeader& header() const { return *reinterpret_cast<ArenaHeader*>(mapped_.data()); }
  /// A memfd; whoever has it can map the slots.
  const Fd& memory() const { return memory_; }

 private:
  void map(std::size_t bytes);
  void cut(std::size_t tables, std::size_t slots, std::size_t meters);
  ArenaFault open();

  Fd memory_;
  std::span<std::byte> mapped_;
  std::span<KeptForward> kept_;
  std::span<std::byte> meters_;
  std::span<RelayMemory> relays_;     // one a table
  std::span<NotedRefusal> refusals_;  // kGatesMax a table
  std::span<ConnectionSlot> slots_;
  std::size_t tables_ = 0;
  ArenaFault fault_ = ArenaFault::kNone;
};

}  // namespace portway
