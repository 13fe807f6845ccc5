#include "network/source_plan.h"

#include <cerrno>
#include <cstdint>

namespace portway {

std::optional<SourcePlan> plan_source(const Endpoint& client, const Endpoint& guest) {
  const IpAddress from = folded(client.address());
  const IpAddress to = folded(guest.address());
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
  return {folded(client.address()), plan == SourcePlan::kTransparent ? client.port() : std::uint16_t{0}};
}

}  // namespace portway
