#include "network/proxy_header.h"

#include <algorithm>
#include <boost/asio/ip/address_v6.hpp>

namespace portway {
namespace {

namespace ip = boost::asio::ip;

constexpr std::array<std::uint8_t, 12> kSignature = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d,
                                                     0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a};
constexpr std::uint8_t kLocal = 0x20;  // version 2 in the upper half
constexpr std::uint8_t kProxy = 0x21;
constexpr std::uint8_t kUnspecified = 0x00;
constexpr std::uint8_t kTcp4 = 0x11;
constexpr std::uint8_t kTcp6 = 0x21;

void append(ProxyHeader& header, std::span<const std::uint8_t> bytes) {
  std::ranges::copy(bytes, header.bytes.begin() + static_cast<std::ptrdiff_t>(header.size));
  header.size += bytes.size();
}

void append_number(ProxyHeader& header, std::size_t number) {
  const std::array<std::uint8_t, 2> big_endian = {static_cast<std::uint8_t>(number >> 8),
                                                  static_cast<std::uint8_t>(number)};
  append(header, big_endian);
}

ProxyHeader start(std::uint8_t command, std::uint8_t family, std::size_t addresses_size) {
  ProxyHeader header;
  append(header, kSignature);
  append(header, std::array{command, family});
  append_number(header, addresses_size);
  return header;
}

bool is_v4(const IpAddress& address) {
  return address.is_v4() || address.to_v6().is_v4_mapped();
}

ip::address_v4 as_v4(const IpAddress& address) {
  return address.is_v4() ? address.to_v4() : ip::make_address_v4(ip::v4_mapped, address.to_v6());
}

ip::address_v6 as_v6(const IpAddress& address) {
  return address.is_v6() ? address.to_v6() : ip::make_address_v6(ip::v4_mapped, address.to_v4());
}

}  // namespace

ProxyHeader proxy_header(const Endpoint& client, const Endpoint& destination) {
  const IpAddress from = client.address();
  const IpAddress to = destination.address();
  const bool v4 = is_v4(from) && is_v4(to);
  ProxyHeader header = v4 ? start(kProxy, kTcp4, 12) : start(kProxy, kTcp6, 36);
  if (v4) {
    append(header, as_v4(from).to_bytes());
    append(header, as_v4(to).to_bytes());
  } else {
    append(header, as_v6(from).to_bytes());
    append(header, as_v6(to).to_bytes());
  }
  append_number(header, client.port());
  append_number(header, destination.port());
  return header;
}

ProxyHeader local_proxy_header() {
  return start(kLocal, kUnspecified, 0);
}

}  // namespace portway
