// The routes of a gateway against the contract, api/openapi.yaml, which it shares with nodes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "api/resources.h"
#include "control/registry.h"
#include "gateway/routes.h"
#include "gateway/shared_keys.h"
#include "tests/api/contract_of.h"

namespace portway::test {
namespace {

/// One that nobody runs: it has routes, and nothing to answer from.
class IdleGateway {
 public:
  /// Those of its own; not a node's below /nodes/NODE, which are documented as the node's.
  std::vector<Route> own_routes() const {
    std::vector<std::string> derived;
    for (const RouteLine& line : node_route_lines())
      derived.push_back("/nodes/{node}" + std::string(line.pattern));
    std::vector<Route> own = all_gateway_routes(context_);
    std::erase_if(
        own, [&](const Route& route) { return std::ranges::find(derived, route.pattern) != derived.end(); });
    return own;
  }

 private:
  static EtcdOptions nowhere() {
    EtcdOptions options;
    options.endpoints = {"http://127.0.0.1:1"};
    return options;
  }

  boost::asio::io_context io_;
  const Config config_ = {};
  const FleetKeys names_{"/portway/"};
  FleetEvents events_{io_, "/portway/"};
  const std::unique_ptr<FleetFollower> fleet_ =
      FleetFollower::create(io_.get_executor(), {.etcd = nowhere(), .listener = &events_}).value();
  const std::shared_ptr<Etcd> etcd_ = Etcd::create(io_.get_executor(), nowhere()).value();
  const std::unique_ptr<NodeClient> nodes_ = NodeClient::create(io_.get_executor(), {}).value();
  EtcdKeyAdmin keys_{{.executor = io_.get_executor(), .etcd = etcd_, .keys = names_, .on_change = [] {}}};
  SharedProfiles profiles_{{.executor = io_.get_executor(), .etcd = etcd_, .keys = names_}};
  const Registry no_instances_ = {};
  Streams streams_{keys_.keys(), no_instances_};
  ApiStats stats_;
  const GatewayContext context_{.config = config_,
                                .fleet = *fleet_,
                                .events = events_,
                                .nodes = *nodes_,
                                .streams = streams_,
                                .keys = keys_,
                                .profiles = profiles_,
                                .stats = stats_,
                                .metrics = [] { return std::string(); }};
};

std::vector<std::string> names_of(const std::vector<Route>& routes) {
  std::vector<std::string> names;
  for (const Route& route : routes) names.push_back(route.method + " " + route.pattern);
  return names;
}

TEST(GatewayContract, HasTheRoutesOfAGatewayAndNoOther) {
  const auto routes = IdleGateway().own_routes();
  EXPECT_THAT(names_of(routes), testing::UnorderedElementsAreArray(ContractOf("gateway").operations()));
}

TEST(GatewayContract, SaysWhoMayCallARoute) {
  const ContractOf contract("gateway");
  for (const Route& route : IdleGateway().own_routes()) {
    const auto* operation = contract.find(route);
    ASSERT_NE(operation, nullptr) << route.method << " " << route.pattern;
    EXPECT_EQ(ContractOf::needs_no_key(*operation), route.access == Access::kPublic) << route.pattern;
    EXPECT_EQ(ContractOf::is_for_admins(*operation),
              route.access == Access::kAdmin || route.access == Access::kMetrics)
        << route.method << " " << route.pattern;
  }
}

TEST(GatewayContract, DocumentsEveryQueryParameter) {
  const ContractOf contract("gateway");
  for (const Route& route : IdleGateway().own_routes()) {
    if (contract.find(route) == nullptr) continue;
    std::vector<std::string> listed;
    for (const auto& parameter : route.query.listed()) listed.emplace_back(parameter.name);
    EXPECT_THAT(contract.parameters(route), testing::UnorderedElementsAreArray(listed))
        << route.method << " " << route.pattern;
  }
}

}  // namespace
}  // namespace portway::test
