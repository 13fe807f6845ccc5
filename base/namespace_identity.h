// Which network namespace it is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace portway {

/// The kernel gives a cookie to one namespace until the node reboots, but the inode of a namespace that is
/// gone to the next one. All zero: the node's own.
struct NamespaceIdentity {
  std::uint64_t cookie = 0;  // SO_NETNS_COOKIE (Linux 5.14); 0: unknown
  std::uint64_t device = 0;  // the file's, as stat(2) reports them
  std::uint64_t inode = 0;

  bool is_nodes_own() const { return inode == 0; }
  friend bool operator==(const NamespaceIdentity& a, const NamespaceIdentity& b) {
    if (a.cookie != 0 && b.cookie != 0) return a.cookie == b.cookie;
    return a.device == b.device && a.inode == b.inode;
  }
};

/// As the store has it: "COOKIE:DEVICE:INODE"; empty for the node's own.
std::string to_string(const NamespaceIdentity& identity);
std::optional<NamespaceIdentity> parse_namespace_identity(std::string_view text);

}  // namespace portway
