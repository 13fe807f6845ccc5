// How the fleet's instances, forwards and nodes are written in the gateway's answers.
#pragma once

#include <boost/json/object.hpp>
#include <string_view>

#include "api/http/message.h"
#include "fleet/fleet_view.h"
#include "gateway/context.h"

namespace portway {

/// "up", "draining" or "lost".
std::string_view state_of(const FleetViewNode& node);

/// As its node has published it, with its number of forwards, and the node.
boost::json::object entry_of(const FleetView& view, const FleetViewInstance& instance);
/// The same of a forward of the instance, with the name that clients connect to.
boost::json::object entry_of(const FleetView& view, const FleetViewInstance& instance,
                             const FleetViewForward& forward);
boost::json::object entry_of(std::string_view id, const FleetViewNode& node);

/// As with_event_id(), of the fleet's events.
Response with_fleet_event_id(const GatewayContext& gateway, Response response);

}  // namespace portway
