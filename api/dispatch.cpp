#include "api/dispatch.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/url/grammar/error.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/scheme.hpp>
#include <boost/url/url_view.hpp>
#include <chrono>
#include <utility>

#include "api/answers.h"
#include "api/http/problem.h"
#include "api/idempotency.h"

namespace portway {
namespace {

std::vector<Route> all_routes() {
  std::vector<Route> all;
  for (const auto& of_resource : {forward_routes, connection_routes, diagnosis_routes, instance_routes,
                                  key_routes, event_routes, node_routes, metrics_routes, document_routes}) {
    std::ranges::move(of_resource(), std::back_inserter(all));
  }
  return all;
}

bool is_read(const Request& request) {
  return request.method == "GET" || request.method == "HEAD";
}

/// The origin form, "/path?query", and the absolute form, "http://host/path?query", which a server must
/// accept as well (RFC 9112, 3.2.2).
boost::urls::result<boost::urls::url_view> parse_target(std::string_view target) {
  if (target.starts_with('/')) return boost::urls::parse_origin_form(target);
  auto url = boost::urls::parse_absolute_uri(target);
  const bool is_http = url && (url->scheme_id() == boost::urls::scheme::http ||
                               url->scheme_id() == boost::urls::scheme::https);
  if (url && !is_http) return boost::urls::grammar::error::mismatch;
  return url;
}

}  // namespace

Dispatcher::Dispatcher(ApiContext api) : api_(std::move(api)), router_(all_routes()) {}

Response Dispatcher::handle(const Request& request) {
  const auto began = std::chrono::steady_clock::now();
  std::string_view pattern = "other";
  Response response = answer(request, pattern);
  api_.stats.count_request(pattern, response.status, std::chrono::steady_clock::now() - began);
  return response;
}

Response Dispatcher::handle_open_metrics(const Request& request) {
  const auto url = parse_target(request.target);
  if (is_read(request) && url && url->path() == "/metrics") {
    const Route& route = *router_.find("GET", {"metrics"}).route;
    auto query = read_query(*url, route.query);
    if (!query) return fail(request, route.pattern, query.error());
    const Call call{.request = request, .caller = {}, .path = {}, .query = std::move(*query)};
    auto response = route.handle(api_, call);
    return response ? std::move(*response) : fail(request, route.pattern, response.error());
  }
  if (is_read(request) && request.target == "/healthz") return handle(request);
  return problem({ErrorCode::kNotFound, "Only GET /metrics and GET /healthz are served here."}, request.id);
}

Response Dispatcher::answer(const Request& request, std::string_view& pattern) {
  if (request.method == "OPTIONS" && request.target == "*") return no_content();  // RFC 9110, 9.3.7
  const auto url = parse_target(request.target);
  if (!url) {
    return problem(
        {ErrorCode::kMalformedRequest, "The request's target is not a path with an optional query."},
        request.id);
  }
  std::vector<std::string> segments;
  for (const std::string& segment : url->segments()) segments.push_back(segment);
  Router::Match match = router_.find(request.method, segments);
  pattern = match.pattern;
  if (match.allowed.empty()) {
    return problem({ErrorCode::kNotFound, "There is nothing at this path; GET /v1/info describes the node."},
                   request.id);
  }
  if (match.route == nullptr) {
    Response response = no_content();
    if (request.method != "OPTIONS") {
      response =
          problem({ErrorCode::kMethodNotAllowed, fmt::format("Use one of: {}.", match.allowed)}, request.id);
    }
    response.headers.emplace_back("Allow", match.allowed);
    return response;
  }
  auto response = serve(request, *url, match);
  return response ? std::move(*response) : fail(request, pattern, response.error());
}

Response Dispatcher::fail(const Request& request, std::string_view pattern, const Error& error) {
  failures_.report(request.method, pattern, request.id, error);
  return problem(error, request.id);
}

/// By the key; on the Unix socket, without one, by the user at the other end.
Result<Principal> Dispatcher::authenticate(const Request& request) {
  const auto& uids = api_.control.config().api.admin_uids;
  if (request.peer_credentials && !request.headers.contains("authorization") &&
      std::ranges::find(uids, request.peer_credentials->uid) != uids.end()) {
    return api_.control.keys().authenticate_user(request.peer_credentials->uid);
  }
  return api_.control.keys().authenticate(request.header("authorization"));
}

Result<Response> Dispatcher::serve(const Request& request, const boost::urls::url_view& url,
                                   Router::Match& match) {
  const Route& route = *match.route;
  Call call{.request = request, .caller = {}, .path = std::move(match.path), .query = {}};
  if (route.access != Access::kPublic) {
    auto caller = authenticate(request);
    if (!caller) return caller.error();
    if (route.access == Access::kAdmin && caller->role != Role::kAdmin) {
      return Error{ErrorCode::kForbidden, "This call needs an admin key."};
    }
    call.caller = std::move(*caller);
  }
  auto query = read_query(url, route.query);
  if (!query) return query.error();
  call.query = std::move(*query);
  auto response = route.handle(api_, call);
  if (response && route.access != Access::kPublic) response->payer = account_of(call.caller);
  if (response && !is_replay(*response)) response->repeatable = is_read(request);
  return response;
}

}  // namespace portway
