#include "network/return_path_checks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "network/traffic_control.h"

namespace portway {
namespace {

// Used unless another program's rules come earlier. Outside of 5210 to 5290: Tailscale deletes rules there,
// whoever made them.
constexpr std::uint32_t kUsualPreference = 5108;
// An abstract Unix socket's name is one network namespace's.
constexpr std::string_view kLockName{"\0portway/return-path", 20};

}  // namespace

Result<Fd> take_return_path_lock() {
  Fd lock(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::ranges::copy(kLockName, name.sun_path);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + kLockName.size());
  if (lock && ::bind(lock.get(), reinterpret_cast<const sockaddr*>(&name), size) == 0) return lock;
  return Error{.code = ErrorCode::kResourceExhausted,
               .detail = errno == EADDRINUSE
                             ? "another Portway shows guests their clients' addresses in this network "
                               "namespace; run one only"
                             : fmt::format("return path: the lock of the network namespace: {}",
                                           std::strerror(errno))};
}

Result<void> remove_our_rules(Netlink& netlink, int family) {
  auto rules = our_rules(netlink, family);
  if (!rules) return rules.error();
  for (const RoutingRule& rule : *rules) {
    if (auto done = delete_rule(netlink, family, rule); !done) return done.error();
  }
  return {};
}

Result<void> remove_our_filters(Netlink& netlink, int link) {
  auto filters = our_filters(netlink, link);
  if (!filters) return filters.error();
  for (const OurFilter& filter : *filters) {
    if (auto done = delete_filter(netlink, link, filter); !done) return done.error();
  }
  return {};
}

Result<void> remove_everything(Netlink& netlink) {
  for (const int family : kFamilies) {
    if (auto done = remove_our_rules(netlink, family); !done) return done.error();
    auto routes = our_local_defaults(netlink, family);
    if (!routes) return routes.error();
    for (const LocalDefault& route : *routes) {
      if (auto done = delete_local_default(netlink, family, route); !done) return done.error();
    }
  }
  return remove_filters(netlink);
}

Result<void> remove_filters(Netlink& netlink) {
  auto links = links_with_hook(netlink);
  if (!links) return links.error();
  for (const int link : *links) {
    if (auto done = remove_our_filters(netlink, link); !done) return done.error();
  }
  return {};
}

Result<std::uint32_t> choose_preference(Netlink& netlink) {
  std::uint32_t chosen = kUsualPreference + 1;
  for (const int family : kFamilies) {
    auto others = other_rules(netlink, family);
    if (!others) return others.error();
    for (const RoutingRule& other : *others) {
      if (other.preference > 2) chosen = std::min(chosen, other.preference - 1);
    }
  }
  return chosen;
}

Result<void> check_mark(Netlink& netlink, std::uint32_t mark_bit) {
  for (const int family : kFamilies) {
    auto others = other_rules(netlink, family);
    if (!others) return others.error();
    for (const RoutingRule& other : *others) {
      if ((other.mark & (std::uint32_t{1} << mark_bit)) == 0) continue;
      return Error{
          .code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("return path: another program's routing rule (preference {}, fwmark "
                                "{:#x}) uses bit {} of the packet mark; set proxy.source_mark_bit to "
                                "one that no rule in `ip rule` has",
                                other.preference, other.mark, mark_bit)};
    }
  }
  return {};
}

Result<void> try_transparent(const IpAddress& client) {
  const bool v4 = client.is_v4();
  const Endpoint address(client, 0);
  constexpr int kOn = 1;
  const Fd socket(::socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const bool done = socket &&
                    ::setsockopt(socket.get(), v4 ? SOL_IP : SOL_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT,
                                 &kOn, sizeof kOn) == 0 &&
                    ::bind(socket.get(), address.data(), static_cast<socklen_t>(address.size())) == 0;
  if (done) return {};
  return Error{
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format("return path: no socket can have a client's {} address (IP_TRANSPARENT): "
                            "{}{}",
                            v4 ? "IPv4" : "IPv6", std::strerror(errno),
                            errno == EPERM ? "; it needs CAP_NET_ADMIN or CAP_NET_RAW" : "")};
}

Result<void> check_ethernet(Netlink& netlink, int link) {
  const auto device = find_device(netlink, link);
  if (!device) return no_such_link(link);
  if (device->type == ARPHRD_ETHER) return {};
  return Error{
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format("return path: {} is no Ethernet device; give the guest a tap", device->name)};
}

Result<int> find_bridge(Netlink& netlink, int link, const std::string& bridge) {
  const auto port = find_device(netlink, link);
  if (!port) return no_such_link(link);
  const auto master = port->master != 0 ? find_device(netlink, port->master) : std::nullopt;
  if (master && master->kind == "bridge" && master->name == bridge) return port->master;
  return Error{.code = ErrorCode::kResourceExhausted,
               .detail = fmt::format("return path: {0} is no port of a bridge {1}; plug it in (ip link set "
                                     "{0} master {1}), or register the guest with the bridge that it is on",
                                     port->name, bridge)};
}

Result<void> try_rules(Netlink& netlink, std::uint32_t table) {
  const LocalDefault route{.table = table};
  if (const auto there = has_local_default(netlink, AF_INET, route); there && *there)
    return {};  // it is in use
  if (auto done = add_local_default(netlink, AF_INET, route); !done) return done.error();
  return delete_local_default(netlink, AF_INET, route);
}

std::string name_of(Netlink& netlink, int link) {
  const auto device = find_device(netlink, link);
  return device ? device->name : "";
}

Error no_such_link(int link) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("return path: there is no link {}", link)};
}

Result<void> check_delivery(Netlink& netlink, std::uint32_t preference, const InputPacket& packet) {
  const InputRoute route = look_up_input_route(netlink, packet);
  if (route.error == 0 && route.type == RTN_LOCAL) return {};
  const int family = packet.source.is_v4() ? AF_INET : AF_INET6;
  const std::string guest = packet.source.to_string();
  const std::string device = name_of(netlink, packet.link);
  std::string reason =
      route.error != 0 ? std::strerror(route.error) : fmt::format("routing table {} has them", route.table);
  if (family == AF_INET && (route.error == EINVAL || route.error == EXDEV)) {
    reason = fmt::format(
        "the kernel's check of the source address (rp_filter) refuses them where no route leads to {0} over "
        "{1}, and a blackhole does; give the tap an address in the guest's network, or run: "
        "ip route add {0} dev {1}",
        guest, device);
  }
  std::vector<std::uint32_t> before;
  if (auto others = other_rules(netlink, family)) {
    for (const RoutingRule& other : *others) {
      if (other.preference <= preference) before.push_back(other.preference);
    }
  }
  if (!before.empty()) {
    reason += fmt::format("; routing rules that come before Portway's (preference {}): {}", preference,
                          fmt::join(before, ", "));
  }
  return Error{
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format("return path: answers of {} on {} to its clients do not come to the node: {}",
                            guest, device, reason)};
}

}  // namespace portway
