// The routes of the daemon against its contract, api/openapi.yaml. Those of a gateway:
// tests/gateway/contract_test.cpp.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/api/contract_of.h"
#include "tests/control/node.h"

namespace portway {
namespace {

using test::ContractOf;
using test::Node;

/// openapi_test.py checks the reverse, and what each route answers.
TEST(Contract, DocumentsEveryRouteAndWhoMayCallIt) {
  Node node;
  const ContractOf contract("node");
  for (const Route& route : node.api().routes()) {
    const auto* operation = contract.find(route);
    ASSERT_NE(operation, nullptr) << route.method << " " << route.pattern;
    EXPECT_EQ(ContractOf::needs_no_key(*operation), route.access == Access::kPublic) << route.pattern;
    EXPECT_EQ(ContractOf::is_for_admins(*operation),
              route.access == Access::kAdmin || route.access == Access::kMetrics)
        << route.method << " " << route.pattern;
  }
}

TEST(Contract, DocumentsEveryQueryParameter) {
  Node node;
  const ContractOf contract("node");
  for (const Route& route : node.api().routes()) {
    std::vector<std::string> listed;
    for (const auto& parameter : route.query.listed()) listed.emplace_back(parameter.name);
    EXPECT_THAT(contract.parameters(route), testing::UnorderedElementsAreArray(listed))
        << route.method << " " << route.pattern;
  }
}

}  // namespace
}  // namespace portway
