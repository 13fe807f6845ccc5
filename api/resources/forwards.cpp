// /instances/{id}/port-forwards: creating forwards, changing them in place, ending them.

#include <fmt/format.h>

#include <boost/json.hpp>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/forward_fields.h"
#include "api/idempotency.h"
#include "api/json.h"
#include "api/preconditions.h"
#include "api/resources.h"
#include "api/selector.h"

namespace portway {
namespace {

using boost::asio::awaitable;

const auto kCursor = cursor_parameter<Uuid>(parse_uuid);
const auto kConnections = choice_parameter<ClosePolicy>(
    "connections",
    {{"keep", ClosePolicy::kKeep}, {"drain", ClosePolicy::kDrain}, {"reset", ClosePolicy::kReset}});
const auto kDryRun = choice_parameter<bool>("dry_run", {{"false", false}, {"true", true}});

Response one_forward(const ApiContext& api, unsigned status, const ForwardStatus& forward) {
  Response response = json_response(
      status, {{"port_forward", to_json(forward)}, {"hostname", api.control.config().node.public_hostname}});
  response.headers.emplace_back("ETag", etag_of(forward.forward));
  return response;
}

// --- Creating.

using AnswerOf = std::function<Response(std::span<const ForwardStatus>)>;

/// `answer_of` makes the 201. With an Idempotency-Key it is stored in the transaction that creates the
/// forwards.
awaitable<Result<Response>> create(const ApiContext& api, const Call& call, ForwardList list,
                                   AnswerOf answer_of) {
  const auto asked = idempotent_request(call);
  if (!asked) co_return asked.error();
  ChangeLocks::Held lock;
  if (*asked) {
    lock = co_await api.control.lock_answer((*asked)->scope, (*asked)->key);
    auto replay = co_await find_replay(api, call, **asked);
    if (!replay) co_return replay.error();
    if (*replay) co_return std::move(**replay);
  }
  Response response;
  const auto remember = [&](std::span<const ForwardStatus> created) -> std::optional<IdempotentAnswer> {
    response = answer_of(created);
    if (!*asked) return std::nullopt;
    return with_answer(**asked, response);
  };
  const auto created =
      co_await api.control.create_forwards(call.caller, call.path[0], std::move(list), remember);
  if (!created) co_return created.error();
  co_return response;
}

awaitable<Result<Response>> create_forward(const ApiContext& api, const Call& call) {
  auto spec = read_forward(call.request, api.control.keys().now());
  if (!spec) co_return spec.error();
  const AnswerOf answer_of = [&](std::span<const ForwardStatus> created) {
    Response response = one_forward(api, 201, created.front());
    response.headers.emplace_back("Location", fmt::format("/instances/{}/port-forwards/{}", call.path[0],
                                                          to_string(created.front().forward.id)));
    return response;
  };
  ForwardList one{.specs = {std::move(*spec)}, .entries = {}};
  co_return co_await create(api, call, std::move(one), answer_of);
}

awaitable<Result<Response>> create_forwards(const ApiContext& api, const Call& call) {
  auto specs = read_forwards(call.request, 1, api.control.keys().now());
  if (!specs) co_return specs.error();
  const AnswerOf answer_of = [&api](std::span<const ForwardStatus> created) {
    boost::json::array list;
    for (const ForwardStatus& status : created) list.push_back(to_json(status));
    return json_response(
        201, {{"port_forwards", std::move(list)}, {"hostname", api.control.config().node.public_hostname}});
  };
  co_return co_await create(api, call, std::move(*specs), answer_of);
}

// --- All that an instance should have.

awaitable<Result<Response>> set_forwards(const ApiContext& api, const Call& call) {
  auto specs = read_forwards(call.request, 0, api.control.keys().now());
  if (!specs) co_return specs.error();
  const bool dry_run = call.query[kDryRun];
  const auto set = co_await api.control.set_forwards(call.caller, call.path[0], std::move(*specs), dry_run,
                                                     call.query[kConnections]);
  if (!set) co_return set.error();
  const auto list_of = [](const std::vector<ForwardStatus>& statuses) {
    boost::json::array list;
    for (const ForwardStatus& status : statuses) list.push_back(to_json(status));
    return list;
  };
  boost::json::object body{{"dry_run", dry_run}, {"created", list_of(set->created)}};
  if (dry_run) body["to_create"] = boost::json::array(set->to_create.begin(), set->to_create.end());
  body["updated"] = list_of(set->updated);
  body["unchanged"] = list_of(set->unchanged);
  body["removed"] = list_of(set->removed);
  body["hostname"] = api.control.config().node.public_hostname;
  co_return json_response(200, body);
}

// --- Existing ones.

Result<Response> list_forwards(const ApiContext& api, const Call& call) {
  const auto instance = api.control.find_instance(call.caller, call.path[0]);
  if (!instance) return instance.error();
  const auto limit = call.query[kPageLimit];
  const auto admits = selected_by(call.query);
  boost::json::array list;
  std::string next;
  for (const Forward* forward : api.control.list_forwards(call.path[0], call.query[kCursor])) {
    if (!admits(*forward)) continue;
    if (list.size() == limit) {
      next = std::string(list.back().at("id").as_string());
      break;
    }
    list.push_back(to_json(api.control.status_of(*forward)));
  }
  boost::json::object body;
  body["port_forwards"] = std::move(list);
  body["hostname"] = api.control.config().node.public_hostname;
  if (!next.empty()) body["next_cursor"] = next;
  return with_event_id(api, json_response(200, body));
}

Result<Response> get_forward(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  return with_event_id(api, one_forward(api, 200, *found));
}

awaitable<Result<Response>> update_forward(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) co_return found.error();
  const auto change = read_forward_change(call.request, api.control.keys().now());
  if (!change) co_return change.error();
  const auto precondition = forward_precondition(call);
  if (!precondition) co_return precondition.error();
  const auto updated =
      co_await api.control.update_forward(call.caller, call.path[0], call.path[1], *change, *precondition);
  if (!updated) co_return updated.error();
  co_return one_forward(api, 200, *updated);
}

awaitable<Result<Response>> delete_forward(const ApiContext& api, const Call& call) {
  const ClosePolicy policy = call.query[kConnections];
  const auto precondition = forward_precondition(call);
  if (!precondition) co_return precondition.error();
  auto deleted =
      co_await api.control.delete_forward(call.caller, call.path[0], call.path[1], policy, *precondition);
  if (!deleted) co_return deleted.error();
  co_return no_content();
}

awaitable<Result<Response>> delete_forwards(const ApiContext& api, const Call& call) {
  const auto admits = selected_by(call.query);
  const auto deleted =
      co_await api.control.delete_forwards(call.caller, call.path[0], admits, call.query[kConnections]);
  if (!deleted) co_return deleted.error();
  boost::json::array ids;
  for (const ForwardId& id : *deleted) ids.emplace_back(to_string(id));
  co_return json_response(200, {{"deleted", std::move(ids)}});
}

}  // namespace

std::vector<NodeRoute> forward_routes() {
  return {
      {"POST", "/instances/{id}/port-forwards", Access::kTenant, {}, create_forward},
      {"POST", "/instances/{id}/port-forwards:batch", Access::kTenant, {}, create_forwards, kHighCost},
      {"PUT",
       "/instances/{id}/port-forwards",
       Access::kTenant,
       {kDryRun, kConnections},
       set_forwards,
       kHighCost},
      {"GET",
       "/instances/{id}/port-forwards",
       Access::kTenant,
       {kLabel, kMetadata, kPageLimit, kCursor},
       list_forwards},
      {"DELETE",
       "/instances/{id}/port-forwards",
       Access::kTenant,
       {kLabel, kMetadata, kConnections},
       delete_forwards,
       kHighCost},
      {"GET", "/instances/{id}/port-forwards/{forward_id}", Access::kTenant, {}, get_forward},
      {"PATCH", "/instances/{id}/port-forwards/{forward_id}", Access::kTenant, {}, update_forward},
      {"DELETE",
       "/instances/{id}/port-forwards/{forward_id}",
       Access::kTenant,
       {kConnections},
       delete_forward},
  };
}

}  // namespace portway
