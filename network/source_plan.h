// With which source address a connection to a guest is made: the client's own, as under DNAT, or the node's
// where that cannot work. Decided for each connection; pure, any thread, no allocation.
//
// A guest's packet filter may trust the node's address. So nothing that a client, a guest or a full table of
// ports can bring about turns the client's address into the node's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/endpoint.h"

namespace portway {

/// Whose address a guest sees as its client's, for each connection to it.
enum class SourcePlan : std::uint8_t {
  kTransparent,     // the client's, with its port
  kPortInUse,       // the client's, with a port of the kernel's choice: the client's own is taken on the node
  kPortPrivileged,  // the same: the client's own is below 1024, and the daemon lacks CAP_NET_BIND_SERVICE
  kProxyV2,         // the node's, and a PROXY protocol header says the client's: as asked for
  kPlain,           // the node's, as asked for
  // The node's, since the client's is impossible. What a guest answers, or does not, is never a reason: it
  // would get a client past the guest's packet filter.
  kHairpin,       // the client is the guest, which would answer itself
  kLoopback,      // the client is on the node, at 127.0.0.0/8 or ::1
  kFamily,        // the client is IPv4 and the guest IPv6, or the other way round
  kNoReturnPath,  // nothing leads the guest's answers back to the node
};
inline constexpr std::size_t kSourcePlans = static_cast<std::size_t>(SourcePlan::kNoReturnPath) + 1;
/// "transparent", "proxy_v2" or "plain".
std::string_view source_mode(SourcePlan plan);
/// Why it is not the mode that was asked for, e.g. "hairpin"; empty if it is.
std::string_view source_fallback(SourcePlan plan);

/// Whether the guest sees the client's address.
constexpr bool is_transparent(SourcePlan plan) {
  return plan == SourcePlan::kTransparent || plan == SourcePlan::kPortInUse ||
         plan == SourcePlan::kPortPrivileged;
}

/// If there is a return path. A client that came through an IPv6 socket (::ffff:198.18.0.1) counts as IPv4. A
/// client at one of the node's own addresses needs no care: its port is in use, by itself. nullopt: a client
/// at an IPv6 link-local address is on a link of the node, and no router would forward it to the guest (RFC
/// 4291, 2.5.6).
std::optional<SourcePlan> plan_source(const Endpoint& client, const Endpoint& guest);

/// The plan to try next, on a new socket, when `tried` failed with the errno `error` of bind(2) or
/// connect(2); nullopt when that is the connection's end. The client's port is taken when a listener of the
/// node has it on all addresses (EADDRINUSE) or the same client port goes to the same guest port already
/// (EADDRNOTAVAIL).
std::optional<SourcePlan> plan_after_failure(SourcePlan tried, int error);

/// The client as bind(2) takes it for the plan: port 0 unless it is the client's, IPv4 as IPv4.
Endpoint source_endpoint(const Endpoint& client, SourcePlan plan);

}  // namespace portway
