#include "network/source_plan.h"

#include <algorithm>
#include <array>
#include <boost/asio/ip/address_v6.hpp>
#include <cerrno>

namespace portway {
namespace {

namespace ip = boost::asio::ip;

constexpr auto kNames = std::to_array<std::string_view>({
    "transparent",
    "port_in_use",
    "hairpin",
    "loopback",
    "local_client",
    "link_local",
    "family",
});
static_assert(kNames.size() == kSourcePlans, "every SourcePlan has its name, in the same order");

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

std::string_view to_string(SourcePlan plan) {
  return kNames[static_cast<std::size_t>(plan)];
}

SourcePlan plan_source(const Endpoint& client, const Endpoint& guest,
                       std::span<const IpAddress> node_addresses) {
  const IpAddress from = plain(client.address());
  const IpAddress to = plain(guest.address());
  if (from == to) return SourcePlan::kHairpin;
  if (from.is_loopback()) return SourcePlan::kLoopback;
  if (std::ranges::binary_search(node_addresses, from)) return SourcePlan::kLocalClient;
  if (is_link_local(from)) return SourcePlan::kLinkLocal;
  if (from.is_v4() != to.is_v4()) return SourcePlan::kFamily;
  return SourcePlan::kTransparent;
}

std::optional<SourcePlan> plan_after_failure(SourcePlan tried, int error) {
  const bool port_is_taken = error == EADDRINUSE || error == EADDRNOTAVAIL;
  if (tried == SourcePlan::kTransparent && port_is_taken) return SourcePlan::kPortInUse;
  return std::nullopt;
}

}  // namespace portway
