#include "gateway/routes.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "api/resources.h"
#include "gateway/relay.h"
#include "gateway/resources.h"

namespace portway {
namespace {

bool has(const std::vector<Route>& routes, const RouteLine& line) {
  return std::ranges::any_of(routes, [&](const Route& route) {
    return route.method == line.method && route.pattern == line.pattern;
  });
}

void add_relayed(std::vector<Route>& routes, const GatewayContext& gateway, const RouteLine& line,
                 std::string pattern, Access access,
                 boost::asio::awaitable<Result<Response>> (*relay)(const GatewayContext&, const Call&)) {
  routes.push_back({std::string(line.method), std::move(pattern), access, line.query,
                    ChangeHandler([&gateway, relay](const Call& call) { return relay(gateway, call); }),
                    line.cost});
}

}  // namespace

std::vector<Route> all_gateway_routes(const GatewayContext& gateway) {
  std::vector<Route> all;
  for (const auto& of_resource : {fleet_instance_routes, fleet_forward_routes, fleet_event_routes,
                                  fleet_node_routes, fleet_usage_routes, gateway_routes}) {
    add_routes(all, gateway, of_resource());
  }
  add_routes<KeyAdmin>(all, gateway.keys, key_routes());
  add_routes(all, kNoContext, document_routes());
  for (const RouteLine& line : node_route_lines()) {
    if (line.pattern.starts_with("/instances/{id}") && !has(all, line))
      add_relayed(all, gateway, line, std::string(line.pattern), line.access, relay_to_owner);
    if (line.access == Access::kPublic) continue;
    const Access access = line.access == Access::kMetrics ? Access::kMetrics : Access::kAdmin;
    add_relayed(all, gateway, line, "/nodes/{node}" + std::string(line.pattern), access, relay_to_node);
  }
  return all;
}

}  // namespace portway
