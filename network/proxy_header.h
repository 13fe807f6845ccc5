// The PROXY protocol's header, version 2: how a guest's service learns who the client is when the connection
// comes from the node's address. Source: haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2. Any
// thread; no allocation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/endpoint.h"

namespace portway {

/// The bytes to send before the first of the client's.
struct ProxyHeader {
  static constexpr std::size_t kSizeMax = 16 + 36;  // fixed part, two IPv6 addresses and ports

  std::array<std::uint8_t, kSizeMax> bytes{};
  std::size_t size = 0;

  std::span<const std::uint8_t> view() const { return std::span(bytes).first(size); }
};

/// `destination` is what the client connected to: the node's address and the forward's port. TCP4 when both
/// are IPv4, also if they came through an IPv6 socket; else TCP6, where an IPv4 address is mapped
/// (::ffff:198.18.0.1).
ProxyHeader proxy_header(const Endpoint& client, const Endpoint& destination);

/// LOCAL: a connection of the node's own (a probe), of no client. The guest's service takes the connection's
/// own addresses.
ProxyHeader local_proxy_header();

}  // namespace portway
