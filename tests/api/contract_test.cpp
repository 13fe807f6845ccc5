// The routes of the daemon against its contract, api/openapi.yaml.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cctype>
#include <string>
#include <vector>

#include "api/openapi.h"
#include "tests/control/node.h"

namespace portway {
namespace {

using test::Node;

/// openapi_test.py checks the reverse, and what each route answers.
TEST(Contract, DocumentsEveryRouteAndWhoMayCallIt) {
  Node node;
  const auto paths = boost::json::parse(openapi_json()).at("paths").as_object();
  for (const Route& route : node.api().routes()) {
    std::string method(route.method);
    std::ranges::transform(method, method.begin(), [](char c) { return static_cast<char>(std::tolower(c)); });
    const auto* path = paths.if_contains(route.pattern);
    const auto* operation = path == nullptr ? nullptr : path->as_object().if_contains(method);
    ASSERT_NE(operation, nullptr) << route.method << " " << route.pattern;
    const auto& fields = operation->as_object();
    EXPECT_EQ(fields.contains("security"), route.access == Access::kPublic) << route.pattern;
    EXPECT_EQ(std::string(fields.at("summary").as_string()).ends_with("(admin)"),
              route.access == Access::kAdmin || route.access == Access::kMetrics)
        << route.method << " " << route.pattern;
  }
}

/// The query parameters that the contract documents for an operation.
std::vector<std::string> documented_parameters(const boost::json::object& contract, const Route& route) {
  const auto& path = contract.at("paths").at(route.pattern).as_object();
  std::string method(route.method);
  std::ranges::transform(method, method.begin(), [](char c) { return static_cast<char>(std::tolower(c)); });
  std::vector<std::string> names;
  for (const boost::json::object& owner : {path, path.at(method).as_object()}) {
    const auto* list = owner.if_contains("parameters");
    if (list == nullptr) continue;
    for (boost::json::value parameter : list->as_array()) {
      if (const auto* reference = parameter.as_object().if_contains("$ref")) {
        const std::string_view name = reference->as_string();
        parameter = contract.at("components").at("parameters").at(name.substr(name.rfind('/') + 1));
      }
      if (parameter.at("in") == "query") names.emplace_back(parameter.at("name").as_string());
    }
  }
  return names;
}

TEST(Contract, DocumentsEveryQueryParameter) {
  Node node;
  const auto contract = boost::json::parse(openapi_json()).as_object();
  for (const Route& route : node.api().routes()) {
    std::vector<std::string> listed;
    for (const auto& parameter : route.query.listed()) listed.emplace_back(parameter.name);
    EXPECT_THAT(documented_parameters(contract, route), testing::UnorderedElementsAreArray(listed))
        << route.method << " " << route.pattern;
  }
}

}  // namespace
}  // namespace portway
