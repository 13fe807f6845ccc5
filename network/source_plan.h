// With which source address a connection to a guest is made: the client's own, as under DNAT, or the node's
// where that cannot work. Decided for each connection; pure, any thread, no allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "config/endpoint.h"

namespace portway {

enum class SourcePlan : std::uint8_t {
  kTransparent,  // the client's address and port
  kPortInUse,    // the client's address, with a port of the kernel's choice: the client's own is taken on the
                 // node
  // The node's address ("plain"), since with the client's no answer would come:
  kHairpin,      // the client is the guest, which would answer itself
  kLoopback,     // the client is on the node, at 127.0.0.0/8 or ::1
  kLocalClient,  // the client is on the node, at another of its addresses
  kLinkLocal,    // a link-local address: the guest would look for the client on its own link
  kFamily,       // the client is IPv4 and the guest IPv6, or the other way round
};
inline constexpr std::size_t kSourcePlans = static_cast<std::size_t>(SourcePlan::kFamily) + 1;

/// As metrics and the log write it, e.g. "local_client".
std::string_view to_string(SourcePlan plan);

/// Whether the guest sees the client's address.
constexpr bool is_transparent(SourcePlan plan) {
  return plan == SourcePlan::kTransparent || plan == SourcePlan::kPortInUse;
}

/// `node_addresses` are the node's own, sorted, IPv4 as IPv4 (local_addresses() and std::ranges::sort). A
/// client that came through an IPv6 socket (::ffff:198.18.0.1) counts as IPv4.
SourcePlan plan_source(const Endpoint& client, const Endpoint& guest,
                       std::span<const IpAddress> node_addresses);

/// The plan to try next, on a new socket, when bind(2) or connect(2) of `tried` failed with the errno
/// `error`; nullopt when that is the connection's end. The client's port is taken when a listener of the node
/// has it on all addresses (EADDRINUSE) or the same client port goes to the same guest port already
/// (EADDRNOTAVAIL).
std::optional<SourcePlan> plan_after_failure(SourcePlan tried, int error);

}  // namespace portway
