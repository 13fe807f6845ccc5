// Addresses, networks and ports: our names for Asio's types, and the parts that Asio lacks. Errors are
// kInvalidAddress or kInvalidPort, with a detail that quotes the text; the caller adds the field.
#pragma once

#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <boost/asio/ip/network_v6.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace portway {

using IpAddress = boost::asio::ip::address;
using Endpoint = boost::asio::ip::tcp::endpoint;

/// One form for each host: no zone, and IPv4 as IPv4 even if it came through an IPv6 socket.
IpAddress folded(const IpAddress& address);
/// "198.18.0.2" or "fd00::2"; no zone, no port, no name. IPv4-mapped IPv6 addresses are folded to IPv4.
Result<IpAddress> parse_address(std::string_view text);

std::vector<std::string> to_strings(std::span<const IpAddress> addresses);

/// "198.18.0.2:80" or "[fd00::2]:80".
Result<Endpoint> parse_endpoint(std::string_view text);
std::string to_string(const Endpoint& endpoint);

/// An IPv6 address that is not IPv4-mapped (::ffff:198.18.0.2).
bool is_genuine_v6(const IpAddress& address);

/// Where a socket is to connect through this interface: an IPv6 link-local address names its link
/// (sin6_scope_id, ipv6(7)); other addresses are as they were. 0: no interface.
Endpoint on_link(const Endpoint& endpoint, int interface_index);

/// What a per-source limit or share counts as one source: an IPv6 client has a whole /64 (RFC 6177).
IpAddress source_of(const IpAddress& client);

/// A network in CIDR notation (RFC 4632, RFC 4291). Host bits must be zero: a typing error must not widen a
/// network.
class Cidr {
 public:
  /// "198.18.0.0/15", "fd00::/8"; a bare address means that one host.
  static Result<Cidr> parse(std::string_view text);

  bool contains(const IpAddress& address) const;
  std::string to_string() const;

  friend bool operator==(const Cidr&, const Cidr&) = default;

 private:
  using Network = std::variant<boost::asio::ip::network_v4, boost::asio::ip::network_v6>;
  explicit Cidr(Network network) : network_(std::move(network)) {}

  Network network_;
};

/// An inclusive range of TCP ports, first <= last.
struct PortRange {
  std::uint16_t first = 0;
  std::uint16_t last = 0;

  bool contains(std::uint16_t port) const { return first <= port && port <= last; }
  std::uint32_t size() const { return std::uint32_t{last} - first + 1; }

  friend bool operator==(const PortRange&, const PortRange&) = default;
};

/// "20000-32767", or "20000" for that one port.
Result<PortRange> parse_port_range(std::string_view text);
std::string to_string(const PortRange& range);

}  // namespace portway
