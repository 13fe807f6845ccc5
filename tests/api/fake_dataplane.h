// A data plane that only remembers what it was asked, for tests of the control plane.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "proxy/dataplane.h"

namespace portway::test {

class FakeDataplane final : public Dataplane {
 public:
  Result<BoundPort> bind(std::uint16_t port) override {
    if (binds_left == 0) return Error{ErrorCode::kResourceExhausted, "no descriptor left"};
    if (binds_left > 0) --binds_left;
    if (taken.contains(port)) return Error{ErrorCode::kHostPortTaken, "in use", "host_port"};
    ++bound;
    return BoundPort(port, {});
  }
  void open(ForwardRoute route, BoundPort port) override { opened[route.id] = {route, port.port()}; }
  void set_limits(const ForwardId& id, const TrafficLimits& limits) override {
    opened.at(id).first.limits = limits;
  }
  void close(const ForwardId& id, ClosePolicy policy) override {
    opened.erase(id);
    closed.emplace_back(id, policy);
  }
  std::optional<ForwardStats> forward_stats(const ForwardId& id) const override {
    if (!opened.contains(id)) return std::nullopt;
    return ForwardStats{.id = id};
  }
  std::vector<ForwardStats> forward_stats() const override {
    std::vector<ForwardStats> all;
    for (const auto& [id, route] : opened) all.push_back({.id = id});
    return all;
  }
  NodeStats node_stats() const override {
    return {.io_backend = "fake", .io_backend_reason = "", .workers = {}};
  }

  std::set<std::uint16_t> taken;  // ports that another program has
  int binds_left = -1;            // then descriptors run out; negative: never
  int bound = 0;
  std::map<ForwardId, std::pair<ForwardRoute, std::uint16_t>> opened;
  std::vector<std::pair<ForwardId, ClosePolicy>> closed;
};

}  // namespace portway::test
