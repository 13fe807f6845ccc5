// Sends a call on to the node that it is about, for its caller, and gives the node's answer back.
//
// The node decides: the gateway has checked the caller's key, and names the caller (api/caller_header.h). A
// call is sent twice only if that is safe (gateway/node_client.h): what only reads, and a POST with an
// Idempotency-Key, which the node knows again.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/json/object.hpp>
#include <string>
#include <string_view>

#include "api/router.h"
#include "base/error.h"
#include "fleet/fleet_view.h"
#include "gateway/context.h"

namespace portway {

/// kStoreUnavailable until the fleet was read once.
Result<void> check_warm(const GatewayContext& gateway);

/// kStoreUnavailable while etcd may know more than this gateway.
Result<void> check_certain(const GatewayContext& gateway);

/// The instance that a call names, if its caller sees it. kNotFound; the errors of both checks.
Result<const FleetViewInstance*> find_instance(const GatewayContext& gateway, const Principal& caller,
                                               std::string_view id);

/// To the node with the instance of the path's first segment; the target stays as it is.
boost::asio::awaitable<Result<Response>> relay_to_owner(const GatewayContext& gateway, const Call& call);

/// To the node of the path's first segment, /nodes/NODE/...; the target there is the rest.
boost::asio::awaitable<Result<Response>> relay_to_node(const GatewayContext& gateway, const Call& call);

/// To this node, with another target. kNotFound, with `field`, if there is no such node; kNodeUnreachable.
boost::asio::awaitable<Result<Response>> relay(const GatewayContext& gateway, std::string node_id,
                                               const Call& call, std::string target);

/// Where the node's API is. kNotFound; kNodeUnreachable: it is lost.
Result<std::string> url_of_node(const GatewayContext& gateway, std::string_view node_id);

/// The call for a node, by this target there, in the name of its caller.
NodeRequest request_for_node(const Call& call, std::string target);

/// The target for a node of a call about /nodes/NODE/...: what is behind the node, as it came.
std::string target_at_node(std::string_view target);

/// The path and query of a target, which may be in the absolute form: as they came, but for the parameter
/// `without`.
std::string path_and_query(std::string_view target, std::string_view without = {});

/// A body of an answer from the view; "stale" if etcd cannot be reached, or is being read again.
void mark_stale(const GatewayContext& gateway, boost::json::object& body);

}  // namespace portway
