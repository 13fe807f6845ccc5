#include "network/source_plan.h"

#include <array>
#include <cerrno>
#include <cstdint>

namespace portway {
namespace {

constexpr auto kSourceFallbacks = std::to_array<std::string_view>(
    {"", "port_in_use", "port_privileged", "", "", "hairpin", "loopback", "family", "no_return_path"});
static_assert(kSourceFallbacks.size() == kSourcePlans,
              "every SourcePlan has its fallback, in the same order");

}  // namespace

std::string_view source_mode(SourcePlan plan) {
  switch (plan) {
    case SourcePlan::kTransparent:
    case SourcePlan::kPortInUse:
    case SourcePlan::kPortPrivileged:
      return "transparent";
    case SourcePlan::kProxyV2:
      return "proxy_v2";
    default:
      return "plain";
  }
}

std::string_view source_fallback(SourcePlan plan) {
  return kSourceFallbacks[static_cast<std::size_t>(plan)];
}

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
