#include "api/dispatch.h"

#include <fmt/format.h>

#include <algorithm>
#include <any>
#include <boost/url/grammar/error.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/scheme.hpp>
#include <boost/url/url_view.hpp>
#include <chrono>
#include <optional>
#include <utility>

#include "api/answers.h"
#include "api/gateway_caller.h"
#include "api/http/problem.h"
#include "api/idempotency.h"

namespace portway {
namespace {

using boost::asio::awaitable;

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

std::vector<std::string> segments_of(const boost::urls::url_view& url) {
  std::vector<std::string> segments;
  for (const std::string& segment : url.segments()) segments.push_back(segment);
  return segments;
}

constexpr std::size_t kTargetMax = 512;  // bytes of it in the audit log

std::string client_of(const Request& request) {
  return request.peer_credentials ? "unix" : request.peer.to_string();
}

/// Of a key that is not valid any more, or never was: whose it seems to be.
std::string claimed_key(const Request& request) {
  const auto id = key_id_in(bearer_secret(request.header("authorization")));
  return id ? "not valid: key " + to_string(*id) : "";
}

}  // namespace

Dispatcher::Dispatcher(DispatchContext context, std::vector<Route> routes,
                       std::function<Buckets::Time()> clock)
    : context_(std::move(context)),
      fair_use_(context_.config, context_.stats, std::move(clock)),
      router_(std::move(routes)) {}

awaitable<Response> Dispatcher::handle(const Request& request) {
  const auto began = std::chrono::steady_clock::now();
  std::string_view pattern = "other";
  Response response = co_await answer(request, pattern);
  context_.stats.count_request(pattern, response.status, std::chrono::steady_clock::now() - began);
  co_return response;
}

awaitable<Response> Dispatcher::handle_open_metrics(const Request& request) {
  const auto url = parse_target(request.target);
  if (request.is_read() && url && url->path() == "/metrics") {
    const Route& route = *router_.find("GET", {"metrics"}).route;
    auto query = read_query(*url, route.query);
    if (!query) co_return fail(request, route.pattern, query.error());
    const Call call{.request = request, .caller = {}, .path = {}, .query = std::move(*query)};
    auto response = std::get<ReadHandler>(route.handle)(call);
    if (!response) co_return fail(request, route.pattern, response.error());
    co_return std::move(*response);
  }
  if (request.is_read() && request.target == "/healthz") co_return co_await handle(request);
  co_return problem({ErrorCode::kNotFound, "Only GET /metrics and GET /healthz are served here."},
                    request.id);
}

awaitable<Response> Dispatcher::answer(const Request& request, std::string_view& pattern) {
  if (request.method == "OPTIONS" && request.target == "*") co_return no_content();  // RFC 9110, 9.3.7
  const auto url = parse_target(request.target);
  if (!url) {
    co_return problem(
        {ErrorCode::kMalformedRequest, "The request's target is not a path with an optional query."},
        request.id);
  }
  Router::Match match = router_.find(request.method, segments_of(*url));
  pattern = match.pattern;
  if (match.route == nullptr) co_return unrouted(request, match);
  std::optional<Principal> caller;
  auto response = co_await serve(request, *url, match, caller);
  if (caller) audit(request, *match.route, *caller, response);
  Response answer = response ? std::move(*response) : fail(request, pattern, response.error(), caller);
  if (caller) fair_use_.settle(*caller, answer);
  co_return answer;
}

/// The answer where there is no route for the path, or none with this method.
Response Dispatcher::unrouted(const Request& request, const Router::Match& match) {
  if (match.allowed.empty()) {
    return problem({ErrorCode::kNotFound, "There is nothing at this path; GET /v1/info describes the node."},
                   request.id);
  }
  Response response = no_content();
  if (request.method != "OPTIONS") {
    response =
        problem({ErrorCode::kMethodNotAllowed, fmt::format("Use one of: {}.", match.allowed)}, request.id);
  }
  response.headers.emplace_back("Allow", match.allowed);
  return response;
}

RequestAdmission Dispatcher::admit(const Request& request) {
  const auto began = std::chrono::steady_clock::now();
  const auto url = parse_target(request.target);
  if (!url) return {};  // handle() says what is wrong with it
  const Router::Match match = router_.find(request.method, segments_of(*url));
  const auto refuse = [&](Response response) -> RequestAdmission {
    context_.stats.count_request(match.pattern, response.status, std::chrono::steady_clock::now() - began);
    return {.refusal = std::move(response)};
  };
  if (match.route == nullptr) return refuse(unrouted(request, match));
  if (match.route->access == Access::kPublic) return {};
  std::optional<Principal> caller;
  if (auto let = let_in(request, *match.route, caller); !let) {
    if (caller) audit(request, *match.route, *caller, let.error());
    Response refusal = fail(request, match.pattern, let.error(), caller);
    if (caller) fair_use_.settle(*caller, refusal);
    return refuse(std::move(refusal));
  }
  RequestAdmission admission{.payer = account_of(*caller)};
  admission.pass = std::move(*caller);
  return admission;
}

Response Dispatcher::fail(const Request& request, std::string_view pattern, const Error& error,
                          const std::optional<Principal>& caller) {
  failures_.report(
      request.method, pattern,
      {.id = request.id, .actor = caller ? who(*caller) : claimed_key(request), .client = client_of(request)},
      error);
  return problem(error, request.id);
}

/// Who is not known is in no audit log: anybody could fill it.
void Dispatcher::audit(const Request& request, const Route& route, const Principal& caller,
                       const Result<Response>& response) const {
  if (!context_.audit || request.is_read()) return;
  AuditEntry entry{.time = now(),
                   .actor = who(caller),
                   .owner = caller.owner,
                   .key_id = caller.key_id.is_nil() ? "" : to_string(caller.key_id),
                   .client = client_of(request),
                   .action = fmt::format("{} {}", request.method, route.pattern),
                   .target = request.target.substr(0, kTargetMax),
                   .status = response ? response->status : http_status(response.error().code),
                   .result = response ? "ok" : std::string(to_string(response.error().code)),
                   .request_id = request.id};
  if (response) {
    for (const auto& [name, value] : response->headers) {
      if (name == "Location") entry.created = value;
    }
  }
  context_.audit(entry);
}

/// Whether the caller may make this request, which it has paid for then. `caller` is set as soon as it is
/// known. What admit() has found is not asked again.
Result<void> Dispatcher::let_in(const Request& request, const Route& route,
                                std::optional<Principal>& caller) {
  const auto* known = std::any_cast<Principal>(&request.pass);
  if (known != nullptr && context_.keys.holds(*known)) {  // its key may have ended while the body came
    caller = *known;
    return {};
  }
  auto authenticated = authenticate(request);
  if (!authenticated) return authenticated.error();
  caller = std::move(*authenticated);
  // First of all: what is refused for another reason costs the node as much.
  if (auto charged = fair_use_.charge(*caller, cost_of(route)); !charged) return charged;
  return check_access(route, *caller);
}

/// By a gateway's word, or by the key; on the Unix socket, without one, by the user at the other end.
Result<Principal> Dispatcher::authenticate(const Request& request) {
  if (auto named = caller_by_gateway(request, context_.keys)) return std::move(*named);
  const bool has_key = request.headers.contains("authorization");
  const auto& uids = admin_uids_of(context_.config, request.listener);
  if (request.peer_credentials && !has_key &&
      std::ranges::find(uids, request.peer_credentials->uid) != uids.end()) {
    return admin_user(request.peer_credentials->uid);
  }
  auto caller = context_.keys.authenticate(request.header("authorization"));
  if (caller || !has_key) return caller;
  if (context_.keys_pending && context_.keys_pending()) {
    // Not counted as a wrong key: it may be a good one, and many clients may come from one address.
    return Error{ErrorCode::kStoreUnavailable,
                 "The keys of the fleet have not been read from etcd yet; try again in a moment."};
  }
  return fair_use_.refuse_wrong_key(request, caller.error());
}

awaitable<Result<Response>> Dispatcher::serve(const Request& request, const boost::urls::url_view& url,
                                              Router::Match& match, std::optional<Principal>& caller) {
  const Route& route = *match.route;
  Call call{.request = request, .caller = {}, .path = std::move(match.path), .query = {}};
  if (route.access != Access::kPublic) {
    if (auto let = let_in(request, route, caller); !let) co_return let.error();
    caller->request_id = request.id;
    call.caller = *caller;
  }
  auto query = read_query(url, route.query);
  if (!query) co_return query.error();
  call.query = std::move(*query);
  Result<Response> response = Error();
  if (const auto* read = std::get_if<ReadHandler>(&route.handle)) {
    response = (*read)(call);
  } else {
    response = co_await std::get<ChangeHandler>(route.handle)(call);
  }
  if (response && route.access != Access::kPublic) response->payer = account_of(call.caller);
  if (response && !is_replay(*response)) response->repeatable = request.is_read();
  co_return response;
}

}  // namespace portway
