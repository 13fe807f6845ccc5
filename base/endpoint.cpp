#include "base/endpoint.h"

#include <algorithm>
#include <boost/asio/ip/address_v6.hpp>
#include <charconv>
#include <optional>
#include <system_error>

namespace portway {
namespace {

namespace ip = boost::asio::ip;

constexpr std::size_t kAddressTextMax = 45;  // INET6_ADDRSTRLEN without the terminator

/// Decimal digits and nothing else.
template <class Int>
std::optional<Int> parse_digits(std::string_view text) {
  Int value{};
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || rest != end) return std::nullopt;
  return value;
}

Error invalid_address(std::string_view text, std::string_view expected) {
  return {ErrorCode::kInvalidAddress, in_quotes(text) + " is not " + std::string(expected), ""};
}

}  // namespace

IpAddress folded(const IpAddress& address) {
  if (address.is_v4()) return address;
  const ip::address_v6 v6(address.to_v6().to_bytes());
  if (v6.is_v4_mapped()) return ip::make_address_v4(ip::v4_mapped, v6);
  return v6;
}

Result<IpAddress> parse_address(std::string_view text) {
  // The characters are checked first: Asio would stop at a NUL and accept a zone.
  const bool plausible = text.size() <= kAddressTextMax &&
                         text.find_first_not_of("0123456789abcdefABCDEF.:") == std::string_view::npos;
  boost::system::error_code failure;
  const IpAddress address = plausible ? ip::make_address(text, failure) : IpAddress();
  if (!plausible || failure) return invalid_address(text, "an IP address like 198.18.0.2 or fd00::2");
  return folded(address);
}

std::vector<std::string> to_strings(std::span<const IpAddress> addresses) {
  std::vector<std::string> texts;
  for (const IpAddress& address : addresses) texts.push_back(address.to_string());
  return texts;
}

bool is_genuine_v6(const IpAddress& address) {
  return address.is_v6() && !address.to_v6().is_v4_mapped();
}

Endpoint on_link(const Endpoint& endpoint, int interface_index) {
  if (!endpoint.address().is_v6() || !endpoint.address().to_v6().is_link_local()) return endpoint;
  auto address = endpoint.address().to_v6();
  address.scope_id(static_cast<boost::asio::ip::scope_id_type>(interface_index));
  return {address, endpoint.port()};
}

IpAddress source_of(const IpAddress& client) {
  if (client.is_v4()) return client;
  auto bytes = client.to_v6().to_bytes();
  std::fill(bytes.begin() + 8, bytes.end(), std::uint8_t{0});
  return boost::asio::ip::address_v6(bytes);
}

Result<Endpoint> parse_endpoint(std::string_view text) {
  const Error wrong = invalid_address(text, "an address with a port like 198.18.0.2:80 or [fd00::2]:80");
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return wrong;
  const auto port = parse_digits<std::uint16_t>(text.substr(colon + 1));
  std::string_view host = text.substr(0, colon);
  const bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (bracketed != (host.find(':') != std::string_view::npos)) return wrong;
  const Result<IpAddress> address = parse_address(host);
  if (!address || !port) return wrong;
  return Endpoint(*address, *port);
}

std::string to_string(const Endpoint& endpoint) {
  const std::string host = endpoint.address().to_string();
  return (endpoint.address().is_v6() ? "[" + host + "]" : host) + ":" + std::to_string(endpoint.port());
}

Result<Cidr> Cidr::parse(std::string_view text) {
  const std::size_t slash = text.find('/');
  const Result<IpAddress> address = parse_address(text.substr(0, slash));
  // An IPv4-mapped address would be folded, and its prefix length would then mean something else.
  if (!address || address->is_v4() != (text.find(':') == std::string_view::npos)) {
    return invalid_address(text, "a network like 198.18.0.0/15 or fd00::/8");
  }
  const std::uint16_t longest = address->is_v4() ? 32 : 128;
  const auto length =
      slash == std::string_view::npos ? longest : parse_digits<std::uint16_t>(text.substr(slash + 1));
  if (!length || *length > longest) {
    return invalid_address(text, "a network: its prefix length goes from /0 to /" + std::to_string(longest));
  }
  const Cidr cidr = address->is_v4() ? Cidr(ip::network_v4(address->to_v4(), *length))
                                     : Cidr(ip::network_v6(address->to_v6(), *length));
  const Cidr canonical(
      std::visit([](const auto& network) { return Network(network.canonical()); }, cidr.network_));
  if (cidr != canonical) {
    return invalid_address(text, "a network: its host bits are not zero; write " + canonical.to_string() +
                                     " for the network, or leave the prefix length out for the one host");
  }
  return cidr;
}

bool Cidr::contains(const IpAddress& address) const {
  const IpAddress host = folded(address);
  if (const auto* v4 = std::get_if<ip::network_v4>(&network_)) {
    return host.is_v4() && ip::network_v4(host.to_v4(), v4->prefix_length()).canonical() == *v4;
  }
  const auto& v6 = std::get<ip::network_v6>(network_);
  return host.is_v6() && ip::network_v6(host.to_v6(), v6.prefix_length()).canonical() == v6;
}

std::string Cidr::to_string() const {
  return std::visit([](const auto& network) { return network.to_string(); }, network_);
}

Result<PortRange> parse_port_range(std::string_view text) {
  const std::size_t dash = text.find('-');
  const auto first = parse_digits<std::uint16_t>(text.substr(0, dash));
  const auto last =
      dash == std::string_view::npos ? first : parse_digits<std::uint16_t>(text.substr(dash + 1));
  if (!first || !last || *first == 0 || *last < *first) {
    return Error{ErrorCode::kInvalidPort,
                 in_quotes(text) + " is not a range of ports like 20000-32767 (1-65535, the lower one first)",
                 ""};
  }
  return PortRange{*first, *last};
}

std::string to_string(const PortRange& range) {
  return std::to_string(range.first) + "-" + std::to_string(range.last);
}

}  // namespace portway
