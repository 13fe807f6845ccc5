// A node's record in etcd as JSON: what it says of itself, and by what it knows the record as its own.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "fleet/fleet_node.h"

namespace portway {

struct RegisteredNode {
  NodeRecord record;
  // Of the machine and the store. The same after a restart; another one after a reboot, and on another
  // machine that was given the same id.
  std::string identity;

  friend bool operator==(const RegisteredNode&, const RegisteredNode&) = default;
};

std::string to_json(const RegisteredNode& node);
/// nullopt: it is none.
std::optional<RegisteredNode> parse_registered_node(std::string_view json);

}  // namespace portway
