#include "api/router.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace portway {
namespace {

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

Router::Router(std::vector<Route> routes) : routes_(std::move(routes)) {
  for (const Route& route : routes_) patterns_.push_back(split(route.pattern));
}

Router::Match Router::find(std::string_view method, const std::vector<std::string>& segments) const {
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
