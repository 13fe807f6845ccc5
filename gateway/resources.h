// The resources of the gateway's API, one file each in gateway/resources: what is about the fleet as a whole.
// All else is relayed (gateway/routes.h).
#pragma once

#include <vector>

#include "api/router.h"
#include "gateway/context.h"

namespace portway {

using GatewayRoute = RouteOf<const GatewayContext>;

std::vector<GatewayRoute> fleet_instance_routes();
std::vector<GatewayRoute> fleet_forward_routes();
std::vector<GatewayRoute> fleet_event_routes();
std::vector<GatewayRoute> fleet_node_routes();
std::vector<GatewayRoute> fleet_usage_routes();
std::vector<GatewayRoute> gateway_routes();

}  // namespace portway
