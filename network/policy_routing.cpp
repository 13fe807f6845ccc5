#include "network/policy_routing.h"

#include <fmt/format.h>
#include <linux/fib_rules.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/ip/address_v6.hpp>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <string>

namespace portway {
namespace {

NetlinkMessage rule_message(std::uint16_t type, std::uint16_t flags, int family, const RoutingRule& rule) {
  fib_rule_hdr body{};
  body.family = static_cast<__u8>(family);
  body.action = FR_ACT_TO_TBL;
  if (rule.source) body.src_len = rule.source->is_v4() ? 32 : 128;
  NetlinkMessage message(type, flags, body);
  message.add(FRA_PRIORITY, rule.preference);
  if (!rule.interface.empty()) message.add(FRA_IIFNAME, std::string_view(rule.interface));
  if (rule.mark != 0) {
    message.add(FRA_FWMARK, rule.mark);
    message.add(FRA_FWMASK, rule.mark);
  }
  if (rule.source) message.add(FRA_SRC, *rule.source);
  if (rule.source_port != 0) {
    const fib_rule_port_range range{.start = rule.source_port, .end = rule.source_port};
    message.add_byte(FRA_IP_PROTO, IPPROTO_TCP);
    message.add(FRA_SPORT_RANGE, &range, sizeof range);
  }
  message.add(FRA_TABLE, rule.table);
  message.add_byte(FRA_PROTOCOL, kPortwayProtocol);
  return message;
}

std::string rule_text(std::string_view verb, int family, const RoutingRule& rule) {
  return fmt::format("ip{} rule {} pref {}", family == AF_INET6 ? " -6" : "", verb, rule.preference);
}

std::optional<IpAddress> address_of(const rtattr& attribute) {
  const auto* bytes = static_cast<const std::uint8_t*>(RTA_DATA(&attribute));
  boost::asio::ip::address_v4::bytes_type v4;
  boost::asio::ip::address_v6::bytes_type v6;
  if (RTA_PAYLOAD(&attribute) == v4.size()) {
    std::copy_n(bytes, v4.size(), v4.begin());
    return boost::asio::ip::address_v4(v4);
  }
  if (RTA_PAYLOAD(&attribute) != v6.size()) return std::nullopt;
  std::copy_n(bytes, v6.size(), v6.begin());
  return boost::asio::ip::address_v6(v6);
}

/// Of a range, the first.
std::uint16_t port_of(const rtattr& attribute) {
  fib_rule_port_range range{};
  if (RTA_PAYLOAD(&attribute) < sizeof range) return 0;
  std::memcpy(&range, RTA_DATA(&attribute), sizeof range);
  return range.start;
}

NetlinkMessage route_message(std::uint16_t type, std::uint16_t flags, int family, const LocalDefault& route) {
  rtmsg body{};
  body.rtm_family = static_cast<unsigned char>(family);
  body.rtm_table = RT_TABLE_UNSPEC;  // the attribute has it: it does not fit here
  body.rtm_protocol = kPortwayProtocol;
  body.rtm_scope = RT_SCOPE_HOST;
  body.rtm_type = RTN_LOCAL;
  NetlinkMessage message(type, flags, body);
  message.add(RTA_TABLE, route.table);
  message.add(RTA_OIF, static_cast<std::uint32_t>(route.link));
  if (route.link != kLoopbackLink) message.add(RTA_PRIORITY, static_cast<std::uint32_t>(route.link));
  return message;
}

std::string route_text(std::string_view verb, int family, const LocalDefault& route) {
  return fmt::format("ip{} route {} local default dev {} table {}", family == AF_INET6 ? " -6" : "", verb,
                     route.link == kLoopbackLink ? "lo" : fmt::format("(link {})", route.link), route.table);
}

/// Whether it had to be done does not matter.
Result<void> without_answer(const Result<bool>& done) {
  if (!done) return done.error();
  return {};
}

}  // namespace

Result<void> add_rule(Netlink& netlink, int family, const RoutingRule& rule) {
  auto message = rule_message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, family, rule);
  return without_answer(netlink.request(message, rule_text("add", family, rule), {EEXIST}));
}

Result<void> delete_rule(Netlink& netlink, int family, const RoutingRule& rule) {
  auto message = rule_message(RTM_DELRULE, 0, family, rule);
  return without_answer(netlink.request(message, rule_text("delete", family, rule), {ENOENT, EAFNOSUPPORT}));
}

namespace {

/// Calls `on_rule` for each, with its protocol.
Result<void> list_rules(Netlink& netlink, int family, const std::function<void()>& on_restart,
                        const std::function<void(const RoutingRule&, std::uint8_t protocol)>& on_rule) {
  fib_rule_hdr body{};
  body.family = static_cast<__u8>(family);
  NetlinkMessage message(RTM_GETRULE, 0, body);
  auto on_message = [&](const nlmsghdr& header) {
    RoutingRule rule;
    std::uint8_t protocol = 0;
    for_each_attribute(header, sizeof(fib_rule_hdr), [&](const rtattr& attribute) {
      switch (attribute.rta_type) {
        case FRA_PRIORITY:
          rule.preference = attribute_number(attribute);
          break;
        case FRA_FWMARK:
          rule.mark = attribute_number(attribute);
          break;
        case FRA_TABLE:
          rule.table = attribute_number(attribute);
          break;
        case FRA_IIFNAME:
          rule.interface = attribute_text(attribute);
          break;
        case FRA_SRC:
          rule.source = address_of(attribute);
          break;
        case FRA_SPORT_RANGE:
          rule.source_port = port_of(attribute);
          break;
        case FRA_PROTOCOL:
          protocol = *static_cast<const std::uint8_t*>(RTA_DATA(&attribute));
          break;
        default:
          break;
      }
    });
    on_rule(rule, protocol);
  };
  return netlink.dump(message, "ip rule list", on_restart, on_message, {EAFNOSUPPORT});
}

}  // namespace

Result<std::vector<RoutingRule>> our_rules(Netlink& netlink, int family) {
  std::vector<RoutingRule> rules;
  auto done = list_rules(
      netlink, family, [&] { rules.clear(); },
      [&](const RoutingRule& rule, std::uint8_t protocol) {
        if (protocol == kPortwayProtocol) rules.push_back(rule);
      });
  if (!done) return done.error();
  return rules;
}

Result<std::vector<RoutingRule>> other_rules(Netlink& netlink, int family) {
  std::vector<RoutingRule> rules;
  auto done = list_rules(
      netlink, family, [&] { rules.clear(); },
      [&](const RoutingRule& rule, std::uint8_t protocol) {
        if (protocol != kPortwayProtocol && rule.preference != 0) rules.push_back(rule);
      });
  if (!done) return done.error();
  return rules;
}

Result<void> add_local_default(Netlink& netlink, int family, const LocalDefault& route) {
  auto message = route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, family, route);
  return without_answer(netlink.request(message, route_text("add", family, route), {EEXIST}));
}

Result<void> delete_local_default(Netlink& netlink, int family, const LocalDefault& route) {
  auto message = route_message(RTM_DELROUTE, 0, family, route);
  return without_answer(
      netlink.request(message, route_text("delete", family, route), {ESRCH, ENOENT, ENODEV, EAFNOSUPPORT}));
}

namespace {

/// Ours; `table`: of this one only, or 0: of all.
Result<std::vector<LocalDefault>> find_local_defaults(Netlink& netlink, int family, std::uint32_t table) {
  rtmsg body{};
  body.rtm_family = static_cast<unsigned char>(family);
  body.rtm_protocol = kPortwayProtocol;
  body.rtm_type = RTN_LOCAL;
  NetlinkMessage message(RTM_GETROUTE, 0, body);
  if (table != 0) message.add(RTA_TABLE, table);  // a node may have a million routes in others
  std::vector<LocalDefault> found;
  auto on_route = [&](const nlmsghdr& header) {
    const auto& route = netlink_body<rtmsg>(header);
    LocalDefault here{.table = route.rtm_table, .link = 0};
    for_each_attribute(header, sizeof(rtmsg), [&](const rtattr& attribute) {
      if (attribute.rta_type == RTA_TABLE) here.table = attribute_number(attribute);
      if (attribute.rta_type == RTA_OIF) here.link = static_cast<int>(attribute_number(attribute));
    });
    const bool wanted = table == 0 || here.table == table;
    if (wanted && route.rtm_protocol == kPortwayProtocol && route.rtm_type == RTN_LOCAL &&
        route.rtm_dst_len == 0) {
      found.push_back(here);
    }
  };
  // A table that was never used does not exist.
  auto done =
      netlink.dump(message, "ip route list", [&] { found.clear(); }, on_route, {ENOENT, EAFNOSUPPORT});
  if (!done) return done.error();
  return found;
}

}  // namespace

Result<bool> has_local_default(Netlink& netlink, int family, const LocalDefault& route) {
  auto found = find_local_defaults(netlink, family, route.table);
  if (!found) return found.error();
  return std::ranges::find(*found, route) != found->end();
}

Result<std::vector<LocalDefault>> our_local_defaults(Netlink& netlink, int family) {
  return find_local_defaults(netlink, family, 0);
}

InputRoute look_up_input_route(Netlink& netlink, const InputPacket& packet) {
  const bool v4 = packet.source.is_v4();
  rtmsg body{};
  body.rtm_family = v4 ? AF_INET : AF_INET6;
  body.rtm_src_len = body.rtm_dst_len = v4 ? 32 : 128;
  if (v4) body.rtm_flags = RTM_F_LOOKUP_TABLE;  // tell the table that it was found in, as IPv6 does anyway
  NetlinkMessage message(RTM_GETROUTE, 0, body);
  message.add(RTA_IIF, static_cast<std::uint32_t>(packet.link));
  message.add(RTA_SRC, packet.source);
  message.add(RTA_DST, packet.destination);
  if (packet.mark != 0) message.add(RTA_MARK, packet.mark);
  if (packet.source_port != 0) {
    const std::uint16_t port = htons(packet.source_port);
    message.add_byte(RTA_IP_PROTO, IPPROTO_TCP);
    message.add(RTA_SPORT, &port, sizeof port);
  }
  InputRoute route;
  route.error = netlink.query(message, [&](const nlmsghdr& header) {
    route.type = netlink_body<rtmsg>(header).rtm_type;
    route.table = netlink_body<rtmsg>(header).rtm_table;
    for_each_attribute(header, sizeof(rtmsg), [&](const rtattr& attribute) {
      if (attribute.rta_type == RTA_TABLE) route.table = attribute_number(attribute);
    });
  });
  return route;
}

OutputRoute look_up_output_route(Netlink& netlink, const IpAddress& destination) {
  rtmsg body{};
  body.rtm_family = destination.is_v4() ? AF_INET : AF_INET6;
  body.rtm_dst_len = destination.is_v4() ? 32 : 128;
  NetlinkMessage message(RTM_GETROUTE, 0, body);
  message.add(RTA_DST, destination);
  OutputRoute route;
  route.error = netlink.query(message, [&](const nlmsghdr& header) {
    route.type = netlink_body<rtmsg>(header).rtm_type;
    for_each_attribute(header, sizeof(rtmsg), [&](const rtattr& attribute) {
      if (attribute.rta_type == RTA_OIF) route.link = static_cast<int>(attribute_number(attribute));
    });
  });
  return route;
}

/// Not by getifaddrs(3), which reads all links first: 10 ms where there are a thousand of them.
Result<std::vector<IpAddress>> local_addresses(const NetworkNamespace& netns) {
  const auto inside = netns.enter();
  if (!inside) return inside.error();
  return local_addresses();
}

Result<std::vector<IpAddress>> local_addresses() {
  auto netlink = Netlink::open();
  if (!netlink) return netlink.error();
  ifaddrmsg body{};
  body.ifa_family = AF_UNSPEC;
  NetlinkMessage message(RTM_GETADDR, 0, body);
  std::vector<IpAddress> addresses;
  const auto read = (*netlink)->dump(
      message, "the node's addresses are unknown: RTM_GETADDR", [&] { addresses.clear(); },
      [&](const nlmsghdr& header) {
        // On a point-to-point link IFA_ADDRESS is the other end's.
        std::optional<IpAddress> local;
        std::optional<IpAddress> address;
        for_each_attribute(header, sizeof(ifaddrmsg), [&](const rtattr& attribute) {
          if (attribute.rta_type == IFA_LOCAL) local = address_of(attribute);
          if (attribute.rta_type == IFA_ADDRESS) address = address_of(attribute);
        });
        if (local || address) addresses.push_back(folded(local ? *local : *address));
      });
  if (!read) return read.error();
  return addresses;
}

std::vector<IpAddress> addresses_lost(std::span<const IpAddress> addresses) {
  std::vector<IpAddress> lost;
  auto netlink = Netlink::open();
  if (!netlink) return lost;
  std::ranges::copy_if(addresses, std::back_inserter(lost), [&](const IpAddress& address) {
    if (address.is_unspecified()) return false;
    const OutputRoute route = look_up_output_route(**netlink, address);
    // ENETUNREACH and the like are answers about the route.
    const bool answered = route.error == 0 || route.error == ENETUNREACH || route.error == EHOSTUNREACH ||
                          route.error == EACCES || route.error == EINVAL;
    return answered && route.type != RTN_LOCAL;
  });
  return lost;
}

}  // namespace portway
