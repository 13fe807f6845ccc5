// With which source address a connection to a guest is made: the client's own, as under DNAT, or the node's
// where that cannot work. Decided for each connection; pure, any thread, no allocation.
//
// A guest's packet filter may trust the node's address. So nothing that a client, a guest or a full table of
// ports can bring about turns the client's address into the node's.
#pragma once

#include <optional>

#include "config/endpoint.h"
#include "metrics/stats.h"

namespace portway {

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
