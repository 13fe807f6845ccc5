#include "api/resources.h"

namespace portway {
namespace {

constexpr auto kNodeTables = {forward_routes,   all_forwards_routes, connection_routes,
                              diagnosis_routes, instance_routes,     event_routes,
                              node_routes,      metrics_routes,      usage_routes};

}  // namespace

std::vector<RouteLine> node_route_lines() {
  std::vector<RouteLine> all;
  for (const auto& of_resource : kNodeTables) add_lines(all, of_resource());
  add_lines(all, key_routes());
  add_lines(all, document_routes());
  return all;
}

std::vector<Route> all_node_routes(const ApiContext& api) {
  std::vector<Route> all;
  for (const auto& of_resource : kNodeTables) add_routes(all, api, of_resource());
  add_routes(all, api.keys, key_routes());
  add_routes(all, kNoContext, document_routes());
  return all;
}

}  // namespace portway
