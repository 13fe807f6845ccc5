#include "api/resources.h"

namespace portway {

std::vector<Route> all_node_routes(const ApiContext& api) {
  std::vector<Route> all;
  for (const auto& of_resource :
       {forward_routes, all_forwards_routes, connection_routes, diagnosis_routes, instance_routes, key_routes,
        event_routes, node_routes, metrics_routes, document_routes, usage_routes}) {
    add_routes(all, api, of_resource());
  }
  return all;
}

}  // namespace portway
