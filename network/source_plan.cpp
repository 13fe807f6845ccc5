#include "network/source_plan.h"

#include <boost/asio/ip/address_v6.hpp>
#include <cerrno>
#include <cstdint>

namespace portway {
namespace {

namespace ip = boost::asio::ip;

/// One spelling for each address: IPv4 as IPv4, no zone.
IpAddress plain(const IpAddress& address) {
  if (address.is_v4()) return address;
  const ip::address_v6 v6(address.to_v6().to_bytes());
  if (v6.is_v4_mapped()) return ip::make_address_v4(ip::v4_mapped, v6);
  return v6;
}

}  // namespace

std::optional<SourcePlan> plan_source(const Endpoint& client, const Endpoint& guest) {
  const IpAddress from = plain(client.address());
  const IpAddress to = plain(guest.address());
  if (from == to) return SourcePlan::kHairpin;
  if (from.is_loopback()) return SourcePlan::kLoopback;
  if (from.is_v6() && from.to_v6().is_link_local()) return std::nullopt;
  if (from.is_v4() != to.is_v4()) return SourcePlan::kFamily;
  return SourcePlan::kTransparent;
}

std::optional<SourcePlan> plan_after_failure(SourcePlan tried, int error) {
  if (tried != SourcePlan::kTransparent) return std::nullopt;
  if (error == EADDRINUSE || error == EADDRNOTAVAIL) return SourcePlan::kPortInUse;
  if (error == EACCES) return SourcePlan::kPortPrivileged;
  return std::nullopt;
}

Endpoint source_endpoint(const Endpoint& client, SourcePlan plan) {
  return {plain(client.address()), plan == SourcePlan::kTransparent ? client.port() : std::uint16_t{0}};
}

}  // namespace portway
