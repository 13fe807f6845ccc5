// The gateway itself: what it is, whether it is alive and ready, its metrics, and the profiles of its fleet.

#include <boost/json.hpp>
#include <string>

#include "api/answers.h"
#include "gateway/entries.h"
#include "gateway/relay.h"
#include "gateway/resources.h"
#include "metrics/exporter.h"

namespace portway {
namespace {

Result<Response> gateway_info(const GatewayContext& gateway, const Call& call) {
  const FollowerStats stats = gateway.fleet.stats();
  const FleetView& view = gateway.fleet.view();
  boost::json::object body{{"hostname", gateway.config.node.public_hostname},
                           {"version", PORTWAY_VERSION},
                           {"role", "gateway"},
                           {"warm", stats.warm}};
  if (stats.warm) body["true_at"] = to_rfc3339(stats.true_at);
  mark_stale(gateway, body);
  if (call.caller.role != Role::kAdmin) return json_response(200, body);
  boost::json::object nodes{{"up", 0}, {"draining", 0}, {"lost", 0}};
  for (const auto& [id, node] : view.nodes()) {
    boost::json::value& count = nodes[state_of(node)];
    count = count.to_number<std::int64_t>() + 1;
  }
  body["nodes"] = std::move(nodes);
  body["instances"] = view.instance_count();
  body["port_forwards"] = view.forward_count();
  if (!stats.error.empty()) body["etcd_error"] = stats.error;
  return json_response(200, body);
}

Result<Response> gateway_is_alive(const GatewayContext&, const Call&) {
  return json_response(200, {{"status", "ok"}});
}

/// Ready once the fleet and its keys were read, also while etcd is away.
Result<Response> gateway_is_ready(const GatewayContext& gateway, const Call&) {
  if (auto warm = check_warm(gateway); !warm) return warm.error();
  if (!gateway.keys.stats().warm) {
    return Error{ErrorCode::kStoreUnavailable,
                 "This gateway has not read the fleet's keys from etcd yet; its log has the reason."};
  }
  boost::json::object ready{{"status", "ready"}};
  mark_stale(gateway, ready);
  return json_response(200, ready);
}

Result<Response> gateway_version(const GatewayContext&, const Call&) {
  return json_response(200, {{"version", PORTWAY_VERSION}});
}

Result<Response> list_profiles_of_fleet(const GatewayContext& gateway, const Call&) {
  return list_shared_profiles(gateway.profiles);
}

boost::asio::awaitable<Result<Response>> put_profile_of_fleet(const GatewayContext& gateway,
                                                              const Call& call) {
  co_return co_await put_shared_profile(gateway.profiles, call);
}

boost::asio::awaitable<Result<Response>> delete_profile_of_fleet(const GatewayContext& gateway,
                                                                 const Call& call) {
  co_return co_await delete_shared_profile(gateway.profiles, call);
}

Result<Response> gateway_metrics(const GatewayContext& gateway, const Call&) {
  return Response{.status = 200,
                  .body = gateway.metrics(),
                  .content_type = std::string(Exporter::kContentType),
                  .headers = {}};
}

}  // namespace

std::vector<GatewayRoute> gateway_routes() {
  return {
      {"GET", "/v1/info", Access::kTenant, {}, gateway_info},
      {"GET", "/profiles", Access::kTenant, {}, list_profiles_of_fleet},
      {"PUT", "/profiles/{name}", Access::kAdmin, {}, put_profile_of_fleet},
      {"DELETE", "/profiles/{name}", Access::kAdmin, {}, delete_profile_of_fleet},
      {"GET", "/healthz", Access::kPublic, QueryParameters::ignored(), gateway_is_alive},
      {"GET", "/readyz", Access::kPublic, QueryParameters::ignored(), gateway_is_ready},
      {"GET", "/version", Access::kPublic, QueryParameters::ignored(), gateway_version},
      {"GET", "/metrics", Access::kMetrics, QueryParameters::ignored(), gateway_metrics, kHighCost},
  };
}

}  // namespace portway
