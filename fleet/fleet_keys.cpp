#include "fleet/fleet_keys.h"

#include <fmt/format.h>

#include <algorithm>

namespace portway {
namespace {

constexpr std::size_t kIdMax = 64;
constexpr std::string_view kInstances = "instances/";
constexpr std::string_view kForwards = "forwards/";
constexpr std::string_view kApiKeys = "keys/";
constexpr std::string_view kProfiles = "profiles/";

bool is_fleet_id_character(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
         c == '-';
}

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

/// Of what is below state/NODE/.
std::optional<FleetKey> parse_state(std::string_view node, std::string_view key) {
  if (take_prefix(key, kInstances)) {
    if (!is_fleet_id(key)) return std::nullopt;
    return FleetKey{
        .kind = FleetKey::Kind::kInstance, .node = std::string(node), .instance_id = std::string(key)};
  }
  if (!take_prefix(key, kForwards)) return std::nullopt;
  const std::size_t slash = key.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const std::string_view instance = key.substr(0, slash);
  const std::optional<ForwardId> forward = parse_uuid(key.substr(slash + 1));
  if (!is_fleet_id(instance) || !forward) return std::nullopt;
  return FleetKey{.kind = FleetKey::Kind::kForward,
                  .node = std::string(node),
                  .instance_id = std::string(instance),
                  .forward = *forward};
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

std::string FleetKeys::api_key(const Uuid& id) const {
  return fmt::format("{}{}{}", prefix_, kApiKeys, to_string(id));
}

std::string FleetKeys::profile(std::string_view name) const {
  return fmt::format("{}{}{}", prefix_, kProfiles, name);
}

EtcdKeys FleetKeys::api_keys() const {
  return EtcdKeys::with_prefix(fmt::format("{}{}", prefix_, kApiKeys));
}

EtcdKeys FleetKeys::profiles() const {
  return EtcdKeys::with_prefix(fmt::format("{}{}", prefix_, kProfiles));
}

std::optional<FleetKey> FleetKeys::parse(std::string_view key) const {
  using Kind = FleetKey::Kind;
  if (!take_prefix(key, prefix_)) return std::nullopt;
  if (take_prefix(key, kApiKeys)) {
    const std::optional<Uuid> id = parse_uuid(key);
    // Of the ways to write an id only the one that api_key() has.
    if (!id || to_string(*id) != key) return std::nullopt;
    return FleetKey{.kind = Kind::kApiKey, .api_key = *id};
  }
  const std::size_t slash = key.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const std::string_view kind = key.substr(0, slash + 1);
  const std::string_view rest = key.substr(slash + 1);
  if (kind == "state/") {
    const std::string_view node = rest.substr(0, rest.find('/'));
    if (!is_fleet_id(node) || node.size() == rest.size()) return std::nullopt;
    return parse_state(node, rest.substr(node.size() + 1));
  }
  if (!is_fleet_id(rest)) return std::nullopt;
  if (kind == "nodes/") return FleetKey{.kind = Kind::kNode, .node = std::string(rest)};
  if (kind == "claims/") return FleetKey{.kind = Kind::kClaim, .instance_id = std::string(rest)};
  if (kind == kProfiles) return FleetKey{.kind = Kind::kProfile, .profile = std::string(rest)};
  return std::nullopt;
}

}  // namespace portway
