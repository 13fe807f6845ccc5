// Routing rules and local routes of the node (ip-rule(8), ip-route(8)), as far as the return path needs them.
// What is made here carries a protocol number of our own, which distinguishes it from everybody else's.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "network/namespace.h"
#include "network/netlink.h"

namespace portway {

/// Our routes' and rules' protocol number (`proto 210` in listings): no name has it in
/// /etc/iproute2/rt_protos.
inline constexpr std::uint8_t kPortwayProtocol = 210;

/// "Packets like these are routed by that table."
struct RoutingRule {
  std::uint32_t preference = 0;
  std::uint32_t table = 0;
  // The interface that they arrive on; "lo": those that the node sends, and looking up where a source is;
  // empty: any.
  std::string interface = {};
  std::uint32_t mark = 0;  // these bits are all set; ours look at no others
  std::optional<IpAddress> source = std::nullopt;
  std::uint16_t source_port = 0;  // TCP; 0: any, and any protocol

  friend bool operator==(const RoutingRule&, const RoutingRule&) = default;
};

/// `family` is AF_INET or AF_INET6. Idempotent: EEXIST is success.
Result<void> add_rule(Netlink& netlink, int family, const RoutingRule& rule);
/// Idempotent: succeeds if there is none.
Result<void> delete_rule(Netlink& netlink, int family, const RoutingRule& rule);
/// Those of kPortwayProtocol.
Result<std::vector<RoutingRule>> our_rules(Netlink& netlink, int family);
/// Everybody else's, in order, without the kernel's own (0, the table `local`).
Result<std::vector<RoutingRule>> other_rules(Netlink& netlink, int family);

/// Interface index of lo in each network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
inline constexpr int kLoopbackLink = 1;

/// `local default dev LINK table TABLE`: whatever is looked up there is delivered to this node. It does not
/// matter by which link; but the kernel makes no IPv6 route over one that is down, and takes away all routes
/// of one that is deleted. Routes over other links than lo have its index as their metric, so that a table
/// can have several.
struct LocalDefault {
  std::uint32_t table = 0;
  int link = kLoopbackLink;

  friend bool operator==(const LocalDefault&, const LocalDefault&) = default;
};

Result<void> add_local_default(Netlink& netlink, int family, const LocalDefault& route);
/// Idempotent: succeeds if there is none.
Result<void> delete_local_default(Netlink& netlink, int family, const LocalDefault& route);
/// Whether it is there, of kPortwayProtocol.
Result<bool> has_local_default(Netlink& netlink, int family, const LocalDefault& route);
/// Those of kPortwayProtocol. The kernel looks through all routes of the family.
Result<std::vector<LocalDefault>> our_local_defaults(Netlink& netlink, int family);

/// A TCP packet that comes in by a link.
struct InputPacket {
  int link = 0;
  IpAddress source;
  IpAddress destination;
  std::uint32_t mark = 0;
  std::uint16_t source_port = 0;  // 0: none is looked at
};

/// What becomes of such a packet (`ip route get DESTINATION from SOURCE iif LINK`): the kernel's own look-up,
/// with everybody's rules, and for IPv4 with the check of the source address (rp_filter).
struct InputRoute {
  int error = 0;          // an errno; EINVAL and EXDEV, of IPv4: the source address is not accepted
  std::uint8_t type = 0;  // RTN_LOCAL: it is delivered to this node
  std::uint32_t table = 0;
};
InputRoute look_up_input_route(Netlink& netlink, const InputPacket& packet);

/// What becomes of a packet that the node sends to this address, from any of its own.
struct OutputRoute {
  int error = 0;          // an errno
  std::uint8_t type = 0;  // RTN_LOCAL: the address is the node's
  int link = 0;
};
OutputRoute look_up_output_route(Netlink& netlink, const IpAddress& destination);

/// Every address of this node's interfaces, without zones: about a millisecond where there are a thousand.
/// kResourceExhausted when the kernel does not answer.
Result<std::vector<IpAddress>> local_addresses();
/// The same in another namespace.
Result<std::vector<IpAddress>> local_addresses(const NetworkNamespace& netns);
/// Those that are no address of this node now. None if the kernel does not answer. 0.0.0.0 and :: are
/// never lost.
std::vector<IpAddress> addresses_lost(std::span<const IpAddress> addresses);

}  // namespace portway
