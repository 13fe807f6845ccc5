// What api/openapi.yaml says of the routes of a program that serves it: a node or a gateway.
#pragma once

#include <algorithm>
#include <boost/json.hpp>
#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include "api/openapi.h"
#include "api/router.h"

namespace portway::test {

class ContractOf {
 public:
  /// `program`: "node" or "gateway", as in x-served-by.
  explicit ContractOf(std::string_view program)
      : program_(program), contract_(boost::json::parse(openapi_json()).as_object()) {}

  /// Null: it is not documented, or only for the other program.
  const boost::json::object* find(const Route& route) const {
    const auto* path = paths().if_contains(route.pattern);
    const auto* operation =
        path == nullptr ? nullptr : path->as_object().if_contains(in_lower_case(route.method));
    return operation != nullptr && is_served(operation->as_object()) ? &operation->as_object() : nullptr;
  }

  static bool needs_no_key(const boost::json::object& operation) { return operation.contains("security"); }
  static bool is_for_admins(const boost::json::object& operation) {
    return std::string_view(operation.at("summary").as_string()).ends_with("(admin)");
  }

  /// Names of query parameters. `route` is documented.
  std::vector<std::string> parameters(const Route& route) const {
    const auto& path = paths().at(route.pattern).as_object();
    std::vector<std::string> names;
    for (const boost::json::object* owner : {&path, &path.at(in_lower_case(route.method)).as_object()}) {
      const auto* list = owner->if_contains("parameters");
      if (list == nullptr) continue;
      for (const auto& entry : list->as_array()) {
        const boost::json::object& parameter = resolved(entry.as_object());
        if (parameter.at("in") == "query" && is_served(parameter))
          names.emplace_back(parameter.at("name").as_string());
      }
    }
    return names;
  }

  /// "GET /instances" and so on.
  std::vector<std::string> operations() const {
    std::vector<std::string> all;
    for (const auto& [pattern, path] : paths()) {
      for (const std::string_view method : {"GET", "PUT", "POST", "PATCH", "DELETE"}) {
        const auto* operation = path.as_object().if_contains(in_lower_case(method));
        if (operation != nullptr && is_served(operation->as_object()))
          all.push_back(std::string(method) + " " + std::string(pattern));
      }
    }
    return all;
  }

 private:
  static std::string in_lower_case(std::string_view text) {
    std::string lower(text);
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
    return lower;
  }
  const boost::json::object& paths() const { return contract_.at("paths").as_object(); }
  bool is_served(const boost::json::object& part) const {
    const auto* by = part.if_contains("x-served-by");
    return by == nullptr || by->as_string() == program_;
  }
  const boost::json::object& resolved(const boost::json::object& parameter) const {
    const auto* reference = parameter.if_contains("$ref");
    if (reference == nullptr) return parameter;
    const std::string_view name = reference->as_string();
    return contract_.at("components").at("parameters").at(name.substr(name.rfind('/') + 1)).as_object();
  }

  const std::string_view program_;
  const boost::json::object contract_;
};

}  // namespace portway::test
