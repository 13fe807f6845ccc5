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

/// RFC 3927 and RFC 4291: routers do not forward them.
bool is_link_local(const IpAddress& address) {
  if (address.is_v6()) return address.to_v6().is_link_local();
  return address.to_v4().to_uint() >> 16 == 0xa9fe;  // 169.254.0.0/16
}

}  // namespace

SourcePlan plan_source(const Endpoint& client, const Endpoint& guest) {
  const IpAddress from = plain(client.address());
  const IpAddress to = plain(guest.address());
  if (from == to) return SourcePlan::kHairpin;
  if (from.is_loopback()) return SourcePlan::kLoopback;
  if (is_link_local(from)) return SourcePlan::kLinkLocal;
  if (from.is_v4() != to.is_v4()) return SourcePlan::kFamily;
  return SourcePlan::kTransparent;
}

std::optional<SourcePlan> plan_after_failure(SourcePlan tried, int error) {
  if (!is_transparent(tried)) return std::nullopt;
  switch (error) {
    case EADDRINUSE:
    case EADDRNOTAVAIL:
      // The address has no port left for that guest port: another address would get through.
      return tried == SourcePlan::kTransparent ? SourcePlan::kPortInUse : SourcePlan::kRefused;
    case ETIMEDOUT:
      return SourcePlan::kUnanswered;
    case EPERM:
    case EACCES:
    case EINVAL:
    case ENOPROTOOPT:
      return SourcePlan::kRefused;
    default:
      return std::nullopt;
  }
}

Endpoint source_endpoint(const Endpoint& client, SourcePlan plan) {
  return {plain(client.address()), plan == SourcePlan::kPortInUse ? std::uint16_t{0} : client.port()};
}

}  // namespace portway
