#include "api/forward_list.h"

#include <charconv>
#include <string_view>
#include <utility>

namespace portway {
namespace {

std::optional<ForwardPosition> parse_position(std::string_view text) {
  ForwardPosition position;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), position.host_port);
  const std::string_view rest = text.substr(static_cast<std::size_t>(end - text.data()));
  const auto id = rest.starts_with('.') ? parse_uuid(rest.substr(1)) : std::nullopt;
  if (error != std::errc() || !id) return std::nullopt;
  position.id = *id;
  return position;
}

}  // namespace

const Parameter<std::optional<std::string>> kForwardsOfInstance = text_parameter("instance_id");
const Parameter<std::optional<std::string>> kForwardsOfOwner = text_parameter("owner");
const Parameter<std::uint16_t> kForwardsOfHostPort =
    integer_parameter<std::uint16_t>("host_port", 0, 1, 65535);
const Parameter<std::uint16_t> kForwardsOfGuestPort =
    integer_parameter<std::uint16_t>("guest_port", 0, 1, 65535);
const Parameter<std::optional<ForwardState>> kForwardsOfState =
    choice_parameter<std::optional<ForwardState>>("state", {{"any", std::nullopt},
                                                            {"listening", ForwardState::kListening},
                                                            {"failed", ForwardState::kFailed},
                                                            {"disabled", ForwardState::kDisabled},
                                                            {"expired", ForwardState::kExpired},
                                                            {"unavailable", ForwardState::kUnavailable}});
const Parameter<ForwardOrder> kForwardsSortBy = choice_parameter<ForwardOrder>(
    "sort", {{"created_at", ForwardOrder::kCreatedAt}, {"host_port", ForwardOrder::kHostPort}});
const Parameter<ListOrder> kForwardsOrder =
    choice_parameter<ListOrder>("order", {{"asc", ListOrder::kAscending}, {"desc", ListOrder::kDescending}});

const Parameter<std::optional<ForwardPosition>> kForwardPosition =
    cursor_parameter<std::optional<ForwardPosition>>(
        [](std::string_view text) -> std::optional<std::optional<ForwardPosition>> {
          const auto position = parse_position(text);
          if (!position) return std::nullopt;
          return std::optional<std::optional<ForwardPosition>>(std::in_place, *position);
        });

QueryParameters forward_list_parameters() {
  return {kForwardsOfInstance,  kForwardsOfOwner, kLabel,          kForwardsOfHostPort,
          kForwardsOfGuestPort, kForwardsOfState, kMetadata,       kForwardsSortBy,
          kForwardsOrder,       kPageLimit,       kForwardPosition};
}

std::string cursor_of(const ForwardPosition& position) {
  return std::to_string(position.host_port) + "." + to_string(position.id);
}

}  // namespace portway
