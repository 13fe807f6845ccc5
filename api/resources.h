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
#include "control/audit_log.h"
#include "control/control.h"
#include "control/node_process.h"
#include "control/recent_closes.h"
#include "metrics/exporter.h"

namespace portway {

/// What the handlers answer from; all of it outlives them.
struct ApiContext {
  boost::asio::io_context& context;
  Control& control;
  ApiStats& stats;
  const RecentCloses& closes;
  std::function<NextPiece(MetricsScope)> metrics;  // the pieces of a scrape's text (Exporter::scrape)
  NodeProcess& process;
  std::function<void(const AuditEntry&)> audit = nullptr;  // null: nobody wants to know
};

std::vector<Route> instance_routes();
std::vector<Route> forward_routes();
std::vector<Route> all_forwards_routes();
std::vector<Route> connection_routes();
std::vector<Route> diagnosis_routes();
std::vector<Route> event_routes();
std::vector<Route> key_routes();
std::vector<Route> node_routes();
std::vector<Route> metrics_routes();
std::vector<Route> document_routes();
std::vector<Route> usage_routes();

}  // namespace portway
