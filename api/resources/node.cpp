// The node itself: what it is, whether it is alive and ready, which profiles it has.

#include <spdlog/spdlog.h>

#include <boost/json.hpp>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/backup_stream.h"
#include "api/http/problem.h"
#include "api/json.h"
#include "api/resources.h"

namespace portway {
namespace {

Result<Response> list_profiles(const ApiContext& api, const Call&) {
  boost::json::array list;
  for (const auto& [name, profile] : api.control.profiles()) {
    list.push_back(profile_json(name, profile, api.control.fleet_profiles().contains(name)));
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
  boost::json::array faults;
  for (const NodeFault& fault : status.faults) {
    boost::json::object each{
        {"part", to_string(fault.part)}, {"detail", fault.detail}, {"since", to_rfc3339(fault.since)}};
    if (!fault.subject.empty()) each["subject"] = fault.subject;
    faults.push_back(std::move(each));
  }
  json["faults"] = std::move(faults);
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

boost::json::object to_json(const NodeDrain& drain) {
  boost::json::object json{{"draining", drain.since.has_value()}};
  if (drain.since) json["draining_since"] = to_rfc3339(*drain.since);
  return json;
}

Result<Response> process(const ApiContext& api, const Call&) {
  return json_response(
      200, {{"process", to_json(api.process.process_status())}, {"node", to_json(api.control.drain())}});
}

boost::asio::awaitable<Result<Response>> set_draining(const ApiContext& api, const Call& call,
                                                      bool draining) {
  const auto drain = co_await api.control.set_draining(draining, actor_of(call.caller));
  if (!drain) co_return drain.error();
  co_return json_response(200, {{"node", to_json(*drain)}});
}

boost::asio::awaitable<Result<Response>> drain(const ApiContext& api, const Call& call) {
  return set_draining(api, call, true);
}

boost::asio::awaitable<Result<Response>> undrain(const ApiContext& api, const Call& call) {
  return set_draining(api, call, false);
}

Result<Response> upgrade(const ApiContext& api, const Call&) {
  if (auto started = api.process.start_upgrade(); !started) return started.error();
  return json_response(202, {{"process", to_json(api.process.process_status())}});
}

boost::asio::awaitable<Result<Response>> back_up(const ApiContext& api, const Call& call) {
  const auto backup = co_await api.control.back_up();
  if (!backup) co_return backup.error();
  auto response = stream_response(
      api, {.caller = call.caller, .kind = StreamKind::kBackup},
      [&] { return stream_backup(api.context, *backup); }, "application/vnd.sqlite3");
  if (!response) co_return response.error();
  response->stream_bytes = (*backup)->bytes();
  spdlog::info("backup of the store, {} bytes, for key {} of {}, request {}", (*backup)->bytes(),
               to_string(call.caller.key_id), in_quotes(call.caller.owner), call.request.id);
  co_return response;
}

Result<Response> is_alive(const ApiContext&, const Call&) {
  return json_response(200, {{"status", "ok"}});
}

/// Not ready is not a failure for the log: it may be asked every second for as long as it lasts.
Result<Response> is_ready(const ApiContext& api, const Call& call) {
  std::vector<Error> missing = api.control.check_ready();
  if (missing.empty()) {
    boost::json::object ready{{"status", "ready"}};
    // Anybody may ask: the reasons, which name files, are in GET /v1/node.
    boost::json::array faults;
    for (const NodeFault& fault : api.process.process_status().faults) {
      const boost::json::string part(to_string(fault.part));
      if (faults.empty() || faults.back() != boost::json::value(part)) faults.emplace_back(part);
    }
    if (!faults.empty()) ready["faults"] = std::move(faults);
    return json_response(200, ready);
  }
  for (Error& each : missing) {
    // Anybody may ask; the path of the store is for readers of the log only.
    if (each.code == ErrorCode::kStoreUnavailable)
      each.detail = "The disk does not take new promises; the daemon's log has the reason.";
  }
  return problem(missing.front(), call.request.id, missing);
}

Result<Response> version(const ApiContext&, const Call&) {
  return json_response(200, {{"version", PORTWAY_VERSION}});
}

}  // namespace

std::vector<NodeRoute> node_routes() {
  return {
      {"GET", "/profiles", Access::kTenant, {}, list_profiles},
      {"GET", "/v1/info", Access::kTenant, {}, info},
      {"GET", "/v1/node", Access::kAdmin, {}, process},
      {"POST", "/v1/node/upgrade", Access::kAdmin, {}, upgrade},
      {"POST", "/v1/node/drain", Access::kAdmin, {}, drain},
      {"DELETE", "/v1/node/drain", Access::kAdmin, {}, undrain},
      {"POST", "/v1/node/backup", Access::kAdmin, {}, back_up, kHighCost},
      {"GET", "/healthz", Access::kPublic, QueryParameters::ignored(), is_alive},
      {"GET", "/readyz", Access::kPublic, QueryParameters::ignored(), is_ready},
      {"GET", "/version", Access::kPublic, QueryParameters::ignored(), version},
  };
}

}  // namespace portway
