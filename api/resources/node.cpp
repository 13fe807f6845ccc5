// The node itself: what it is, whether it is alive and ready, which profiles it has.

#include <boost/json.hpp>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/http/problem.h"
#include "api/resources.h"

namespace portway {
namespace {

Result<Response> list_profiles(const ApiContext& api, const Call&) {
  boost::json::array list;
  for (const auto& [name, profile] : api.control.config().profiles) {
    list.push_back({{"name", name},
                    {"max_forwarded_ports", profile.max_forwarded_ports},
                    {"allow_host_port", profile.allow_host_port}});
  }
  return json_response(200, {{"profiles", std::move(list)}});
}

Result<Response> info(const ApiContext& api, const Call&) {
  const NodeInfo node = api.control.info();
  boost::json::object body;
  body["hostname"] = node.hostname;
  body["version"] = PORTWAY_VERSION;
  body["io_backend"] = node.io_backend;
  if (!node.io_backend_reason.empty()) body["io_backend_reason"] = node.io_backend_reason;
  body["workers"] = node.workers;
  body["source_mode"] = source_mode(node.source);
  if (!node.source_reason.empty()) body["source_mode_reason"] = node.source_reason;
  if (!node.return_path.empty()) body["return_path"] = node.return_path;
  body["source_guard"] = node.has_source_guard;
  body["instances"] = node.instances;
  body["port_forwards"] = node.forwards;
  body["ports"] = {
      {"range", to_string(node.ports)}, {"allocated", node.ports_used}, {"available", node.ports_free}};
  return json_response(200, body);
}

boost::json::object to_json(const ProcessStatus& status) {
  const HandoverStats& handover = status.handover;
  boost::json::object json{{"pid", status.pid},
                           {"version", PORTWAY_VERSION},
                           {"started_at", to_rfc3339(status.started)},
                           {"handover_timeout_s", status.handover_timeout.count()},
                           {"upgrading", status.upgrading},
                           {"upgrades_failed", handover.upgrades_failed}};
  if (!status.upgrade_failure.empty()) json["upgrade_failure"] = status.upgrade_failure;
  if (!handover.taken_over) return json;
  boost::json::object reset;
  for (std::size_t i = 0; i < kLostReasons; ++i) {
    if (handover.lost[i] != 0) reset[to_string(static_cast<Lost>(i))] = handover.lost[i];
  }
  json["taken_over_from"] = {{"end", handover.from_living ? "upgrade" : "crash"},
                             {"connections", handover.found},
                             {"adopted", handover.adopted},
                             {"reset", std::move(reset)},
                             {"descriptors_left_over", handover.left_over},
                             {"seconds", handover.seconds}};
  return json;
}

Result<Response> process(const ApiContext& api, const Call&) {
  return json_response(200, {{"process", to_json(api.process.process_status())}});
}

Result<Response> upgrade(const ApiContext& api, const Call&) {
  if (auto started = api.process.start_upgrade(); !started) return started.error();
  return json_response(202, {{"process", to_json(api.process.process_status())}});
}

Result<Response> is_alive(const ApiContext&, const Call&) {
  return json_response(200, {{"status", "ok"}});
}

/// Not ready is not a failure for the log: it may be asked every second for as long as it lasts.
Result<Response> is_ready(const ApiContext& api, const Call& call) {
  const auto ready = api.control.check_ready();
  if (ready) return json_response(200, {{"status", "ready"}});
  Error error = ready.error();
  // Anybody may ask; the path of the store is for readers of the log only.
  if (error.code == ErrorCode::kStoreUnavailable)
    error.detail = "The disk does not take new promises; the daemon's log has the reason.";
  return problem(error, call.request.id);
}

Result<Response> version(const ApiContext&, const Call&) {
  return json_response(200, {{"version", PORTWAY_VERSION}});
}

}  // namespace

std::vector<Route> node_routes() {
  return {
      {"GET", "/profiles", Access::kTenant, {}, list_profiles},
      {"GET", "/v1/info", Access::kTenant, {}, info},
      {"GET", "/v1/node", Access::kAdmin, {}, process},
      {"POST", "/v1/node/upgrade", Access::kAdmin, {}, upgrade},
      {"GET", "/healthz", Access::kPublic, QueryParameters::ignored(), is_alive},
      {"GET", "/readyz", Access::kPublic, QueryParameters::ignored(), is_ready},
      {"GET", "/version", Access::kPublic, QueryParameters::ignored(), version},
  };
}

}  // namespace portway
