// Where the fleet's records are in etcd, below one prefix:
//
//   nodes/NODE                            a node that is alive, on its lease (fleet/node_record.h)
//   state/NODE/instances/INSTANCE         an instance that the node has, as its API answers it
//   state/NODE/forwards/INSTANCE/FORWARD  a forward of it, likewise
//   claims/INSTANCE                       which node has the instance (fleet/claim.h)
//
// Ids have no slash in them (is_fleet_id).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/forward.h"
#include "fleet/etcd_values.h"

namespace portway {

/// 1-64 of [A-Za-z0-9._-], as an instance's id.
bool is_fleet_id(std::string_view id);

/// What a key is about.
struct FleetKey {
  enum class Kind : std::uint8_t { kNode, kInstance, kForward, kClaim };

  Kind kind = Kind::kNode;
  std::string node = {};         // not of a claim
  std::string instance_id = {};  // not of a node
  ForwardId forward{};           // of a forward

  friend bool operator==(const FleetKey&, const FleetKey&) = default;
};

/// What a key below state/NODE/ is about.
struct StateKey {
  std::string instance_id;
  std::optional<ForwardId> forward = std::nullopt;  // absent: the instance itself

  friend bool operator==(const StateKey&, const StateKey&) = default;
};

class FleetKeys {
 public:
  /// `prefix` ends with a slash: "/portway/".
  explicit FleetKeys(std::string prefix) : prefix_(std::move(prefix)) {}

  std::string node(std::string_view node_id) const;
  std::string claim(std::string_view instance_id) const;
  std::string instance(std::string_view node_id, std::string_view instance_id) const;
  std::string forward(std::string_view node_id, std::string_view instance_id, const ForwardId& id) const;
  /// All forwards of an instance.
  EtcdKeys forwards(std::string_view node_id, std::string_view instance_id) const;
  /// All that a node has.
  EtcdKeys state(std::string_view node_id) const;

  /// All keys of the fleet.
  EtcdKeys all() const { return EtcdKeys::with_prefix(prefix_); }

  /// nullopt: not a key that this program writes.
  std::optional<FleetKey> parse(std::string_view key) const;
  /// The same of what one node has.
  std::optional<StateKey> parse_state(std::string_view node_id, std::string_view key) const;

 private:
  std::string prefix_;
};

}  // namespace portway
