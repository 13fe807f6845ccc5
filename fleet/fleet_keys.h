// Where the fleet's records are in etcd, below one prefix:
//
//   nodes/NODE                            a node that is alive, on its lease (fleet/node_record.h)
//   state/NODE/instances/INSTANCE         an instance that the node has, as its API answers it
//   state/NODE/forwards/INSTANCE/FORWARD  a forward of it, likewise
//   claims/INSTANCE                       which node has the instance (fleet/claim.h)
//   keys/UUID                             an API key of the fleet (api/shared_records.h)
//   profiles/NAME                         a profile of the fleet, likewise
//
// Nodes write the first four, gateways the last two.
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
  enum class Kind : std::uint8_t { kNode, kInstance, kForward, kClaim, kApiKey, kProfile };

  Kind kind = Kind::kNode;
  std::string node = {};         // of a node, an instance or a forward
  std::string instance_id = {};  // of an instance, a forward or a claim
  ForwardId forward{};           // of a forward
  Uuid api_key{};                // of an API key
  std::string profile = {};      // of a profile

  friend bool operator==(const FleetKey&, const FleetKey&) = default;
};

class FleetKeys {
 public:
  /// `prefix` ends with a slash: "/portway/".
  explicit FleetKeys(std::string prefix) : prefix_(std::move(prefix)) {}

  std::string node(std::string_view node_id) const;
  std::string claim(std::string_view instance_id) const;
  std::string instance(std::string_view node_id, std::string_view instance_id) const;
  std::string forward(std::string_view node_id, std::string_view instance_id, const ForwardId& id) const;
  std::string api_key(const Uuid& id) const;
  std::string profile(std::string_view name) const;
  /// All forwards of an instance.
  EtcdKeys forwards(std::string_view node_id, std::string_view instance_id) const;
  /// All that a node has.
  EtcdKeys state(std::string_view node_id) const;
  EtcdKeys api_keys() const;
  EtcdKeys profiles() const;
  /// All keys of the fleet.
  EtcdKeys all() const { return EtcdKeys::with_prefix(prefix_); }

  /// nullopt: not a key that this program writes.
  std::optional<FleetKey> parse(std::string_view key) const;

 private:
  std::string prefix_;
};

}  // namespace portway
