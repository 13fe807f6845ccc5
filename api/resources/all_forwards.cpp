// /port-forwards: the forwards of all instances that the caller sees.

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/json.h"
#include "api/resources.h"
#include "api/selector.h"

namespace portway {
namespace {

enum class SortBy : std::uint8_t { kCreatedAt, kHostPort };
enum class Order : std::uint8_t { kAscending, kDescending };

const auto kOfInstance = text_parameter("instance_id");
const auto kOfOwner = text_parameter("owner");
const auto kOfHostPort = integer_parameter<std::uint16_t>("host_port", 0, 1, 65535);
const auto kOfGuestPort = integer_parameter<std::uint16_t>("guest_port", 0, 1, 65535);
const auto kOfState =
    choice_parameter<std::optional<ForwardState>>("state", {{"any", std::nullopt},
                                                            {"listening", ForwardState::kListening},
                                                            {"failed", ForwardState::kFailed},
                                                            {"disabled", ForwardState::kDisabled},
                                                            {"expired", ForwardState::kExpired},
                                                            {"unavailable", ForwardState::kUnavailable}});
const auto kSortBy =
    choice_parameter<SortBy>("sort", {{"created_at", SortBy::kCreatedAt}, {"host_port", SortBy::kHostPort}});
const auto kOrder =
    choice_parameter<Order>("order", {{"asc", Order::kAscending}, {"desc", Order::kDescending}});

/// Where a forward stands in the list. An id begins with the time of its creation.
struct Position {
  std::uint16_t host_port = 0;  // 0 if the list is not sorted by it
  Uuid id{};

  friend bool operator<(const Position& a, const Position& b) {
    return std::tie(a.host_port, a.id) < std::tie(b.host_port, b.id);
  }
};

Position position_of(const Forward& forward, SortBy by) {
  return {by == SortBy::kHostPort ? forward.host_port : std::uint16_t{0}, forward.id};
}

/// "31000.0190b2c0-..."
std::string cursor_of(const Position& position) {
  return std::to_string(position.host_port) + "." + to_string(position.id);
}

std::optional<Position> parse_position(std::string_view text) {
  Position position;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), position.host_port);
  const std::string_view rest = text.substr(static_cast<std::size_t>(end - text.data()));
  const auto id = rest.starts_with('.') ? parse_uuid(rest.substr(1)) : std::nullopt;
  if (error != std::errc() || !id) return std::nullopt;
  position.id = *id;
  return position;
}

const auto kPosition = cursor_parameter<std::optional<Position>>(
    [](std::string_view text) -> std::optional<std::optional<Position>> {
      const auto position = parse_position(text);
      if (!position) return std::nullopt;
      return std::optional<std::optional<Position>>(std::in_place, *position);
    });

/// Which forwards the list is of; what is absent, or 0, does not matter.
struct Filter {
  explicit Filter(const Query& query)
      : instance_id(query[kOfInstance]),
        owner(query[kOfOwner]),
        host_port(query[kOfHostPort]),
        guest_port(query[kOfGuestPort]),
        state(query[kOfState]),
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
  const SortBy by = call.query[kSortBy];
  const bool ascending = call.query[kOrder] == Order::kAscending;
  const auto comes_before = [&](const Position& a, const Position& b) { return ascending ? a < b : b < a; };
  const std::optional<Position> after = call.query[kPosition];
  const Filter filter(call.query);
  std::vector<std::pair<Position, const Forward*>> found;
  api.control.registry().forwards_after({}, [&](const Forward& forward) {
    const Instance& instance = *api.control.registry().find_instance(forward.instance_id);
    const Position position = position_of(forward, by);
    const bool is_later = !after || comes_before(*after, position);
    if (is_later && call.caller.sees(instance) && filter.admits(api.control, instance, forward)) {
      found.emplace_back(position, &forward);
    }
    return true;
  });
  const std::size_t count = std::min(found.size(), call.query[kPageLimit]);
  std::ranges::partial_sort(found, found.begin() + static_cast<std::ptrdiff_t>(count), comes_before,
                            &std::pair<Position, const Forward*>::first);
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
      {"GET",
       "/port-forwards",
       Access::kTenant,
       {kOfInstance, kOfOwner, kLabel, kOfHostPort, kOfGuestPort, kOfState, kMetadata, kSortBy, kOrder,
        kPageLimit, kPosition},
       list_all_forwards},
  };
}

}  // namespace portway
