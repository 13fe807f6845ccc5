#include "proxy/connection_table.h"

#include <algorithm>

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

std::optional<std::uint32_t> ConnectionTable::take(const ConnectionSlot& content) {
  const auto index = take();
  if (!index) return std::nullopt;
  const std::uint64_t serial = std::max(serial_, content.serial);
  slots_[*index] = content;
  slots_[*index].serial = serial_ = serial;
  return index;
}

void ConnectionTable::give_back(std::uint32_t index) {
  slots_[index] = ConnectionSlot{};
  free_.push_back(index);
  --in_use_;
}

}  // namespace portway
