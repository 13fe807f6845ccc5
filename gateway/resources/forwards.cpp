// GET /port-forwards: the forwards of the whole fleet that the caller sees.

#include <algorithm>
#include <boost/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/forward_list.h"
#include "gateway/entries.h"
#include "gateway/relay.h"
#include "gateway/resources.h"

namespace portway {
namespace {

struct ListedForward {
  ForwardPosition place;
  const FleetViewInstance* instance;
  const FleetViewForward* forward;
};

ForwardPosition place_of(const ForwardId& id, const FleetViewForward& forward, ForwardOrder order) {
  return {.host_port = order == ForwardOrder::kHostPort ? forward.host_port : std::uint16_t{0}, .id = id};
}

/// Of the caller, and of the query.
struct FleetForwardFilter {
  FleetForwardFilter(const Principal& caller, const Query& query)
      : instance_id(query[kForwardsOfInstance]),
        owner(query[kForwardsOfOwner]),
        host_port(query[kForwardsOfHostPort]),
        caller_(caller),
        label_(query[kLabel]),
        guest_port_(query[kForwardsOfGuestPort]),
        selector_(query[kMetadata]) {
    if (const auto state = query[kForwardsOfState]) state_ = to_string(*state);
    if (caller.role != Role::kAdmin) owner = !owner || *owner == caller.owner ? caller.owner : std::string();
  }

  bool admits(const FleetViewInstance& instance, const FleetViewForward& forward) const {
    return caller_.sees(instance.owner, instance.id) && (!owner || *owner == instance.owner) &&
           (!instance_id || *instance_id == instance.id) && (!label_ || *label_ == forward.label) &&
           (host_port == 0 || host_port == forward.host_port) &&
           (guest_port_ == 0 || guest_port_ == forward.guest_port) && (!state_ || *state_ == forward.state) &&
           selector_.admits(forward.metadata);
  }

  const std::optional<std::string> instance_id;
  std::optional<std::string> owner;
  const std::uint16_t host_port;  // 0: any

 private:
  const Principal& caller_;
  const std::optional<std::string> label_;
  const std::uint16_t guest_port_;
  const Selector selector_;
  std::optional<std::string_view> state_;
};

/// A page of the list, and one more if there is one: `limit` + 1 at most.
class ForwardPage {
 public:
  ForwardPage(const FleetView& view, const Call& call)
      : view_(view),
        filter_(call.caller, call.query),
        order_(call.query[kForwardsSortBy]),
        ascending_(call.query[kForwardsOrder] == ListOrder::kAscending),
        most_(call.query[kPageLimit] + 1),
        after_(call.query[kForwardPosition]) {}

  std::vector<ListedForward> read() {
    if (filter_.instance_id) {
      if (const auto* instance = view_.find_instance(*filter_.instance_id)) add_all(*instance);
    } else if (filter_.host_port != 0) {
      add_all_with_port();
    } else if (filter_.owner) {
      for (const auto* instance : view_.instances(*filter_.owner, "", SIZE_MAX)) add_all(*instance);
    } else {
      walk();
      return std::move(found_);
    }
    const auto end = found_.begin() + static_cast<std::ptrdiff_t>(std::min(found_.size(), most_));
    std::ranges::partial_sort(
        found_, end, [this](const auto& a, const auto& b) { return is_before(a, b); }, &ListedForward::place);
    found_.erase(end, found_.end());
    return std::move(found_);
  }

 private:
  bool is_before(const ForwardPosition& a, const ForwardPosition& b) const {
    return ascending_ ? a < b : b < a;
  }

  void add_all(const FleetViewInstance& instance) {
    for (const auto& [id, forward] : instance.forwards) add(instance, id, forward);
  }

  void add(const FleetViewInstance& instance, const ForwardId& id, const FleetViewForward& forward) {
    const auto place = place_of(id, forward, order_);
    if ((!after_ || is_before(*after_, place)) && filter_.admits(instance, forward))
      found_.push_back({place, &instance, &forward});
  }

  /// A port belongs to one forward of each node.
  void add_all_with_port() {
    const FleetView::Forwards& all = view_.forwards_by_host_port();
    for (auto at = all.lower_bound({.host_port = filter_.host_port, .id = {}});
         at != all.end() && at->first.host_port == filter_.host_port; ++at) {
      add(*at->second, at->first.id, at->second->forwards.at(at->first.id));
    }
  }

  /// Everybody's, in the view's own order: no further than the page goes.
  void walk() {
    const FleetView::Forwards& all =
        order_ == ForwardOrder::kHostPort ? view_.forwards_by_host_port() : view_.forwards_by_creation();
    const auto add_if_wanted = [this](const auto& entry) {
      const FleetViewForward& forward = entry.second->forwards.at(entry.first.id);
      if (filter_.admits(*entry.second, forward)) found_.push_back({entry.first, entry.second, &forward});
      return found_.size() < most_;
    };
    if (ascending_) {
      for (auto at = after_ ? all.upper_bound(*after_) : all.begin(); at != all.end() && add_if_wanted(*at);
           ++at) {
      }
    } else {
      for (auto at = after_ ? all.lower_bound(*after_) : all.end();
           at != all.begin() && add_if_wanted(*--at);) {
      }
    }
  }

  const FleetView& view_;
  const FleetForwardFilter filter_;
  const ForwardOrder order_;
  const bool ascending_;
  const std::size_t most_;
  const std::optional<ForwardPosition> after_;
  std::vector<ListedForward> found_;
};

Result<Response> list_fleet_forwards(const GatewayContext& gateway, const Call& call) {
  if (auto warm = check_warm(gateway); !warm) return warm.error();
  const FleetView& view = gateway.fleet.view();
  const std::size_t limit = call.query[kPageLimit];
  const auto found = ForwardPage(view, call).read();
  boost::json::array list;
  for (std::size_t i = 0; i < std::min(found.size(), limit); ++i)
    list.push_back(entry_of(view, *found[i].instance, *found[i].forward));
  boost::json::object body{{"port_forwards", std::move(list)}};
  if (found.size() > limit) body["next_cursor"] = cursor_of(found[limit - 1].place);
  mark_stale(gateway, body);
  return with_fleet_event_id(gateway, json_response(200, body));
}

}  // namespace

std::vector<GatewayRoute> fleet_forward_routes() {
  return {{"GET", "/port-forwards", Access::kTenant, forward_list_parameters(), list_fleet_forwards}};
}

}  // namespace portway
