#include "api/router.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace portway {
namespace {

constexpr std::string_view kVersion = "v1";

bool is_parameter(const std::string& segment) {
  return segment.starts_with('{');
}

std::vector<std::string> split(std::string_view pattern) {
  std::vector<std::string> segments;
  for (std::size_t start = 1; start <= pattern.size();) {
    const std::size_t end = std::min(pattern.find('/', start), pattern.size());
    segments.emplace_back(pattern.substr(start, end - start));
    start = end + 1;
  }
  return segments;
}

std::optional<std::vector<std::string>> match(const std::vector<std::string>& pattern,
                                              const std::vector<std::string>& segments) {
  if (pattern.size() != segments.size()) return std::nullopt;
  std::vector<std::string> parameters;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (is_parameter(pattern[i])) {
      parameters.push_back(segments[i]);
    } else if (pattern[i] != segments[i]) {
      return std::nullopt;
    }
  }
  return parameters;
}

}  // namespace

std::string account_of(const Principal& caller) {
  return fmt::format("{}:{}", to_string(caller.role), caller.owner);
}

std::uint32_t cost_of(const Route& route) {
  constexpr std::uint32_t kOneThing = 1;
  constexpr std::uint32_t kListOrChange = 5;
  if (route.cost != 0) return route.cost;
  return route.method == "GET" && !route.query.lists(kPageLimit.name) ? kOneThing : kListOrChange;
}

Result<void> check_access(const Route& route, const Principal& caller) {
  const bool of_admins = route.access == Access::kAdmin || route.access == Access::kMetrics;
  if (of_admins && caller.role != Role::kAdmin) {
    return Error{ErrorCode::kForbidden, "This call needs an admin key."};
  }
  if (route.access == Access::kMetrics || route.access == Access::kAnyKey) return {};
  if (caller.scope == KeyScope::kMetrics) {
    return Error{ErrorCode::kForbidden,
                 "The scope of this key is metrics: it may call GET /metrics and GET /v1/whoami only. Use a "
                 "key of another scope."};
  }
  if (caller.scope == KeyScope::kRead && route.method != "GET") {
    return Error{ErrorCode::kForbidden,
                 "The scope of this key is read: it may call what changes nothing (GET). Use a key of scope "
                 "full."};
  }
  return {};
}

Router::Router(std::vector<Route> routes) : routes_(std::move(routes)) {
  for (const Route& route : routes_) patterns_.push_back(split(route.pattern));
}

Router::Match Router::find(std::string_view method, const std::vector<std::string>& segments) const {
  Match found = find_exactly(method, segments);
  const bool has_version = segments.size() > 1 && segments.front() == kVersion;
  if (!found.allowed.empty() || !has_version) return found;
  return find_exactly(method, {segments.begin() + 1, segments.end()});
}

Router::Match Router::find_exactly(std::string_view method, const std::vector<std::string>& segments) const {
  Match found;
  for (std::size_t i = 0; i < routes_.size(); ++i) {
    auto parameters = match(patterns_[i], segments);
    if (!parameters) continue;
    const Route& route = routes_[i];
    found.pattern = route.pattern;
    found.allowed += std::string(route.method) + (route.method == "GET" ? ", HEAD, " : ", ");
    if (route.method == method || (method == "HEAD" && route.method == "GET")) {
      found.route = &route;
      found.path = std::move(*parameters);
    }
  }
  if (!found.allowed.empty()) found.allowed += "OPTIONS";
  return found;
}

}  // namespace portway
