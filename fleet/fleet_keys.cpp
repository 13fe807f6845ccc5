#include "fleet/fleet_keys.h"

#include <fmt/format.h>

#include <algorithm>

namespace portway {
namespace {

constexpr std::size_t kIdMax = 64;
constexpr std::string_view kInstances = "instances/";
constexpr std::string_view kForwards = "forwards/";

bool is_fleet_id_character(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
         c == '-';
}

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

}  // namespace

bool is_fleet_id(std::string_view id) {
  return !id.empty() && id.size() <= kIdMax && std::ranges::all_of(id, is_fleet_id_character);
}

std::string FleetKeys::node(std::string_view node_id) const {
  return fmt::format("{}nodes/{}", prefix_, node_id);
}

std::string FleetKeys::claim(std::string_view instance_id) const {
  return fmt::format("{}claims/{}", prefix_, instance_id);
}

std::string FleetKeys::instance(std::string_view node_id, std::string_view instance_id) const {
  return fmt::format("{}state/{}/{}{}", prefix_, node_id, kInstances, instance_id);
}

std::string FleetKeys::forward(std::string_view node_id, std::string_view instance_id,
                               const ForwardId& id) const {
  return fmt::format("{}state/{}/{}{}/{}", prefix_, node_id, kForwards, instance_id, to_string(id));
}

EtcdKeys FleetKeys::forwards(std::string_view node_id, std::string_view instance_id) const {
  return EtcdKeys::with_prefix(fmt::format("{}state/{}/{}{}/", prefix_, node_id, kForwards, instance_id));
}

EtcdKeys FleetKeys::state(std::string_view node_id) const {
  return EtcdKeys::with_prefix(fmt::format("{}state/{}/", prefix_, node_id));
}

std::optional<FleetKey> FleetKeys::parse(std::string_view key) const {
  if (!take_prefix(key, prefix_)) return std::nullopt;
  if (take_prefix(key, "nodes/")) {
    return is_fleet_id(key) ? std::optional(FleetKey{.node = std::string(key)}) : std::nullopt;
  }
  if (take_prefix(key, "claims/")) {
    return is_fleet_id(key)
               ? std::optional(FleetKey{.kind = FleetKey::Kind::kClaim, .instance_id = std::string(key)})
               : std::nullopt;
  }
  if (!take_prefix(key, "state/")) return std::nullopt;
  const std::string_view node = key.substr(0, key.find('/'));
  if (!is_fleet_id(node)) return std::nullopt;
  const auto state = parse_state(node, fmt::format("{}state/{}", prefix_, key));
  if (!state) return std::nullopt;
  return FleetKey{.kind = state->forward ? FleetKey::Kind::kForward : FleetKey::Kind::kInstance,
                  .node = std::string(node),
                  .instance_id = state->instance_id,
                  .forward = state->forward.value_or(ForwardId{})};
}

std::optional<StateKey> FleetKeys::parse_state(std::string_view node_id, std::string_view key) const {
  if (!take_prefix(key, fmt::format("{}state/{}/", prefix_, node_id))) return std::nullopt;
  if (take_prefix(key, kInstances)) {
    return is_fleet_id(key) ? std::optional(StateKey{.instance_id = std::string(key)}) : std::nullopt;
  }
  if (!take_prefix(key, kForwards)) return std::nullopt;
  const std::size_t slash = key.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const std::string_view instance = key.substr(0, slash);
  const std::optional<ForwardId> forward = parse_uuid(key.substr(slash + 1));
  if (!is_fleet_id(instance) || !forward) return std::nullopt;
  return StateKey{.instance_id = std::string(instance), .forward = forward};
}

}  // namespace portway
