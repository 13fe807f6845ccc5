#include "proxy/slot_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#include "base/boot_clock.h"
#include "base/sealed_memory.h"

namespace portway {
namespace {

constexpr std::array<char, 8> kMagic = {'p', 'o', 'r', 't', 'w', 'a', 'y', '\0'};
constexpr std::size_t kHeaderBytes = 4096;  // so that what follows begins with a page
static_assert(sizeof(ArenaHeader) <= kHeaderBytes);

static_assert(sizeof(RelayMemory) % alignof(NotedRefusal) == 0);
static_assert(kGatesMax * sizeof(NotedRefusal) % alignof(ConnectionSlot) == 0);
static_assert((kHeaderBytes + kKeptForwardsMax * sizeof(KeptForward)) % alignof(MeterHead) == 0);
static_assert(meter_bytes(1) % alignof(MeterHead) == 0 && alignof(MeterHead) % alignof(RelayMemory) == 0);
static_assert(std::is_trivially_copyable_v<KeptForward> && std::is_trivially_copyable_v<NotedRefusal>);

std::size_t bytes_of(std::size_t tables, std::size_t slots, std::size_t meters) {
  return kHeaderBytes + kKeptForwardsMax * sizeof(KeptForward) + meters * meter_bytes(tables) +
         tables * (sizeof(RelayMemory) + kGatesMax * sizeof(NotedRefusal)) + slots * sizeof(ConnectionSlot);
}

/// Empty if it cannot be read.
std::array<char, 40> this_boot() {
  std::array<char, 40> out{};
  const std::string id = kernel_boot_id();
  std::copy_n(id.begin(), std::min(id.size(), out.size() - 1), out.begin());
  return out;
}

}  // namespace

std::string_view to_string(ArenaFault fault) {
  switch (fault) {
    case ArenaFault::kNone:
      return "none";
    case ArenaFault::kNoMemory:
      return "no_memory";
    case ArenaFault::kNotAnArena:
      return "not_an_arena";
    case ArenaFault::kOtherLayout:
      return "other_layout";
    case ArenaFault::kOtherBoot:
      return "other_boot";
    case ArenaFault::kDamaged:
      return "damaged";
  }
  return "";
}

SlotArena::SlotArena(std::size_t slots, std::size_t tables, std::size_t meters) {
  slots = std::max(slots, tables);
  if (slots > std::numeric_limits<std::uint32_t>::max()) throw std::bad_alloc();
  memory_ = make_sealed_memory("portway-slots", static_cast<off_t>(bytes_of(tables, slots, meters)));
  if (!memory_) throw std::bad_alloc();
  map(bytes_of(tables, slots, meters));
  if (mapped_.empty()) throw std::bad_alloc();
  const ArenaHeader header{.magic = kMagic,
                           .layout = kSlotLayout,
                           .slot_bytes = sizeof(ConnectionSlot),
                           .tables = static_cast<std::uint32_t>(tables),
                           .slots = static_cast<std::uint32_t>(slots),
                           .relay_bytes = sizeof(RelayMemory),
                           .boot_id = this_boot(),
                           .meters = static_cast<std::uint32_t>(meters)};
  std::memcpy(mapped_.data(), &header, sizeof header);
  // Zero pages are valid free slots: ConnectionTable::take() writes every field.
  cut(tables, slots, meters);
  std::ranges::uninitialized_fill(relays_, RelayMemory{});
}

void SlotArena::cut(std::size_t tables, std::size_t slots, std::size_t meters) {
  std::byte* after_header = mapped_.data() + kHeaderBytes;
  kept_ = {reinterpret_cast<KeptForward*>(after_header), kKeptForwardsMax};
  std::byte* after_kept = after_header + kept_.size_bytes();
  meters_ = {after_kept, meters * meter_bytes(tables)};
  std::byte* after_meters = after_kept + meters_.size_bytes();
  relays_ = {reinterpret_cast<RelayMemory*>(after_meters), tables};
  std::byte* after_relays = after_meters + relays_.size_bytes();
  refusals_ = {reinterpret_cast<NotedRefusal*>(after_relays), tables * kGatesMax};
  slots_ = {reinterpret_cast<ConnectionSlot*>(after_relays + refusals_.size_bytes()), slots};
  tables_ = tables;
}

SlotArena::SlotArena(Fd memory) : memory_(std::move(memory)) {
  fault_ = open();
}

SlotArena::~SlotArena() {
  if (!mapped_.empty()) ::munmap(mapped_.data(), mapped_.size());
}

void SlotArena::map(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory_.get(), 0);
  if (memory != MAP_FAILED) mapped_ = {static_cast<std::byte*>(memory), bytes};
}

ArenaFault SlotArena::open() {
  struct stat status {};
  const int seals = ::fcntl(memory_.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSizeSeals) != kSizeSeals || ::fstat(memory_.get(), &status) != 0)
    return ArenaFault::kNotAnArena;
  const auto bytes = static_cast<std::size_t>(status.st_size);
  if (bytes < kHeaderBytes) return ArenaFault::kNotAnArena;
  map(bytes);
  if (mapped_.empty()) return ArenaFault::kNoMemory;
  ArenaHeader header;
  std::memcpy(&header, mapped_.data(), sizeof header);  // its writer may still be running
  if (header.magic != kMagic) return ArenaFault::kNotAnArena;
  if (header.layout != kSlotLayout) return ArenaFault::kOtherLayout;
  // What could not be read proves nothing.
  const std::array<char, 40> boot = this_boot();
  if (header.boot_id != boot && header.boot_id[0] != 0 && boot[0] != 0) return ArenaFault::kOtherBoot;
  if (header.slot_bytes != sizeof(ConnectionSlot) || header.relay_bytes != sizeof(RelayMemory) ||
      header.tables == 0 || header.slots < header.tables || header.meters_used > header.meters ||
      bytes != bytes_of(header.tables, header.slots, header.meters))
    return ArenaFault::kDamaged;
  cut(header.tables, header.slots, header.meters);
  return ArenaFault::kNone;
}

ArenaTable SlotArena::table(std::size_t index) const {
  const std::size_t share = slots_.size() / tables_;
  const std::size_t begin = index * share;
  return {.slots = slots_.subspan(begin, index + 1 == tables_ ? slots_.size() - begin : share),
          .relay = relays_[index],
          .refusals = refusals_.subspan(index * kGatesMax, kGatesMax)};
}

}  // namespace portway
