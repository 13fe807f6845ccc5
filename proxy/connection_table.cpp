#include "proxy/connection_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace portway {

PlainEndpoint to_plain(const Endpoint& endpoint) {
  PlainEndpoint plain{.address = {}, .port = endpoint.port(), .is_v6 = endpoint.address().is_v6()};
  if (plain.is_v6) {
    plain.address = endpoint.address().to_v6().to_bytes();
  } else {
    std::ranges::copy(endpoint.address().to_v4().to_bytes(), plain.address.begin());
  }
  return plain;
}

Endpoint to_endpoint(const PlainEndpoint& plain) {
  if (plain.is_v6) return {boost::asio::ip::address_v6(plain.address), plain.port};
  const auto& bytes = plain.address;
  return {boost::asio::ip::address_v4({bytes[0], bytes[1], bytes[2], bytes[3]}), plain.port};
}

SlotArena::SlotArena(std::size_t slots) {
  // Shared, for a process that inherits the mapping; untouched pages take no memory.
  void* memory = ::mmap(nullptr, slots * sizeof(ConnectionSlot), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  // Zero pages are valid free slots: take() writes every field.
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
