// The resources of the API, one file each in api/resources: its routes, and a handler for each.
//
// An endpoint is a line in its resource's table of routes, and a function. The contract, api/openapi.yaml,
// documents it; a test compares both. Belongs to the control thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <vector>

#include "api/http/message.h"
#include "api/router.h"
#include "control/api_stats.h"
#include "control/control.h"
#include "control/key_admin.h"
#include "control/node_process.h"
#include "control/recent_closes.h"
#include "metrics/exporter.h"

namespace portway {

/// What the handlers answer from; all of it outlives them.
struct ApiContext {
  boost::asio::io_context& context;
  Control& control;
  KeyAdmin& keys;
  ApiStats& stats;
  const RecentCloses& closes;
  std::function<NextPiece(MetricsScope)> metrics;  // the pieces of a scrape's text (Exporter::scrape)
  NodeProcess& process;
};

using NodeRoute = RouteOf<const ApiContext>;
/// Of whoever administers keys: also a gateway.
using KeyRoute = RouteOf<KeyAdmin>;
/// Answered from what the program is.
struct NoContext {};
using DocumentRoute = RouteOf<const NoContext>;
inline constexpr NoContext kNoContext;

std::vector<NodeRoute> instance_routes();
std::vector<NodeRoute> forward_routes();
std::vector<NodeRoute> all_forwards_routes();
std::vector<NodeRoute> connection_routes();
std::vector<NodeRoute> diagnosis_routes();
std::vector<NodeRoute> event_routes();
std::vector<KeyRoute> key_routes();
std::vector<NodeRoute> node_routes();
std::vector<NodeRoute> metrics_routes();
std::vector<DocumentRoute> document_routes();
std::vector<NodeRoute> usage_routes();

/// All of a node's.
std::vector<RouteLine> node_route_lines();
/// The same, with their handlers. `api` outlives them.
std::vector<Route> all_node_routes(const ApiContext& api);

}  // namespace portway
