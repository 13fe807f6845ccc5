// Any two endpoints as a PROXY protocol header: a parser written from the specification finds what was put
// in.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "network/proxy_header.h"

namespace {

using portway::Endpoint;

void require(bool holds) {
  if (!holds) std::abort();
}

/// Takes an endpoint off the front; IPv4 or IPv6 as the first byte says.
Endpoint take_endpoint(const std::uint8_t*& data, std::size_t& size) {
  std::array<std::uint8_t, 19> bytes{};
  const std::size_t taken = std::min(size, bytes.size());
  std::copy_n(data, taken, bytes.begin());
  data += taken;
  size -= taken;
  const auto port = static_cast<std::uint16_t>(bytes[1] << 8 | bytes[2]);
  if ((bytes[0] & 1) == 0) {
    return {boost::asio::ip::address_v4({bytes[3], bytes[4], bytes[5], bytes[6]}), port};
  }
  boost::asio::ip::address_v6::bytes_type address;
  std::copy_n(bytes.begin() + 3, address.size(), address.begin());
  return {boost::asio::ip::address_v6(address), port};
}

boost::asio::ip::address_v6 as_v6(const portway::IpAddress& address) {
  return address.is_v6() ? address.to_v6()
                         : boost::asio::ip::make_address_v6(boost::asio::ip::v4_mapped, address.to_v4());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Endpoint client = take_endpoint(data, size);
  const Endpoint destination = take_endpoint(data, size);
  const portway::ProxyHeader header = portway::proxy_header(client, destination);
  const auto bytes = header.view();
  constexpr std::string_view kSignature("\r\n\r\n\0\r\nQUIT\n", 12);
  require(bytes.size() >= 16 &&
          std::equal(kSignature.begin(), kSignature.end(), bytes.begin(),
                     [](char a, std::uint8_t b) { return static_cast<std::uint8_t>(a) == b; }));
  require(bytes[12] == 0x21);  // version 2, PROXY
  const auto length = static_cast<std::size_t>(bytes[14] << 8 | bytes[15]);
  require(bytes.size() == 16 + length);
  const auto port_at = [&](std::size_t at) {
    return static_cast<std::uint16_t>(bytes[at] << 8 | bytes[at + 1]);
  };
  if (bytes[13] == 0x11) {
    require(length == 12);
    require(port_at(24) == client.port() && port_at(26) == destination.port());
    const auto address = as_v6(client.address()).to_bytes();
    require(std::equal(address.begin() + 12, address.end(), bytes.begin() + 16));
  } else {
    require(bytes[13] == 0x21 && length == 36);
    require(port_at(48) == client.port() && port_at(50) == destination.port());
    const auto source = as_v6(client.address()).to_bytes();
    const auto target = as_v6(destination.address()).to_bytes();
    require(std::equal(source.begin(), source.end(), bytes.begin() + 16));
    require(std::equal(target.begin(), target.end(), bytes.begin() + 32));
  }
  return 0;
}
