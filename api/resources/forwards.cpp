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
#include "api/idempotency.h"
#include "api/json.h"
#include "api/json_fields.h"
#include "api/resources.h"

namespace portway {
namespace {

constexpr std::size_t kBatchMax = 1000;
constexpr std::int64_t kConnectionsLimitMax = 1'000'000;
constexpr std::int64_t kBytesLimitMax = 1'000'000'000'000;  // 8 Tbit/s

const auto kLabel = text_parameter("label");
const auto kCursor = cursor_parameter<Uuid>(parse_uuid);
const auto kConnections = choice_parameter<ClosePolicy>(
    "connections",
    {{"keep", ClosePolicy::kKeep}, {"drain", ClosePolicy::kDrain}, {"reset", ClosePolicy::kReset}});

// --- Bodies.

/// Replaces the limits that are given, and returns which these are; null removes one.
LimitSet read_limits(JsonFields& fields, TrafficLimits& limits) {
  LimitSet given;
  const auto is_given = [&](Limit limit) {
    return given[static_cast<std::size_t>(limit)] = fields.given(to_string(limit));
  };
  if (is_given(Limit::kAllowedCidrs)) {
    limits.allowed_cidrs = fields.networks(to_string(Limit::kAllowedCidrs), kAllowedCidrsMax);
  }
  const auto read = [&](Limit name, std::int64_t most, auto& limit) {
    if (!is_given(name)) return;
    limit = static_cast<std::remove_reference_t<decltype(limit)>>(
        fields.integer_or_none(to_string(name), 1, most).value_or(0));
  };
  read(Limit::kMaxConnections, kConnectionsLimitMax, limits.max_connections);
  read(Limit::kMaxConnectionsPerSource, kConnectionsLimitMax, limits.max_connections_per_source);
  read(Limit::kMaxNewConnectionsPerSecond, kConnectionsLimitMax, limits.max_new_connections_per_second);
  read(Limit::kMaxBytesPerSecond, kBytesLimitMax, limits.max_bytes_per_second);
  return given;
}

SourceMode read_source_mode(JsonFields& fields) {
  const std::string text = fields.string_or("source_mode", "auto");
  if (const auto mode = parse_source_mode(text)) return *mode;
  fields.refuse("source_mode", "source_mode must be auto, transparent, plain or proxy_v2.");
  return SourceMode::kAuto;
}

/// 0 if it is not given: whether it has to be depends on the target, which may be the instance's.
std::uint16_t read_guest_port(JsonFields& fields, const std::optional<Target>& target) {
  constexpr auto kCode = ErrorCode::kInvalidPort;
  const bool required = target && target->is_tcp();
  if (required) return static_cast<std::uint16_t>(fields.integer("guest_port", 1, 65535, kCode));
  return static_cast<std::uint16_t>(fields.integer_or_none("guest_port", 1, 65535, kCode).value_or(0));
}

ForwardSpec read_spec(JsonFields& fields) {
  ForwardSpec spec;
  (void)fields.given("guest_port");  // comes first in the list of known fields
  spec.target = fields.target("target", true);
  spec.guest_port = read_guest_port(fields, spec.target);
  spec.protocol = fields.string_or("protocol", "tcp");
  spec.label = fields.string_or("label", "");
  if (const auto port = fields.integer_or_none("host_port", 1, 65535, ErrorCode::kInvalidPort)) {
    spec.host_port = static_cast<std::uint16_t>(*port);
  }
  read_limits(fields, spec.limits);
  spec.source_mode = read_source_mode(fields);
  return spec;
}

Response one_forward(const ApiContext& api, unsigned status, const ForwardStatus& forward) {
  return json_response(
      status, {{"port_forward", to_json(forward)}, {"hostname", api.control.config().node.public_hostname}});
}

// --- Creating.

/// `answer_of` makes the 201. With an Idempotency-Key it is stored in the transaction that creates the
/// forwards.
Result<Response> create(const ApiContext& api, const Call& call, std::span<const ForwardSpec> specs,
                        const std::function<Response(std::span<const ForwardStatus>)>& answer_of) {
  const auto asked = idempotent_request(call);
  if (!asked) return asked.error();
  if (*asked) {
    auto replay = find_replay(api, call, **asked);
    if (!replay) return replay.error();
    if (*replay) return std::move(**replay);
  }
  auto prepared = api.control.prepare_forwards(call.caller, call.path[0], specs);
  if (!prepared) return prepared.error();
  Response response = answer_of(prepared->statuses());
  const auto remembered = *asked ? std::optional(with_answer(**asked, response)) : std::nullopt;
  const auto committed =
      api.control.commit_forwards(std::move(*prepared), remembered ? &*remembered : nullptr);
  if (!committed) return committed.error();
  return response;
}

Result<Response> create_forward(const ApiContext& api, const Call& call) {
  JsonFields fields(call.request);
  const ForwardSpec spec = read_spec(fields);
  if (auto error = fields.finish()) return *error;
  return create(api, call, {&spec, 1}, [&](std::span<const ForwardStatus> created) {
    Response response = one_forward(api, 201, created.front());
    response.headers.emplace_back("Location", fmt::format("/instances/{}/port-forwards/{}", call.path[0],
                                                          to_string(created.front().forward.id)));
    return response;
  });
}

Result<Response> create_forwards(const ApiContext& api, const Call& call) {
  std::vector<ForwardSpec> specs;
  JsonFields fields(call.request);
  fields.each("port_forwards", 1, kBatchMax, [&specs](JsonFields each) {
    specs.push_back(read_spec(each));
    return each.finish();
  });
  if (auto error = fields.finish()) return *error;
  return create(api, call, specs, [&api](std::span<const ForwardStatus> created) {
    boost::json::array list;
    for (const ForwardStatus& status : created) list.push_back(to_json(status));
    return json_response(
        201, {{"port_forwards", std::move(list)}, {"hostname", api.control.config().node.public_hostname}});
  });
}

// --- Existing ones.

Result<Response> list_forwards(const ApiContext& api, const Call& call) {
  const auto instance = api.control.find_instance(call.caller, call.path[0]);
  if (!instance) return instance.error();
  const auto limit = call.query[kPageLimit];
  const std::optional<std::string> label = call.query[kLabel];
  boost::json::array list;
  std::string next;
  for (const Forward* forward : api.control.list_forwards(call.path[0], call.query[kCursor])) {
    if (label && forward->label != *label) continue;
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
  return json_response(200, body);
}

Result<Response> get_forward(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  return one_forward(api, 200, *found);
}

Result<Response> update_forward(const ApiContext& api, const Call& call) {
  const auto found = api.control.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  JsonFields fields(call.request);
  ForwardChange change{.label = std::nullopt, .limits = found->forward.limits, .given = {}};
  if (fields.given("label")) change.label = fields.string_or("label", "");
  change.given = read_limits(fields, *change.limits);
  if (fields.given("source_mode")) change.source_mode = read_source_mode(fields);
  if (auto error = fields.finish()) return *error;
  const auto updated = api.control.update_forward(call.caller, call.path[0], call.path[1], change);
  if (!updated) return updated.error();
  return one_forward(api, 200, *updated);
}

Result<Response> delete_forward(const ApiContext& api, const Call& call) {
  const ClosePolicy policy = call.query[kConnections];
  auto deleted = api.control.delete_forward(call.caller, call.path[0], call.path[1], policy);
  if (!deleted) return deleted.error();
  return no_content();
}

}  // namespace

std::vector<Route> forward_routes() {
  return {
      {"POST", "/instances/{id}/port-forwards", Access::kTenant, {}, create_forward},
      {"POST", "/instances/{id}/port-forwards:batch", Access::kTenant, {}, create_forwards},
      {"GET", "/instances/{id}/port-forwards", Access::kTenant, {kLabel, kPageLimit, kCursor}, list_forwards},
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
