#include "gateway/relay.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/url.hpp>
#include <cctype>
#include <optional>
#include <utility>

#include "api/caller_header.h"
#include "api/ticketed_stream.h"
#include "control/not_found.h"

namespace portway {
namespace {

using boost::asio::awaitable;
using std::chrono::seconds;

// Of a node that is not there: about the time in which a lease ends, or a daemon starts again.
constexpr seconds kRetryLost(10);
constexpr seconds kRetryBusy(1);
constexpr seconds kRetryStale(2);

/// What a node needs of a request; the rest is about the connection to the gateway.
constexpr auto kPassedOn = std::to_array<std::string_view>(
    {"accept", "content-type", "idempotency-key", "if-match", "if-none-match", "last-event-id"});

/// What a node's answer has for the caller; the rest is about the connection to the node, or the gateway's to
/// say.
constexpr auto kGivenBack =
    std::to_array<std::string_view>({"allow", "cache-control", "content-security-policy", "etag",
                                     "idempotency-replayed", "location", "referrer-policy", "retry-after"});

std::string in_lower_case(std::string_view name) {
  std::string lower(name);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

/// A node takes this gateway for nobody, or does not understand whom it names. That is no fault of the
/// caller.
bool refuses_gateway(const NodeAnswer& answer) {
  if (answer.status == 401) return true;  // the gateway has checked the key, and named the caller
  if (answer.status != 403 && answer.status != 400) return false;
  boost::system::error_code error;
  const auto problem = boost::json::parse(answer.body, error);
  if (error || !problem.is_object()) return false;
  const auto* field = problem.get_object().if_contains("field");
  return field != nullptr && field->is_string() && in_lower_case(field->get_string()) == kCallerHeader;
}

Error refused_by(std::string_view node_id) {
  return {
      .code = ErrorCode::kNodeUnreachable,
      .detail = fmt::format("Node {} does not take this gateway's word, so nothing was changed: the name in "
                            "gateway.node_tls_certificate must be in fleet.gateways of the node.",
                            node_id),
      .retry_after = kRetryLost};
}

/// Only an operator sees why: it names addresses and files.
Error error_of(std::string_view node_id, const Call& call, const NodeError& error) {
  const bool is_admin = call.caller.role == Role::kAdmin;
  const std::string why = is_admin ? fmt::format(" ({})", error.detail) : "";
  if (error.kind == NodeErrorKind::kBusy) {
    return {
        .code = ErrorCode::kResourceExhausted,
        .detail = fmt::format("Node {} has too many requests of this gateway under way; try again.", node_id),
        .retry_after = kRetryBusy};
  }
  const bool is_unreachable =
      error.kind == NodeErrorKind::kUnreachable || error.kind == NodeErrorKind::kTimeout;
  if (is_unreachable && (error.not_sent || call.request.is_read())) {
    return {.code = ErrorCode::kNodeUnreachable,
            .detail = fmt::format("Node {} cannot be reached by this gateway{}; nothing was changed.",
                                  node_id, why),
            .retry_after = kRetryLost};
  }
  return {
      .code = ErrorCode::kNodeUnreachable,
      .detail = fmt::format("Node {} did not answer to the end{}: perhaps it has done what was asked. Read "
                            "before you repeat it; a POST of a port forward can be repeated with the same "
                            "Idempotency-Key.",
                            node_id, why),
      .retry_after = kRetryBusy};
}

/// A node knows such a POST again (api/idempotency.h).
bool can_be_repeated(const Call& call, std::string_view target) {
  const std::string_view path = target.substr(0, target.find('?'));
  return call.request.method == "POST" && call.request.headers.contains("idempotency-key") &&
         (path.ends_with("/port-forwards") || path.ends_with("/port-forwards:batch"));
}

boost::urls::url origin_form(std::string_view target) {
  if (target.starts_with('/')) return boost::urls::url(boost::urls::parse_origin_form(target).value());
  boost::urls::url url(boost::urls::parse_absolute_uri(target).value());  // the dispatcher has parsed it
  url.remove_scheme();
  url.remove_authority();
  return url;
}

std::string text_of(const boost::urls::url& url) {
  std::string text(url.encoded_path());
  if (url.has_query()) text += "?" + std::string(url.encoded_query());
  return text;
}

/// `event_id`: of the fleet, before the node was asked.
Result<Response> response_of(const GatewayContext& gateway, std::string_view node_id, const Call& call,
                             std::string event_id, NodeAnswer answer) {
  Response response{.status = answer.status,
                    .body = std::move(answer.body),
                    .content_type = std::string(answer.header("content-type")),
                    .headers = {}};
  bool had_event_id = false;
  for (auto& [name, value] : answer.headers) {
    const std::string lower = in_lower_case(name);
    had_event_id |= lower == "portway-event-id";
    if (std::ranges::find(kGivenBack, lower) != kGivenBack.end())
      response.headers.emplace_back(std::move(name), std::move(value));
  }
  response.headers.emplace_back("Portway-Node", node_id);
  // A node's ids are not the gateway's. This one is of a time before the answer: its reader may see again
  // what it knows, and misses nothing.
  if (had_event_id) response.headers.emplace_back("Portway-Event-Id", std::move(event_id));
  const bool is_json_object = response.content_type == "application/json" && response.body.starts_with("{\"");
  if (call.request.is_read() && response.status == 200 && is_json_object && gateway.fleet.stats().stale)
    response.body.insert(1, "\"stale\":true,");
  if (answer.stream == nullptr) return response;
  auto stream = open_stream(gateway.streams, {.caller = call.caller, .kind = StreamKind::kRelayed},
                            [&]() -> Result<std::shared_ptr<BodyStream>> { return answer.stream; });
  if (!stream) return stream.error();
  response.stream = std::move(*stream);
  response.stream_bytes = answer.stream_bytes;
  return response;
}

}  // namespace

NodeRequest request_for_node(const Call& call, std::string target) {
  const bool repeatable = call.request.is_read() || can_be_repeated(call, target);
  NodeRequest request{.method = call.request.method == "HEAD" ? "GET" : call.request.method,
                      .target = std::move(target),
                      .body = call.request.body,
                      .repeatable = repeatable};
  for (const std::string_view name : kPassedOn) {
    if (const auto value = call.request.header(name); !value.empty())
      request.headers.emplace_back(name, value);
  }
  request.headers.emplace_back("X-Request-Id", call.request.id);
  request.headers.emplace_back(kCallerHeader, caller_header(call.caller));
  return request;
}

Result<std::string> url_of_node(const GatewayContext& gateway, std::string_view node_id) {
  const auto& nodes = gateway.fleet.view().nodes();
  const auto node = nodes.find(node_id);
  if (node == nodes.end()) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("There is no node {}; GET /nodes lists them.", in_quotes(node_id))};
  }
  if (!node->second.alive) {
    return Error{.code = ErrorCode::kNodeUnreachable,
                 .detail = fmt::format("Node {} is lost: etcd does not hear of it. What it serves may go on, "
                                       "but cannot be asked or changed until it is back.",
                                       node_id),
                 .retry_after = kRetryLost};
  }
  const std::string& address = node->second.registered->record.address;
  if (address.starts_with("https://")) return address;
  return Error{.code = ErrorCode::kNodeUnreachable,
               .detail = fmt::format(
                   "Node {} has registered no https:// address, and a gateway uses no other: give it a "
                   "listener with a certificate and a client_ca, or set its fleet.address.",
                   node_id),
               .retry_after = kRetryLost};
}

std::string path_and_query(std::string_view target, std::string_view without) {
  boost::urls::url url = origin_form(target);
  if (without.empty() || !url.params().contains(without)) return text_of(url);
  url.params().erase(without);
  if (url.encoded_query().empty()) url.remove_query();
  return text_of(url);
}

std::string target_at_node(std::string_view target) {
  boost::urls::url url = origin_form(target);
  auto segments = url.encoded_segments();
  const bool is_versioned = *url.segments().begin() == "v1";
  segments.erase(segments.begin(), std::next(segments.begin(), is_versioned ? 3 : 2));
  return text_of(url);
}

Result<const FleetViewInstance*> find_instance(const GatewayContext& gateway, const Principal& caller,
                                               std::string_view id) {
  if (auto warm = check_warm(gateway); !warm) return warm.error();
  const FleetViewInstance* instance = gateway.fleet.view().find_instance(id);
  if (instance != nullptr && caller.sees(instance->owner, instance->id)) return instance;
  if (auto certain = check_certain(gateway); !certain) return certain.error();
  return no_such_instance();
}

Result<void> check_warm(const GatewayContext& gateway) {
  const FollowerStats stats = gateway.fleet.stats();
  if (stats.warm) return {};
  return Error{ErrorCode::kStoreUnavailable,
               "This gateway has not read the fleet from etcd yet; its log has the reason."};
}

Result<void> check_certain(const GatewayContext& gateway) {
  if (!gateway.fleet.stats().stale) return {};
  return Error{.code = ErrorCode::kStoreUnavailable,
               .detail =
                   "etcd is away or is being read again, and this gateway does not know this instance, or "
                   "not for certain. Try again in a moment.",
               .retry_after = kRetryStale};
}

awaitable<Result<Response>> relay(const GatewayContext& gateway, std::string node_id, const Call& call,
                                  std::string target) {
  const auto url = url_of_node(gateway, node_id);
  if (!url) co_return url.error();
  NodeRequest request = request_for_node(call, std::move(target));
  std::string event_id = gateway.events.last_id();
  auto answer = co_await gateway.nodes.send(*url, std::move(request));
  if (!answer) co_return error_of(node_id, call, answer.error());
  if (refuses_gateway(*answer)) co_return refused_by(node_id);
  co_return response_of(gateway, node_id, call, std::move(event_id), std::move(*answer));
}

awaitable<Result<Response>> relay_to_owner(const GatewayContext& gateway, const Call& call) {
  const auto instance = find_instance(gateway, call.caller, call.path[0]);
  if (!instance) co_return instance.error();
  co_return co_await relay(gateway, (*instance)->node, call, path_and_query(call.request.target));
}

awaitable<Result<Response>> relay_to_node(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) co_return warm.error();
  co_return co_await relay(gateway, call.path[0], call, target_at_node(call.request.target));
}

void mark_stale(const GatewayContext& gateway, boost::json::object& body) {
  if (gateway.fleet.stats().stale) body["stale"] = true;
}

}  // namespace portway
