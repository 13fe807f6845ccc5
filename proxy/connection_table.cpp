#include "proxy/connection_table.h"

#include <sys/mman.h>

#include <new>

namespace portway {

SlotArena::SlotArena(std::size_t slots) {
  // Shared, so that a process that inherits the mapping sees the slots; untouched pages take no memory.
  void* memory = ::mmap(nullptr, slots * sizeof(ConnectionSlot), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  // Zero pages are valid free slots as they stand: take() writes every field.
  slots_ = {static_cast<ConnectionSlot*>(memory), slots};
}

SlotArena::~SlotArena() {
  ::munmap(slots_.data(), slots_.size_bytes());
}

std::optional<std::uint32_t> ConnectionTable::take() {
  std::uint32_t index;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else if (high_water_ < slots_.size()) {
    index = high_water_++;
  } else {
    return std::nullopt;
  }
  slots_[index] = ConnectionSlot{};
  slots_[index].serial = ++serial_;
  ++in_use_;
  return index;
}

void ConnectionTable::give_back(std::uint32_t index) {
  slots_[index] = ConnectionSlot{};
  free_.push_back(index);
  --in_use_;
}

}  // namespace portway
