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
#include <string>

namespace portway {
namespace {

constexpr int kLoopbackIndex = 1;  // in each network namespace (LOOPBACK_IFINDEX, include/net/flow.h)

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
  if (rule.source && rule.source->is_v4()) {
    const auto bytes = rule.source->to_v4().to_bytes();
    message.add(FRA_SRC, bytes.data(), bytes.size());
  } else if (rule.source) {
    const auto bytes = rule.source->to_v6().to_bytes();
    message.add(FRA_SRC, bytes.data(), bytes.size());
  }
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

NetlinkMessage route_message(std::uint16_t type, std::uint16_t flags, int family, std::uint32_t table) {
  rtmsg body{};
  body.rtm_family = static_cast<unsigned char>(family);
  body.rtm_table = RT_TABLE_UNSPEC;  // the attribute has it: it does not fit here
  body.rtm_protocol = kPortwayProtocol;
  body.rtm_scope = RT_SCOPE_HOST;
  body.rtm_type = RTN_LOCAL;
  NetlinkMessage message(type, flags, body);
  message.add(RTA_TABLE, table);
  message.add(RTA_OIF, kLoopbackIndex);
  return message;
}

std::string route_text(std::string_view verb, int family, std::uint32_t table) {
  return fmt::format("ip{} route {} local default dev lo table {}", family == AF_INET6 ? " -6" : "", verb,
                     table);
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

Result<std::vector<RoutingRule>> our_rules(Netlink& netlink, int family) {
  fib_rule_hdr body{};
  body.family = static_cast<__u8>(family);
  NetlinkMessage message(RTM_GETRULE, 0, body);
  std::vector<RoutingRule> rules;
  auto on_rule = [&](const nlmsghdr& header) {
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
    if (protocol == kPortwayProtocol) rules.push_back(rule);
  };
  auto done = netlink.dump(message, "ip rule list", [&] { rules.clear(); }, on_rule, {EAFNOSUPPORT});
  if (!done) return done.error();
  return rules;
}

Result<void> add_local_default(Netlink& netlink, int family, std::uint32_t table) {
  auto message = route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, family, table);
  return without_answer(netlink.request(message, route_text("add", family, table), {EEXIST}));
}

Result<void> delete_local_default(Netlink& netlink, int family, std::uint32_t table) {
  auto message = route_message(RTM_DELROUTE, 0, family, table);
  return without_answer(
      netlink.request(message, route_text("delete", family, table), {ESRCH, ENOENT, EAFNOSUPPORT}));
}

Result<bool> has_local_default(Netlink& netlink, int family, std::uint32_t table) {
  rtmsg body{};
  body.rtm_family = static_cast<unsigned char>(family);
  NetlinkMessage message(RTM_GETROUTE, 0, body);
  message.add(RTA_TABLE, table);  // a node may have a million routes in others
  bool found = false;
  auto on_route = [&](const nlmsghdr& header) {
    const auto& route = netlink_body<rtmsg>(header);
    std::uint32_t in_table = route.rtm_table;
    int out = 0;
    for_each_attribute(header, sizeof(rtmsg), [&](const rtattr& attribute) {
      if (attribute.rta_type == RTA_TABLE) in_table = attribute_number(attribute);
      if (attribute.rta_type == RTA_OIF) out = static_cast<int>(attribute_number(attribute));
    });
    found |= in_table == table && out == kLoopbackIndex && route.rtm_protocol == kPortwayProtocol &&
             route.rtm_type == RTN_LOCAL && route.rtm_dst_len == 0;
  };
  // A table that was never used does not exist.
  auto done =
      netlink.dump(message, "ip route list", [&] { found = false; }, on_route, {ENOENT, EAFNOSUPPORT});
  if (!done) return done.error();
  return found;
}

}  // namespace portway
