// TCP sockets that no process has any more. The kernel still delivers what they had to send, and their FIN.
// If the peer is silent it tries for minutes, and meanwhile each keeps its network namespace alive.
#pragma once

#include <cstddef>
#include <span>

#include "base/endpoint.h"
#include "network/namespace.h"

namespace portway {

/// Ends those in a namespace that are bound to this interface (0: to none) and whose peer has one of these
/// addresses; their peers get RST. Returns how many. 0 also if the kernel does not permit it: it needs
/// CAP_NET_ADMIN, and INET_DIAG_DESTROY (sock_diag(7), Linux 4.9). Takes a millisecond for some thousand
/// sockets.
std::size_t end_orphaned_sockets(const NetworkNamespace& netns, int link, std::span<const IpAddress> peers);

/// Drops the packets that wait for the peers' link-layer addresses on an interface of the namespace: if the
/// machine is gone, the RSTs of its connections wait there for three seconds, and keep the namespace alive.
/// Nothing else changes. Without CAP_NET_ADMIN, or before Linux 5.0, they stay.
void drop_unresolved_packets(const NetworkNamespace& netns, int link, std::span<const IpAddress> peers);

}  // namespace portway
