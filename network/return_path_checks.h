// What a node must permit before it can have a return path (network/return_path.h), what the kernel would do
// with a guest's answer, and the removal of what an earlier daemon left. Errors are kResourceExhausted; their
// detail names the remedy.
//
// Control thread, in the network namespace that is meant.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <string>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"
#include "network/netlink.h"
#include "network/policy_routing.h"

namespace portway {

inline constexpr std::array kFamilies = {AF_INET, AF_INET6};

// Nobody has these addresses (RFC 5737, RFC 3849): they stand for clients'.
inline const IpAddress kAnyClientV4 = boost::asio::ip::address_v4(0xc0000201);  // 192.0.2.1
inline const IpAddress kAnyClientV6 =                                           // 2001:db8::1
    boost::asio::ip::address_v6({0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});

/// The network namespace's return path, reserved for this process for as long as the descriptor is open.
Result<Fd> take_return_path_lock();

// --- Before it starts.

/// Removes what a predecessor left that did not end by itself, whatever its settings were.
Result<void> remove_everything(Netlink& netlink);
/// Of that, only the filters of the links.
Result<void> remove_filters(Netlink& netlink);
/// All of ours of one family, also those that a predecessor made otherwise.
Result<void> remove_our_rules(Netlink& netlink, int family);
/// Removes our filters from a link.
Result<void> remove_our_filters(Netlink& netlink, int link);
/// A preference that comes before all other rules, as does the one below it; if there is none, the usual one.
Result<std::uint32_t> choose_preference(Netlink& netlink);
/// No other program's rule uses the bit: ours would take the packets that it marks.
Result<void> check_mark(Netlink& netlink, std::uint32_t mark_bit);
/// A socket can be bound to an address that is not the node's (ip(7), IP_TRANSPARENT).
Result<void> try_transparent(const IpAddress& client);
/// The network may be changed at all.
Result<void> try_rules(Netlink& netlink, std::uint32_t table);

// --- Of a guest's link.

/// Empty if there is no such link.
std::string name_of(Netlink& netlink, int link);
Error no_such_link(int link);
/// The packet program reads Ethernet frames.
Result<void> check_ethernet(Netlink& netlink, int link);
/// The index of the bridge with this name, if the link is one of its ports.
Result<int> find_bridge(Netlink& netlink, int link, const std::string& bridge);
/// The kernel would deliver such a packet to this node; if not, the detail says what stands in the way.
/// `preference` is that of our rule.
Result<void> check_delivery(Netlink& netlink, std::uint32_t preference, const InputPacket& packet);

}  // namespace portway
