// /port-forwards: the forwards of all instances that the caller sees.

#include <algorithm>
#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/forward_list.h"
#include "api/json.h"
#include "api/resources.h"
#include "api/selector.h"

namespace portway {
namespace {

ForwardPosition position_of(const Forward& forward, ForwardOrder by) {
  return {by == ForwardOrder::kHostPort ? forward.host_port : std::uint16_t{0}, forward.id};
}

/// Which forwards the list is of; what is absent, or 0, does not matter.
struct Filter {
  explicit Filter(const Query& query)
      : instance_id(query[kForwardsOfInstance]),
        owner(query[kForwardsOfOwner]),
        host_port(query[kForwardsOfHostPort]),
        guest_port(query[kForwardsOfGuestPort]),
        state(query[kForwardsOfState]),
        selected(selected_by(query)) {}

  bool admits(const Control& control, const Instance& instance, const Forward& forward) const {
    if (instance_id && *instance_id != instance.id) return false;
    if (owner && *owner != instance.owner) return false;
    if (host_port != 0 && host_port != forward.host_port) return false;
    if (guest_port != 0 && guest_port != forward.guest_port) return false;
    if (state && *state != control.state_of(forward)) return false;
    return selected(forward);
  }

  std::optional<std::string> instance_id;
  std::optional<std::string> owner;
  std::uint16_t host_port;
  std::uint16_t guest_port;
  std::optional<ForwardState> state;
  std::function<bool(const Forward&)> selected;
};

Result<Response> list_all_forwards(const ApiContext& api, const Call& call) {
  const ForwardOrder by = call.query[kForwardsSortBy];
  const bool ascending = call.query[kForwardsOrder] == ListOrder::kAscending;
  const auto comes_before = [&](const ForwardPosition& a, const ForwardPosition& b) {
    return ascending ? a < b : b < a;
  };
  const std::optional<ForwardPosition> after = call.query[kForwardPosition];
  const Filter filter(call.query);
  std::vector<std::pair<ForwardPosition, const Forward*>> found;
  api.control.registry().forwards_after({}, [&](const Forward& forward) {
    const Instance& instance = *api.control.registry().find_instance(forward.instance_id);
    const ForwardPosition position = position_of(forward, by);
    const bool is_later = !after || comes_before(*after, position);
    if (is_later && call.caller.sees(instance) && filter.admits(api.control, instance, forward)) {
      found.emplace_back(position, &forward);
    }
    return true;
  });
  const std::size_t count = std::min(found.size(), call.query[kPageLimit]);
  std::ranges::partial_sort(found, found.begin() + static_cast<std::ptrdiff_t>(count), comes_before,
                            &std::pair<ForwardPosition, const Forward*>::first);
  boost::json::array list;
  for (std::size_t i = 0; i < count; ++i) list.push_back(to_json(api.control.status_of(*found[i].second)));
  boost::json::object body;
  body["port_forwards"] = std::move(list);
  body["hostname"] = api.control.config().node.public_hostname;
  if (found.size() > count) body["next_cursor"] = cursor_of(found[count - 1].first);
  return with_event_id(api, json_response(200, body));
}

}  // namespace

std::vector<NodeRoute> all_forwards_routes() {
  return {
      {"GET", "/port-forwards", Access::kTenant, forward_list_parameters(), list_all_forwards},
  };
}

}  // namespace portway
