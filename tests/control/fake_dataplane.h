// A data plane that only records its calls, for tests of the control plane.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "proxy/dataplane.h"

namespace portway::test {

class FakeDataplane : public Dataplane {
 public:
  Result<void> check_bind() const override {
    if (binds_left == 0) return Error{ErrorCode::kResourceExhausted, "no descriptor is left"};
    return {};
  }
  Result<BoundPort> bind(std::uint16_t port) override {
    if (binds_left == 0) return Error{ErrorCode::kResourceExhausted, "no descriptor left"};
    if (binds_left > 0) --binds_left;
    if (const auto held = refusals.find(port); held != refusals.end() && held->second-- > 0) {
      on_refusal(port);
      return Error{ErrorCode::kHostPortTaken, "in use for a while", "host_port"};
    }
    if (taken.contains(port)) return Error{ErrorCode::kHostPortTaken, "in use", "host_port"};
    ++bound;
    return BoundPort(port, {});
  }
  std::vector<KeptForward> kept_forwards() const override { return kept; }
  void open(ForwardRoute route, BoundPort port) override { opened[route.id] = {route, port.port()}; }
  void set_limits(const ForwardId& id, const TrafficLimits& limits) override {
    opened.at(id).first.limits = limits;
  }
  void set_profile_limits(const Uuid& session_id, const TrafficLimits& limits) override {
    for (auto& [id, forward] : opened) {
      if (forward.first.session_id == session_id) forward.first.profile_limits = limits;
    }
  }
  bool ended(const ForwardId& id) override { return !opened.contains(id); }
  void set_source(const ForwardId& id, ForwardSource source) override {
    if (const auto found = opened.find(id); found != opened.end()) found->second.first.source = source;
  }
  void close(const ForwardId& id, ClosePolicy policy, CloseHow why) override {
    opened.erase(id);
    closed.emplace_back(id, policy);
    reasons.push_back(why);
  }
  void end_session(const Uuid& session_id, CloseHow why) override {
    ended_sessions.push_back(session_id);
    on_end_session();
    std::vector<ForwardId> over;
    for (const auto& [id, route] : opened) {
      if (route.first.session_id == session_id) over.push_back(id);
    }
    for (const ForwardId& id : over) close(id, ClosePolicy::kReset, why);
  }
  bool session_ended(const Uuid&) override { return true; }
  void change_owner(const Uuid& session_id, const std::string& owner) override {
    passed_on.push_back(session_id);
    for (auto& [id, forward] : opened) {
      if (forward.first.session_id == session_id) forward.first.owner = owner;
    }
  }
  void set_owner_connections_max(std::uint32_t connections) override { owner_connections_max = connections; }
  void set_device(const Uuid& session_id, int device, std::uint32_t) override {
    for (auto& [id, route] : opened) {
      if (route.first.session_id == session_id) route.first.device = device;
    }
  }
  void set_guest(const Uuid& session_id, const IpAddress& address,
                 const std::optional<IpAddress>& address_v6) override {
    for (auto& [id, route] : opened) {
      if (route.first.session_id != session_id) continue;
      const std::uint16_t port = route.first.guest.endpoint.port();
      route.first.guest = {.endpoint = {address, port}};
      if (address_v6) route.first.guest.endpoint_v6.emplace(*address_v6, port);
    }
  }
  void set_guest_port(const ForwardId& id, std::uint16_t port) override {
    if (const auto found = opened.find(id); found != opened.end())
      found->second.first.guest.endpoint.port(port);
  }
  Result<ConnectionPage> connections(const ForwardId& id, ConnectionId after, std::size_t limit) override {
    ConnectionPage page;
    for (const LiveConnection& connection : live[id]) {
      if (connection.id <= after) continue;
      if (page.connections.size() == limit) {
        page.more = true;
        break;
      }
      page.connections.push_back(connection);
    }
    return page;
  }
  Result<std::size_t> end_connections(const ForwardId& id, ConnectionId connection) override {
    return std::erase_if(live[id], [connection](const LiveConnection& each) {
      return connection == 0 || each.id == connection;
    });
  }
  bool refuses(const ForwardId& id, const std::optional<IpAddress>&) const override {
    return gated.contains(id);
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
  UsageMeters& meters() override { return usage_meters; }

  std::set<std::uint16_t> taken;          // ports that another program has
  std::map<std::uint16_t, int> refusals;  // refusals before the port is free: a killed process still holds it
  std::function<void(std::uint16_t port)> on_refusal = [](std::uint16_t) {};
  int binds_left = -1;  // then descriptors run out; negative: never
  int bound = 0;
  std::map<ForwardId, std::pair<ForwardRoute, std::uint16_t>> opened;
  std::vector<KeptForward> kept;
  std::vector<std::pair<ForwardId, ClosePolicy>> closed;
  std::vector<CloseHow> reasons;  // of `closed`
  std::set<ForwardId> gated;      // that refuse all clients
  std::vector<Uuid> ended_sessions;
  std::uint32_t owner_connections_max = 0;
  std::vector<Uuid> passed_on;  // to another owner
  std::function<void()> on_end_session = [] {};
  UsageMeters usage_meters{1};
  std::map<ForwardId, std::vector<LiveConnection>> live;  // in the order of their ids
};

}  // namespace portway::test
