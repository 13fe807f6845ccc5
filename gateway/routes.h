// The gateway's routes: its own, and those of a node, which are derived from the node's table. So what is new
// there is here as well:
//
//   /instances/ID/...   to the node that has the instance, for whoever may call it there
//   /nodes/NODE/...     any of a node's routes, for admins
#pragma once

#include <vector>

#include "api/router.h"
#include "gateway/context.h"

namespace portway {

/// `gateway` outlives them.
std::vector<Route> all_gateway_routes(const GatewayContext& gateway);

}  // namespace portway
