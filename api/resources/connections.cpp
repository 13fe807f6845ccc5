// The connections of a forward, and the last ones that closed on the node.

#include <boost/json.hpp>
#include <charconv>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/json.h"
#include "api/resources.h"
#include "control/access_log.h"

namespace portway {
namespace {

/// Not 0, which stands for none.
std::optional<ConnectionId> parse_connection_id(std::string_view text) {
  ConnectionId id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size() || id == 0) return std::nullopt;
  return id;
}

enum class State { kLive, kClosed };

const auto kConnectionCursor = cursor_parameter<ConnectionId>(parse_connection_id);
const auto kState = choice_parameter<State>("state", {{"live", State::kLive}, {"closed", State::kClosed}});

/// The last ones of the node that closed, which is all that is remembered: no pages.
boost::json::array closed_json(const ApiContext& api, const Call& call,
                               const std::function<bool(const CloseRecord&)>& wanted) {
  boost::json::array list;
  for (const CloseRecord* record : api.closes.latest(call.query[kPageLimit], wanted)) {
    list.push_back(boost::json::parse(to_json_line(*record)));
  }
  return list;
}

Result<Response> list_connections(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  const ForwardId id = found->forward.id;
  boost::json::object body;
  if (call.query[kState] == State::kClosed) {
    const bool all = call.caller.role == Role::kAdmin;
    body["connections"] = closed_json(api, call, [&](const CloseRecord& record) {
      return record.forward->route.id == id && (all || !record.is_former_owners());
    });
    return json_response(200, body);
  }
  const auto live = api.control.connections(id, call.query[kConnectionCursor], call.query[kPageLimit]);
  if (!live) return live.error();
  boost::json::array list;
  for (const LiveConnection& connection : live->connections) list.push_back(to_json(connection));
  if (live->more) body["next_cursor"] = std::to_string(live->connections.back().id);
  body["connections"] = std::move(list);
  return json_response(200, body);
}

Result<Response> list_recent(const ApiContext& api, const Call& call) {
  return json_response(200,
                       {{"connections", closed_json(api, call, [](const CloseRecord&) { return true; })}});
}

Result<Response> end_all(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  if (auto ended = api.control.end_connections(found->forward.id, 0); !ended) return ended.error();
  return no_content();
}

Result<Response> end_one(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  const Error unknown{ErrorCode::kNotFound, "The forward has no connection with this id; it may have ended."};
  const auto connection = parse_connection_id(call.path[2]);
  if (!connection) return unknown;
  const auto ended = api.control.end_connections(found->forward.id, *connection);
  if (!ended) return ended.error();
  if (*ended == 0) return unknown;
  return no_content();
}

}  // namespace

std::vector<NodeRoute> connection_routes() {
  constexpr std::string_view kOfForward = "/instances/{id}/port-forwards/{forward_id}/connections";
  constexpr std::string_view kOne = "/instances/{id}/port-forwards/{forward_id}/connections/{connection_id}";
  return {
      {"GET", kOfForward, Access::kTenant, {kPageLimit, kConnectionCursor, kState}, list_connections},
      {"DELETE", kOfForward, Access::kTenant, {}, end_all},
      {"DELETE", kOne, Access::kTenant, {}, end_one},
      {"GET", "/connections/recent", Access::kAdmin, {kPageLimit}, list_recent},
  };
}

}  // namespace portway
