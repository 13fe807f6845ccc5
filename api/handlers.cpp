#include "api/handlers.h"

#include <fmt/format.h>
#include <net/if.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/json.hpp>
#include <boost/url/grammar/error.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/scheme.hpp>
#include <boost/url/url_view.hpp>
#include <charconv>
#include <chrono>
#include <functional>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "api/capture.h"
#include "api/check.h"
#include "api/event_json.h"
#include "api/http/gzip.h"
#include "api/http/problem.h"
#include "api/json.h"
#include "api/openapi.h"
#include "api/ticketed_stream.h"
#include "api/ui.h"
#include "control/access_log.h"

namespace portway {
namespace {

constexpr std::size_t kPageDefault = 100;
constexpr std::size_t kPageMax = 1000;
constexpr std::size_t kBatchMax = 1000;
constexpr std::int64_t kCaptureSecondsMax = 60;
constexpr std::int64_t kCaptureBytesMax = 16 * 1024 * 1024;
constexpr std::size_t kIdempotencyKeyMax = 255;
constexpr std::string_view kReplayed = "Idempotency-Replayed";
constexpr std::size_t kZippedPiece = 8 * 1024;  // at least, but for the last one
constexpr std::int64_t kConnectionsLimitMax = 1'000'000;
constexpr std::int64_t kBytesLimitMax = 1'000'000'000'000;  // 8 Tbit/s

/// What a list asks for.
struct Page {
  std::size_t limit = kPageDefault;
  std::string after;  // the id that the last page ended with; empty: from the start
};

/// The fields `guest_address` and `guest_addresses` of a request: one of them, or both where they agree, as
/// in an answer.
Result<void> take_guest_addresses(Instance& asked, const std::optional<std::string>& address,
                                  const std::vector<IpAddress>& addresses) {
  if (!address) return set_guest_addresses(asked, addresses);
  const auto parsed = parse_address(*address);
  if (!parsed) {
    return Error{ErrorCode::kInvalidAddress,
                 fmt::format("guest_address {} must be an IPv4 or IPv6 address.", in_quotes(*address)),
                 "guest_address"};
  }
  if (addresses.empty()) return set_guest_addresses(asked, std::span(&*parsed, 1));
  if (std::ranges::find(addresses, *parsed) == addresses.end()) {
    return Error{
        ErrorCode::kInvalidAddress,
        fmt::format("guest_address {} is none of guest_addresses; leave it out, or name it there too.",
                    in_quotes(*address)),
        "guest_address"};
  }
  return set_guest_addresses(asked, addresses);
}

Error invalid_query(std::string_view name, std::string detail) {
  return {ErrorCode::kInvalidRequest, std::move(detail), std::string(name)};
}

Result<void> only_query(const Call& call, std::initializer_list<std::string_view> known) {
  for (const auto& [name, value] : call.query) {
    if (std::ranges::find(known, std::string_view(name)) != known.end()) continue;
    return Error{ErrorCode::kUnknownField,
                 fmt::format("There is no query parameter {}{}{}.", in_quotes(name),
                             known.size() == 0 ? " here" : "; known are: ", fmt::join(known, ", ")),
                 name};
  }
  return {};
}

std::string_view query_or(const Call& call, std::string_view name, std::string_view fallback) {
  const auto found = call.query.find(name);
  return found == call.query.end() ? fallback : std::string_view(found->second);
}

Result<Page> page_of(const Call& call) {
  Page page{.limit = kPageDefault, .after = std::string(query_or(call, "cursor", ""))};
  const std::string_view text = query_or(call, "limit", "");
  if (text.empty()) return page;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), page.limit);
  if (error != std::errc() || end != text.data() + text.size() || page.limit < 1 || page.limit > kPageMax) {
    return invalid_query("limit", fmt::format("limit must be a whole number from 1 to {}.", kPageMax));
  }
  return page;
}

Result<std::int64_t> number_in_query(const Call& call, std::string_view name, std::int64_t fallback,
                                     std::int64_t least, std::int64_t most) {
  const std::string_view text = query_or(call, name, "");
  if (text.empty()) return fallback;
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < least || number > most) {
    return invalid_query(name, fmt::format("{} must be a whole number from {} to {}.", name, least, most));
  }
  return number;
}

Result<ClosePolicy> close_policy(const Call& call) {
  const std::string_view text = query_or(call, "connections", "keep");
  if (text == "keep") return ClosePolicy::kKeep;
  if (text == "drain") return ClosePolicy::kDrain;
  if (text == "reset") return ClosePolicy::kReset;
  return invalid_query("connections", "connections must be keep (the default), drain or reset.");
}

/// The session that is meant; nothing where the query does not say.
Result<std::optional<Uuid>> session_of(const Call& call) {
  const auto found = call.query.find("session_id");
  if (found == call.query.end()) return std::optional<Uuid>();
  const auto session = parse_uuid(found->second);
  if (!session) return invalid_query("session_id", "session_id must be the UUID of a session.");
  return session;
}

/// Whose idempotency keys these are: those of one owner's keys are one set.
std::string scope_of(const Principal& caller) {
  return fmt::format("{}:{}", to_string(caller.role), caller.owner);
}

/// The ids of the forwards that the answer tells of; none where it makes no sense.
std::vector<std::optional<Uuid>> forwards_in(const IdempotentAnswer& answer) {
  std::vector<std::optional<Uuid>> ids;
  const auto add = [&ids](const boost::json::value& forward) {
    const auto* object = forward.if_object();
    const auto* id = object == nullptr ? nullptr : object->if_contains("id");
    ids.push_back(id != nullptr && id->is_string() ? parse_uuid(id->get_string()) : std::nullopt);
  };
  boost::system::error_code error;
  const boost::json::value body = boost::json::parse(answer.body, error);
  if (error || !body.is_object()) return ids;
  if (const auto* one = body.get_object().if_contains("port_forward")) add(*one);
  const auto* list = body.get_object().if_contains("port_forwards");
  if (list != nullptr && list->is_array()) std::ranges::for_each(list->get_array(), add);
  return ids;
}

Response replayed(const IdempotentAnswer& answer) {
  Response response{.status = 201, .body = answer.body, .headers = {{std::string(kReplayed), "true"}}};
  if (!answer.location.empty()) response.headers.emplace_back("Location", answer.location);
  return response;
}

bool replays(const Response& response) {
  return std::ranges::any_of(response.headers, [](const auto& each) { return each.first == kReplayed; });
}

/// Replaces the limits that are given, and returns which these are; null takes one away.
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
  fields.refuse("source_mode", "source_mode is none of auto, transparent, plain, proxy_v2.");
  return SourceMode::kAuto;
}

ForwardSpec read_spec(JsonFields& fields) {
  ForwardSpec spec;
  spec.guest_port =
      static_cast<std::uint16_t>(fields.integer("guest_port", 1, 65535, ErrorCode::kInvalidPort));
  spec.protocol = fields.string_or("protocol", "tcp");
  spec.label = fields.string_or("label", "");
  if (const auto port = fields.integer_or_none("host_port", 1, 65535, ErrorCode::kInvalidPort)) {
    spec.host_port = static_cast<std::uint16_t>(*port);
  }
  read_limits(fields, spec.limits);
  spec.source_mode = read_source_mode(fields);
  return spec;
}

/// The origin form, "/path?query", and the absolute form, "http://host/path?query", which a server must take
/// as well (RFC 9112, 3.2.2).
boost::urls::result<boost::urls::url_view> parse_target(std::string_view target) {
  if (target.starts_with('/')) return boost::urls::parse_origin_form(target);
  auto url = boost::urls::parse_absolute_uri(target);
  const bool is_http = url && (url->scheme_id() == boost::urls::scheme::http ||
                               url->scheme_id() == boost::urls::scheme::https);
  if (url && !is_http) return boost::urls::grammar::error::mismatch;
  return url;
}

Result<void> read_query(const boost::urls::url_view& url, Call& call) {
  for (const auto& parameter : url.params()) {
    const auto [entry, is_new] = call.query.emplace(parameter.key, parameter.value);
    if (!is_new)
      return invalid_query(entry->first, fmt::format("{} is given twice.", in_quotes(entry->first)));
  }
  return {};
}

Result<MetricsScope> metrics_scope(const Call& call) {
  const std::string_view text = query_or(call, "scope", "all");
  if (text == "all") return MetricsScope::kAll;
  if (text == "node") return MetricsScope::kNode;
  if (text == "forwards") return MetricsScope::kForwards;
  return Error{ErrorCode::kMalformedRequest, "scope must be all (the default), node or forwards.", "scope"};
}

Result<Response> ui_file(std::string_view name) {
  for (const UiFile& file : ui_files()) {
    if (file.name != name) continue;
    return Response{.status = 200,
                    .body = {},
                    .content_type = std::string(file.content_type),
                    .headers = {{"Content-Security-Policy", std::string(kUiPolicy)},
                                {"X-Content-Type-Options", "nosniff"},
                                {"Referrer-Policy", "no-referrer"},
                                {"Cache-Control", "no-cache"}},
                    .lasting_body = file.body};
  }
  return Error{ErrorCode::kNotFound, "The page has no such file; it begins at /ui."};
}

NextPiece zipped(NextPiece pieces, std::shared_ptr<Gzip> zip) {
  return [pieces = std::move(pieces), zip = std::move(zip), ended = false]() mutable {
    std::string out;
    while (!ended && out.size() < kZippedPiece) {
      const std::string piece = pieces();
      ended = piece.empty();
      out += zip->add(piece);
    }
    return out;
  };
}

Response no_content() {
  return {.status = 204, .body = {}, .content_type = {}, .headers = {}};
}

Error no_such_connection() {
  return {ErrorCode::kNotFound, "The forward has no connection with this id; it may have ended."};
}

/// Not 0, which stands for none.
std::optional<ConnectionId> parse_connection_id(std::string_view text) {
  ConnectionId id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size() || id == 0) return std::nullopt;
  return id;
}

/// Of this session's tap; where that had no carrier yet, of the one that has its name now. 0: none.
std::int32_t link_of(const Instance& instance) {
  if (instance.tap_index != 0) return instance.tap_index;
  return static_cast<std::int32_t>(::if_nametoindex(instance.tap.c_str()));
}

StreamSubject subject_of(const Instance& instance, std::int32_t tap_index = 0) {
  return {.instance_id = instance.id, .session_id = instance.session_id, .tap_index = tap_index};
}

Error no_such_path() {
  return {ErrorCode::kNotFound, "There is nothing at this path; GET /v1/info says what this is."};
}

}  // namespace

Api::Api(const Parts& parts, Metrics metrics)
    : context_(parts.context),
      control_(parts.control),
      dataplane_(parts.dataplane),
      stats_(parts.stats),
      closes_(parts.closes),
      metrics_(std::move(metrics)),
      router_(make_routes()) {}

std::vector<Route> Api::make_routes() {
  const auto by = [this](Result<Response> (Api::*handler)(const Call&)) {
    return [this, handler](const Call& call) { return (this->*handler)(call); };
  };
  const auto healthy = [](const Call&) -> Result<Response> { return json_response(200, {{"status", "ok"}}); };
  const auto version = [](const Call&) -> Result<Response> {
    return json_response(200, {{"version", PORTWAY_VERSION}});
  };
  const auto page = [](const Call& call) { return ui_file(call.path.empty() ? "index.html" : call.path[0]); };
  const auto contract = [](const Call&) -> Result<Response> {
    return Response{.status = 200, .body = {}, .headers = {}, .lasting_body = openapi_json()};
  };
  return {
      {"POST", "/instances/{id}/port-forwards", Access::kTenant, by(&Api::create_forward)},
      {"POST", "/instances/{id}/port-forwards:batch", Access::kTenant, by(&Api::create_forwards)},
      {"GET", "/instances/{id}/port-forwards", Access::kTenant, by(&Api::list_forwards)},
      {"GET", "/instances/{id}/port-forwards/{forward_id}", Access::kTenant, by(&Api::get_forward)},
      {"PATCH", "/instances/{id}/port-forwards/{forward_id}", Access::kTenant, by(&Api::update_forward)},
      {"DELETE", "/instances/{id}/port-forwards/{forward_id}", Access::kTenant, by(&Api::delete_forward)},
      {"GET", "/instances/{id}/port-forwards/{forward_id}/connections", Access::kTenant,
       by(&Api::list_connections)},
      {"DELETE", "/instances/{id}/port-forwards/{forward_id}/connections", Access::kTenant,
       by(&Api::delete_connections)},
      {"DELETE", "/instances/{id}/port-forwards/{forward_id}/connections/{connection_id}", Access::kTenant,
       by(&Api::delete_connection)},
      {"GET", "/instances/{id}/port-forwards/{forward_id}/check", Access::kTenant, by(&Api::check)},
      {"POST", "/instances/{id}/port-forwards/{forward_id}/capture", Access::kAdmin, by(&Api::capture)},
      {"GET", "/connections/recent", Access::kAdmin, by(&Api::recent_connections)},
      {"GET", "/instances", Access::kTenant, by(&Api::list_instances)},
      {"GET", "/instances/{id}", Access::kTenant, by(&Api::get_instance)},
      {"PUT", "/instances/{id}", Access::kAdmin, by(&Api::put_instance)},
      {"DELETE", "/instances/{id}", Access::kAdmin, by(&Api::delete_instance)},
      {"POST", "/instances/{id}/stop", Access::kAdmin, by(&Api::stop_instance)},
      {"GET", "/api-keys", Access::kAdmin, by(&Api::list_keys)},
      {"POST", "/api-keys", Access::kAdmin, by(&Api::create_key)},
      {"DELETE", "/api-keys/{id}", Access::kAdmin, by(&Api::delete_key)},
      {"GET", "/profiles", Access::kTenant, by(&Api::list_profiles)},
      {"GET", "/events", Access::kTenant, by(&Api::follow_events)},
      {"GET", "/v1/info", Access::kTenant, by(&Api::info)},
      {"GET", "/metrics", Access::kAdmin, by(&Api::metrics)},
      {"GET", "/healthz", Access::kPublic, healthy},
      {"GET", "/readyz", Access::kPublic, by(&Api::ready)},
      {"GET", "/version", Access::kPublic, version},
      {"GET", "/openapi.json", Access::kPublic, contract},
      {"GET", "/ui", Access::kPublic, page},
      {"GET", "/ui/{file}", Access::kPublic, page},
  };
}

// --- From a request to a handler.

Response Api::handle(const Request& request) {
  const auto began = std::chrono::steady_clock::now();
  std::string_view pattern = "other";
  Response response = answer(request, pattern);
  stats_.count_request(pattern, response.status, std::chrono::steady_clock::now() - began);
  return response;
}

Response Api::handle_open_metrics(const Request& request) {
  const bool reads = request.method == "GET" || request.method == "HEAD";
  const auto url = parse_target(request.target);
  if (reads && url && url->path() == "/metrics") {
    Call call{.request = request, .caller = {}, .path = {}, .query = {}};
    if (const auto query = read_query(*url, call); !query) return problem(query.error(), request.id);
    auto response = metrics(call);
    return response ? std::move(*response) : fail(request, "/metrics", response.error());
  }
  if (reads && request.target == "/healthz") return handle(request);
  return problem({ErrorCode::kNotFound, "Here are only GET /metrics and GET /healthz."}, request.id);
}

Response Api::answer(const Request& request, std::string_view& pattern) {
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
  if (match.allowed.empty()) return problem(no_such_path(), request.id);
  if (match.route == nullptr) {
    Response response = no_content();
    if (request.method != "OPTIONS") {
      response =
          problem({ErrorCode::kMethodNotAllowed, fmt::format("Use one of: {}.", match.allowed)}, request.id);
    }
    response.headers.emplace_back("Allow", match.allowed);
    return response;
  }
  auto response = dispatch(request, *match.route, std::move(match.path));
  return response ? std::move(*response) : fail(request, pattern, response.error());
}

Response Api::fail(const Request& request, std::string_view pattern, const Error& error) {
  failures_.tell(request.method, pattern, request.id, error);
  return problem(error, request.id);
}

/// By its key; on the Unix socket, without one, by its user.
Result<Principal> Api::authenticate(const Request& request) {
  const auto& uids = control_.config().api.admin_uids;
  if (request.peer_credentials && !request.headers.contains("authorization") &&
      std::ranges::find(uids, request.peer_credentials->uid) != uids.end()) {
    return control_.keys().authenticate_user(request.peer_credentials->uid);
  }
  return control_.keys().authenticate(request.header("authorization"));
}

Result<Response> Api::dispatch(const Request& request, const Route& route, std::vector<std::string> path) {
  Call call{.request = request, .caller = {}, .path = std::move(path), .query = {}};
  if (route.access != Access::kPublic) {
    auto caller = authenticate(request);
    if (!caller) return caller.error();
    if (route.access == Access::kAdmin && caller->role != Role::kAdmin) {
      return Error{ErrorCode::kForbidden, "This call needs an admin key."};
    }
    call.caller = std::move(*caller);
  }
  const auto url = parse_target(request.target);  // it parsed before
  if (const auto query = read_query(*url, call); !query) return query.error();
  auto response = route.handle(call);
  if (response && route.access != Access::kPublic) response->payer = scope_of(call.caller);
  if (response && !replays(*response))
    response->repeatable = request.method == "GET" || request.method == "HEAD";
  return response;
}

// --- Forwards.

Response Api::one_forward(unsigned status, const ForwardStatus& forward) const {
  return json_response(
      status, {{"port_forward", to_json(forward)}, {"hostname", control_.config().node.public_hostname}});
}

Result<Response> Api::create_forward(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  JsonFields fields(call.request);
  const ForwardSpec spec = read_spec(fields);
  if (auto error = fields.finish()) return *error;
  return create(call, {&spec, 1}, [this, &call](std::span<const ForwardStatus> made) {
    Response response = one_forward(201, made.front());
    response.headers.emplace_back("Location", fmt::format("/instances/{}/port-forwards/{}", call.path[0],
                                                          to_string(made.front().forward.id)));
    return response;
  });
}

Result<Response> Api::create_forwards(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  std::vector<ForwardSpec> specs;
  JsonFields fields(call.request);
  fields.each("port_forwards", 1, kBatchMax, [&specs](JsonFields each) {
    specs.push_back(read_spec(each));
    return each.finish();
  });
  if (auto error = fields.finish()) return *error;
  return create(call, specs, [this](std::span<const ForwardStatus> made) {
    boost::json::array list;
    for (const ForwardStatus& status : made) list.push_back(to_json(status));
    return json_response(
        201, {{"port_forwards", std::move(list)}, {"hostname", control_.config().node.public_hostname}});
  });
}

/// An answer may be given again as long as all that it promises is there, in the same session.
Result<void> Api::check_answer(const IdempotentAnswer& answer, const Instance& instance) const {
  const std::vector<std::optional<Uuid>> ids = forwards_in(answer);
  const auto is_there = [&](const std::optional<Uuid>& id) {
    const Forward* forward = id ? control_.registry().find_forward(*id) : nullptr;
    return forward != nullptr && forward->instance_id == instance.id &&
           forward->session_id == instance.session_id;
  };
  const auto gone = std::ranges::count_if(ids, std::not_fn(is_there));
  if (gone == 0 && !ids.empty()) return {};
  return Error{
      ErrorCode::kIdempotentAnswerGone,
      fmt::format("Of the {} port forwards that this Idempotency-Key made, {} have ended since: they "
                  "were deleted, or their session is over. Use a new Idempotency-Key to make new ones.",
                  ids.size(), gone),
      "idempotency-key"};
}

/// With an Idempotency-Key, the same request gets the same answer again, also after a crash.
Result<Response> Api::create(const Call& call, std::span<const ForwardSpec> specs,
                             const std::function<Response(std::span<const ForwardStatus>)>& answer) {
  const auto asked = idempotent_request(call);
  if (!asked) return asked.error();
  if (*asked) {
    // Before anything else: an instance may be another owner's by now.
    const auto instance = control_.find_instance(call.caller, call.path[0]);
    if (!instance) return instance.error();
    const auto known = control_.find_answer((*asked)->scope, (*asked)->key);
    if (!known) return known.error();
    if (*known && (*known)->request_sha256 == (*asked)->request_sha256) {
      if (auto holds = check_answer(**known, **instance); !holds) return holds.error();
      return replayed(**known);
    }
    if (*known) {
      return Error{ErrorCode::kIdempotencyKeyReused,
                   "This Idempotency-Key came with another request before; make a new one for each request.",
                   "idempotency-key"};
    }
  }
  Response response;
  Control::Remember remember;
  if (*asked) {
    remember = [&](std::span<const ForwardStatus> made) {
      IdempotentAnswer kept = **asked;
      response = answer(made);
      kept.body = response.body;
      for (const auto& [name, value] : response.headers) {
        if (name == "Location") kept.location = value;
      }
      return kept;
    };
  }
  const auto made = control_.create_forwards(call.caller, call.path[0], specs, remember);
  if (!made) return made.error();
  return *asked ? std::move(response) : answer(*made);
}

/// What the Idempotency-Key of this request would be remembered with; nothing where it has none.
Result<std::optional<IdempotentAnswer>> Api::idempotent_request(const Call& call) const {
  const auto header = call.request.headers.find("idempotency-key");
  if (header == call.request.headers.end()) return std::optional<IdempotentAnswer>();
  const std::string& key = header->second;
  if (key.empty() || key.size() > kIdempotencyKeyMax ||
      !std::ranges::all_of(key, [](char c) { return ' ' <= c && c <= '~'; })) {
    return Error{ErrorCode::kInvalidRequest,
                 fmt::format("Idempotency-Key must be 1 to {} printable ASCII characters; a random UUID is a "
                             "good one.",
                             kIdempotencyKeyMax),
                 "idempotency-key"};
  }
  return std::optional(IdempotentAnswer{
      .scope = scope_of(call.caller),
      .key = key,
      .request_sha256 =
          sha256(fmt::format("{}\n{}\n{}", call.request.method, call.request.target, call.request.body)),
      .location = {},
      .body = {},
      .created_at = now()});
}

Result<Response> Api::update_forward(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  const auto found = control_.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  JsonFields fields(call.request);
  ForwardChange change{.label = std::nullopt, .limits = found->forward.limits, .given = {}};
  if (fields.given("label")) change.label = fields.string_or("label", "");
  change.given = read_limits(fields, *change.limits);
  if (fields.given("source_mode")) change.source_mode = read_source_mode(fields);
  if (auto error = fields.finish()) return *error;
  const auto updated = control_.update_forward(call.caller, call.path[0], call.path[1], change);
  if (!updated) return updated.error();
  return one_forward(200, *updated);
}

Result<Response> Api::list_forwards(const Call& call) {
  if (auto known = only_query(call, {"label", "limit", "cursor"}); !known) return known.error();
  const auto page = page_of(call);
  if (!page) return page.error();
  const auto after = page->after.empty() ? Uuid{} : parse_uuid(page->after);
  if (!after) return invalid_query("cursor", "cursor must be the next_cursor of an earlier answer.");
  const auto instance = control_.find_instance(call.caller, call.path[0]);
  if (!instance) return instance.error();

  const auto label = call.query.find("label");
  boost::json::array list;
  std::string next;
  for (const Forward* forward : control_.registry().forwards(call.path[0], *after)) {
    if (label != call.query.end() && forward->label != label->second) continue;
    if (list.size() == page->limit) {
      next = std::string(list.back().at("id").as_string());
      break;
    }
    list.push_back(to_json(control_.status_of(*forward)));
  }
  boost::json::object body;
  body["port_forwards"] = std::move(list);
  body["hostname"] = control_.config().node.public_hostname;
  if (!next.empty()) body["next_cursor"] = next;
  return json_response(200, body);
}

Result<Response> Api::get_forward(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  const auto found = control_.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  return one_forward(200, *found);
}

Result<Response> Api::delete_forward(const Call& call) {
  if (auto known = only_query(call, {"connections"}); !known) return known.error();
  const auto policy = close_policy(call);
  if (!policy) return policy.error();
  if (auto deleted = control_.delete_forward(call.caller, call.path[0], call.path[1], *policy); !deleted) {
    return deleted.error();
  }
  return no_content();
}

// --- Connections.

Result<Response> Api::list_connections(const Call& call) {
  if (auto known = only_query(call, {"state", "limit", "cursor"}); !known) return known.error();
  const auto page = page_of(call);
  if (!page) return page.error();
  const auto after = page->after.empty() ? ConnectionId{0} : parse_connection_id(page->after);
  if (!after) return invalid_query("cursor", "cursor must be the next_cursor of an earlier answer.");
  const std::string_view state = query_or(call, "state", "live");
  if (state != "live" && state != "closed")
    return invalid_query("state", "state must be live (the default) or closed.");
  const auto found = control_.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  const ForwardId id = found->forward.id;

  boost::json::array list;
  boost::json::object body;
  if (state == "closed") {
    // Only the last ones of the node are remembered: no pages.
    const bool all = call.caller.role == Role::kAdmin;
    const auto wanted = [&](const CloseRecord& record) {
      return record.forward->route.id == id && (all || !record.is_former_owners());
    };
    for (const CloseRecord* record : closes_.latest(page->limit, wanted))
      list.push_back(boost::json::parse(to_json_line(*record)));
  } else {
    const auto live = dataplane_.connections(id, *after, page->limit);
    if (!live) return live.error();
    for (const LiveConnection& connection : live->connections) list.push_back(to_json(connection));
    if (live->more) body["next_cursor"] = std::to_string(live->connections.back().id);
  }
  body["connections"] = std::move(list);
  return json_response(200, body);
}

Result<Response> Api::recent_connections(const Call& call) {
  if (auto known = only_query(call, {"limit"}); !known) return known.error();
  const auto page = page_of(call);
  if (!page) return page.error();
  boost::json::array list;
  for (const CloseRecord* record : closes_.latest(page->limit, [](const CloseRecord&) { return true; })) {
    list.push_back(boost::json::parse(to_json_line(*record)));
  }
  return json_response(200, {{"connections", std::move(list)}});
}

// --- Looking into a forward.

Result<Response> Api::check(const Call& call) {
  if (auto known = only_query(call, {"client"}); !known) return known.error();
  control_.look_at_addresses();
  const auto found = control_.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  const Instance& instance = *control_.registry().find_instance(call.path[0]);
  CheckSubject subject{.forward = *found,
                       .instance = instance,
                       .tap_state = control_.watch().tap_state(instance),
                       .tap_fault = control_.watch().tap_fault(instance),
                       .client = std::nullopt};
  if (const std::string_view client = query_or(call, "client", ""); !client.empty()) {
    const auto address = parse_address(client);
    if (!address) return invalid_query("client", "client must be an IPv4 or IPv6 address.");
    subject.client = *address;
  }
  subject.refusing = dataplane_.refuses(found->forward.id, subject.client);
  const StreamTerms terms{.caller = call.caller, .subject = subject_of(instance)};
  auto stream = open_stream(terms, [&] { return check_forward(context_, subject); });
  if (!stream) return stream.error();
  return Response{.status = 200, .body = {}, .headers = {}, .stream = std::move(*stream)};
}

Result<std::shared_ptr<BodyStream>> Api::open_stream(
    const StreamTerms& terms, const std::function<Result<std::shared_ptr<BodyStream>>()>& make) {
  auto stream = portway::open_stream(control_.streams(), terms, make);
  if (!stream && stream.error().code == ErrorCode::kConnectionLimit) ++stats_.streams_refused;
  return stream;
}

Result<Response> Api::capture(const Call& call) {
  if (auto known = only_query(call, {"seconds", "max_bytes"}); !known) return known.error();
  const auto seconds = number_in_query(call, "seconds", 10, 1, kCaptureSecondsMax);
  if (!seconds) return seconds.error();
  const auto max_bytes = number_in_query(call, "max_bytes", 1'000'000, 1000, kCaptureBytesMax);
  if (!max_bytes) return max_bytes.error();
  const auto found = control_.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  const Instance& instance = *control_.registry().find_instance(call.path[0]);
  const std::string what =
      fmt::format("capture of forward {} of instance {} by key {}, request {}", call.path[1], call.path[0],
                  to_string(call.caller.key_id), call.request.id);
  std::vector<Endpoint> guests;
  for (const IpAddress& address : guest_addresses(instance))
    guests.emplace_back(address, found->forward.guest_port);
  const CaptureOptions options{.tap = instance.tap,
                               .link = link_of(instance),
                               .guests = std::move(guests),
                               .duration = std::chrono::seconds(*seconds),
                               .max_bytes = static_cast<std::size_t>(*max_bytes)};
  const StreamTerms terms{.caller = call.caller, .subject = subject_of(instance, options.link)};
  auto stream = open_stream(terms, [&] {
    return start_capture(context_, options,
                         [what](const std::string& summary) { spdlog::info("{}: {}", what, summary); });
  });
  if (!stream) return stream.error();
  spdlog::info("{}: begins", what);
  return Response{.status = 200,
                  .body = {},
                  .content_type = "application/vnd.tcpdump.pcap",
                  .headers = {{"Cache-Control", "no-store"}},
                  .stream = std::move(*stream)};
}

Result<Response> Api::delete_connections(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  const auto found = control_.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  if (auto ended = dataplane_.end_connections(found->forward.id, 0); !ended) return ended.error();
  return no_content();
}

Result<Response> Api::delete_connection(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  const auto found = control_.find_forward(call.caller, call.path[0], call.path[1]);
  if (!found) return found.error();
  const auto connection = parse_connection_id(call.path[2]);
  if (!connection) return no_such_connection();
  const auto ended = dataplane_.end_connections(found->forward.id, *connection);
  if (!ended) return ended.error();
  if (*ended == 0) return no_such_connection();
  return no_content();
}

// --- Instances.

boost::json::object Api::instance_json(const Instance& instance) const {
  return to_json({.instance = instance,
                  .ending = control_.is_ending(instance),
                  .tap_state = to_string(control_.watch().tap_state(instance)),
                  .tap_fault = control_.watch().tap_fault(instance),
                  .forwards_max = control_.profile_of(instance).max_forwarded_ports,
                  .forwards_now = control_.registry().forward_count(instance.id),
                  .source = control_.source_of(instance),
                  .source_reason = control_.source_reason(instance)});
}

Result<Response> Api::put_instance(const Call& call) {
  if (auto known = only_query(call, {"session_id"}); !known) return known.error();
  const auto session = session_of(call);
  if (!session) return session.error();
  JsonFields fields(call.request);
  Instance asked;
  asked.id = call.path[0];
  const std::vector<IpAddress> addresses = fields.addresses("guest_addresses", 2);
  const std::optional<std::string> address =
      addresses.empty() ? fields.string("guest_address") : fields.string_or_none("guest_address");
  asked.tap = fields.string("tap");
  asked.owner = fields.string("owner");
  asked.profile = fields.string_or("profile", "default");
  if (const auto pid = fields.integer_or_none("vmm_pid", 1, INT32_MAX))
    asked.vmm_pid = static_cast<std::int32_t>(*pid);
  if (auto error = fields.finish()) return *error;
  if (auto taken = take_guest_addresses(asked, address, addresses); !taken) return taken.error();
  const auto put = control_.put_instance(std::move(asked), *session, who(call.caller));
  if (!put) {
    Error error = put.error();
    if (error.field == "guest_address" && !addresses.empty()) error.field = "guest_addresses";
    return error;
  }
  Response response = json_response(put->created ? 201 : 200, {{"instance", instance_json(put->instance)}});
  if (put->created) response.headers.emplace_back("Location", "/instances/" + put->instance.id);
  return response;
}

Result<Response> Api::list_instances(const Call& call) {
  if (auto known = only_query(call, {"limit", "cursor"}); !known) return known.error();
  const auto page = page_of(call);
  if (!page) return page.error();
  const auto owner =
      call.caller.role == Role::kAdmin ? std::nullopt : std::optional<std::string_view>(call.caller.owner);
  const auto found = control_.registry().instances(owner, page->after, page->limit + 1);
  boost::json::array list;
  for (const Instance* instance : found) {
    if (list.size() < page->limit) list.push_back(instance_json(*instance));
  }
  boost::json::object body;
  if (found.size() > page->limit) body["next_cursor"] = found[page->limit - 1]->id;
  body["instances"] = std::move(list);
  return json_response(200, body);
}

Result<Response> Api::get_instance(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  return one_instance(call);
}

Result<Response> Api::one_instance(const Call& call) const {
  const auto instance = control_.find_instance(call.caller, call.path[0]);
  if (!instance) return instance.error();
  return json_response(200, {{"instance", instance_json(**instance)}});
}

Result<Response> Api::stop_instance(const Call& call) {
  if (auto known = only_query(call, {"session_id"}); !known) return known.error();
  const auto session = session_of(call);
  if (!session) return session.error();
  if (auto stopped = control_.stop_instance(call.path[0], *session, who(call.caller)); !stopped)
    return stopped.error();
  return one_instance(call);
}

Result<Response> Api::delete_instance(const Call& call) {
  if (auto known = only_query(call, {"session_id"}); !known) return known.error();
  const auto session = session_of(call);
  if (!session) return session.error();
  if (auto deleted = control_.delete_instance(call.path[0], *session, who(call.caller)); !deleted)
    return deleted.error();
  return no_content();
}

// --- Keys, profiles, the node.

Result<Response> Api::create_key(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  if (call.request.headers.contains("idempotency-key")) {
    return Error{ErrorCode::kInvalidRequest,
                 "A secret is shown once, so this answer cannot be repeated: leave Idempotency-Key out, and "
                 "delete a key whose answer was lost.",
                 "idempotency-key"};
  }
  JsonFields fields(call.request);
  const std::string role_name = fields.string("role");
  std::string owner = fields.string("owner");
  if (auto error = fields.finish()) return *error;
  const auto role = parse_role(role_name);
  if (!role) return Error{ErrorCode::kInvalidRequest, "role must be admin or tenant.", "role"};
  const auto made = control_.create_key(*role, std::move(owner), call.caller);
  if (!made) return made.error();
  Response response = json_response(201, {{"api_key", to_json(made->key)}, {"secret", made->secret}});
  response.headers.emplace_back("Location", "/api-keys/" + to_string(made->key.id));
  return response;
}

Result<Response> Api::list_keys(const Call& call) {
  if (auto known = only_query(call, {"limit", "cursor"}); !known) return known.error();
  const auto page = page_of(call);
  if (!page) return page.error();
  const auto after = page->after.empty() ? Uuid{} : parse_uuid(page->after);
  if (!after) return invalid_query("cursor", "cursor must be the next_cursor of an earlier answer.");
  boost::json::array list;
  boost::json::object body;
  for (const ApiKey* key : control_.keys().all()) {
    if (key->id <= *after) continue;
    if (list.size() == page->limit) {
      body["next_cursor"] = list.back().at("id");
      break;
    }
    list.push_back(to_json(*key));
  }
  body["api_keys"] = std::move(list);
  return json_response(200, body);
}

Result<Response> Api::delete_key(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  const auto id = parse_uuid(call.path[0]);
  if (!id) return Error{ErrorCode::kNotFound, "There is no API key with this id."};
  if (auto deleted = control_.delete_key(*id, call.caller); !deleted) return deleted.error();
  return no_content();
}

Result<Response> Api::list_profiles(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  boost::json::array list;
  for (const auto& [name, profile] : control_.config().profiles) {
    list.push_back({{"name", name},
                    {"max_forwarded_ports", profile.max_forwarded_ports},
                    {"allow_host_port", profile.allow_host_port}});
  }
  return json_response(200, {{"profiles", std::move(list)}});
}

Result<Response> Api::follow_events(const Call& call) {
  if (auto known = only_query(call, {"last_event_id"}); !known) return known.error();
  const std::string_view header = call.request.header("last-event-id");
  const std::string_view last = header.empty() ? query_or(call, "last_event_id", "") : header;
  auto stream = open_stream({.caller = call.caller},
                            [&] { return event_stream(control_.events().subscribe(call.caller, last)); });
  if (!stream) return stream.error();
  return Response{.status = 200,
                  .body = {},
                  .content_type = "text/event-stream",
                  .headers = {{"Cache-Control", "no-store"}},
                  .stream = std::move(*stream)};
}

Result<Response> Api::info(const Call& call) {
  if (auto known = only_query(call, {}); !known) return known.error();
  const NodeStats node = dataplane_.node_stats();
  boost::json::object body;
  body["hostname"] = control_.config().node.public_hostname;
  body["version"] = PORTWAY_VERSION;
  body["io_backend"] = node.io_backend;
  if (!node.io_backend_reason.empty()) body["io_backend_reason"] = node.io_backend_reason;
  body["workers"] = node.workers.size();
  body["source_mode"] = source_mode(control_.node_source());
  if (const std::string& why = control_.source_reason(); !why.empty()) body["source_mode_reason"] = why;
  if (const auto kind = control_.return_path(); !kind.empty()) body["return_path"] = kind;
  body["source_guard"] = control_.has_source_guard();
  body["instances"] = control_.registry().instance_count();
  body["port_forwards"] = control_.registry().forward_count();
  body["ports"] = {{"range", to_string(control_.ports().range())},
                   {"allocated", control_.ports().used()},
                   {"available", control_.ports().free()}};
  return json_response(200, body);
}

/// Not one of the failures in the log: it may be asked every second for as long as it lasts.
Result<Response> Api::ready(const Call& call) {
  auto ready = control_.check_ready();
  if (ready) return json_response(200, {{"status", "ready"}});
  Error error = ready.error();
  // Anybody may ask; where the store is, is for who reads the log.
  if (error.code == ErrorCode::kStoreUnavailable)
    error.detail = "The disk does not take new promises; the daemon's log says why.";
  return problem(error, call.request.id);
}

Result<Response> Api::metrics(const Call& call) {
  if (auto known = only_query(call, {"scope"}); !known) return known.error();
  const auto scope = metrics_scope(call);
  if (!scope) return scope.error();
  Response response{.status = 200,
                    .body = {},
                    .content_type = std::string(Exporter::kContentType),
                    .headers = {{"Vary", "Accept-Encoding"}},
                    .pieces = metrics_(*scope)};
  if (!accepts_gzip(call.request.header("accept-encoding"))) return response;
  if (std::shared_ptr<Gzip> zip = Gzip::start()) {
    response.pieces = zipped(std::move(response.pieces), std::move(zip));
    response.headers.emplace_back("Content-Encoding", "gzip");
  }
  return response;
}

}  // namespace portway
