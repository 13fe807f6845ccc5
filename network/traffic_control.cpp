#include "network/traffic_control.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace portway {
namespace {

constexpr std::uint32_t kIngress = TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS);
constexpr std::uint32_t kEgress = TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS);
constexpr std::uint32_t kPreference = 1;
constexpr std::uint32_t kHandle = 0x5210;          // the hook was there
constexpr std::uint32_t kHandleMadeHook = 0x5211;  // we made the hook

tcmsg body_of(int link, std::uint32_t parent) {
  tcmsg body{};
  body.tcm_family = AF_UNSPEC;
  body.tcm_ifindex = link;
  body.tcm_parent = parent;
  return body;
}

tcmsg filter_body(int link, bool made_hook) {
  tcmsg body = body_of(link, kIngress);
  body.tcm_handle = made_hook ? kHandleMadeHook : kHandle;
  body.tcm_info = TC_H_MAKE(kPreference << 16, htons(ETH_P_ALL));
  return body;
}

tcmsg hook_body(int link) {
  tcmsg body = body_of(link, TC_H_CLSACT);
  body.tcm_handle = TC_H_MAKE(TC_H_CLSACT, 0);
  return body;
}

/// What is in the hook on one side; nothing when the link or the hook is gone.
Result<void> list_filters(Netlink& netlink, int link, std::uint32_t parent,
                          const std::function<void()>& on_restart,
                          const std::function<void(const nlmsghdr&)>& on_filter) {
  NetlinkMessage message(RTM_GETTFILTER, 0, body_of(link, parent));
  return netlink.dump(message, "tc filter show", on_restart, on_filter, {ENODEV, ENOENT, EINVAL});
}

/// True when nothing is in the hook, on neither side. What others put in between this and the deletion is
/// lost: the kernel has no deletion of an empty one.
Result<bool> hook_is_empty(Netlink& netlink, int link) {
  bool empty = true;
  for (const std::uint32_t parent : {kIngress, kEgress}) {
    auto done = list_filters(
        netlink, link, parent, [] {}, [&](const nlmsghdr&) { empty = false; });
    if (!done) return done.error();
  }
  return empty;
}

/// What the kernel reports about a "bpf" filter.
struct FilterOptions {
  std::string_view name = "";
  std::uint32_t program = 0;
  std::vector<sock_filter> code = {};
};

FilterOptions read_options(const rtattr& options) {
  FilterOptions read;
  for_each_attribute(RTA_DATA(&options), RTA_PAYLOAD(&options), [&](const rtattr& attribute) {
    if (attribute.rta_type == TCA_BPF_NAME) read.name = attribute_text(attribute);
    if (attribute.rta_type == TCA_BPF_ID) read.program = attribute_number(attribute);
    if (attribute.rta_type != TCA_BPF_OPS) return;
    read.code.resize(RTA_PAYLOAD(&attribute) / sizeof(sock_filter));
    std::memcpy(read.code.data(), RTA_DATA(&attribute), read.code.size() * sizeof(sock_filter));
  });
  return read;
}

/// True when it was not there.
Result<bool> make_hook(Netlink& netlink, int link) {
  NetlinkMessage hook(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, hook_body(link));
  hook.add(TCA_KIND, std::string_view("clsact"));
  return netlink.request(hook, fmt::format("tc qdisc add clsact on link {}", link), {EEXIST});
}

}  // namespace

Result<std::vector<int>> links_with_hook(Netlink& netlink) {
  NetlinkMessage message(RTM_GETQDISC, 0, body_of(0, 0));
  std::vector<int> links;
  auto on_qdisc = [&](const nlmsghdr& header) {
    for_each_attribute(header, sizeof(tcmsg), [&](const rtattr& attribute) {
      if (attribute.rta_type == TCA_KIND && attribute_text(attribute) == "clsact") {
        links.push_back(netlink_body<tcmsg>(header).tcm_ifindex);
      }
    });
  };
  auto done = netlink.dump(
      message, "tc qdisc show", [&] { links.clear(); }, on_qdisc);
  if (!done) return done.error();
  return links;
}

Result<std::vector<OurFilter>> our_filters(Netlink& netlink, int link) {
  std::vector<OurFilter> filters;
  auto on_filter = [&](const nlmsghdr& header) {
    const auto& body = netlink_body<tcmsg>(header);
    std::string_view kind;
    FilterOptions options;
    for_each_attribute(header, sizeof(tcmsg), [&](const rtattr& attribute) {
      if (attribute.rta_type == TCA_KIND) kind = attribute_text(attribute);
      if (attribute.rta_type == TCA_OPTIONS) options = read_options(attribute);
    });
    const bool our_place = TC_H_MAJ(body.tcm_info) == kPreference << 16 &&
                           (body.tcm_handle == kHandle || body.tcm_handle == kHandleMadeHook);
    if (our_place && kind == "bpf" && (options.name == kFilterName || !options.code.empty())) {
      filters.push_back({.program = options.program,
                         .made_hook = body.tcm_handle == kHandleMadeHook,
                         .code = std::move(options.code)});
    }
  };
  auto done = list_filters(
      netlink, link, kIngress, [&] { filters.clear(); }, on_filter);
  if (!done) return done.error();
  return filters;
}

Result<void> add_filter(Netlink& netlink, int link, int program_fd) {
  auto made_hook = make_hook(netlink, link);
  if (!made_hook) return made_hook.error();

  NetlinkMessage filter(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, filter_body(link, *made_hook));
  filter.add(TCA_KIND, std::string_view("bpf"));
  filter.begin_nested(TCA_OPTIONS);
  filter.add(TCA_BPF_FD, static_cast<std::uint32_t>(program_fd));
  filter.add(TCA_BPF_NAME, kFilterName);
  filter.add(TCA_BPF_FLAGS, std::uint32_t{TCA_BPF_FLAG_ACT_DIRECT});  // the program's result is the verdict
  filter.end_nested();
  auto added = netlink.request(filter, fmt::format("tc filter add pref {} on link {}", kPreference, link));
  if (added) return {};
  if (*made_hook) (void)delete_filter(netlink, link, {.program = 0, .made_hook = true});
  return added.error();
}

Result<void> set_classic_filter(Netlink& netlink, int link, std::span<const sock_filter> code) {
  auto there = our_filters(netlink, link);
  if (!there) return there.error();
  auto made_hook = there->empty() ? make_hook(netlink, link) : Result<bool>(there->front().made_hook);
  if (!made_hook) return made_hook.error();

  NetlinkMessage filter(RTM_NEWTFILTER, NLM_F_CREATE, filter_body(link, *made_hook));
  filter.add(TCA_KIND, std::string_view("bpf"));
  filter.begin_nested(TCA_OPTIONS);
  const auto length = static_cast<std::uint16_t>(code.size());
  filter.add(TCA_BPF_OPS_LEN, &length, sizeof length);
  filter.add(TCA_BPF_OPS, code.data(), code.size_bytes());
  filter.add(TCA_BPF_FLAGS, std::uint32_t{TCA_BPF_FLAG_ACT_DIRECT});
  filter.end_nested();
  auto set = netlink.request(filter, fmt::format("tc filter replace pref {} on link {}", kPreference, link));
  if (set) return {};
  if (there->empty() && *made_hook) (void)delete_filter(netlink, link, {.program = 0, .made_hook = true});
  return set.error();
}

Result<void> delete_filter(Netlink& netlink, int link, const OurFilter& filter) {
  NetlinkMessage message(RTM_DELTFILTER, 0, filter_body(link, filter.made_hook));
  message.add(TCA_KIND, std::string_view("bpf"));
  auto deleted =
      netlink.request(message, fmt::format("tc filter delete on link {}", link), {ENODEV, ENOENT, EINVAL});
  if (!deleted) return deleted.error();
  if (!filter.made_hook) return {};
  auto empty = hook_is_empty(netlink, link);
  if (!empty) return empty.error();
  if (!*empty) return {};
  NetlinkMessage hook(RTM_DELQDISC, 0, hook_body(link));
  auto gone =
      netlink.request(hook, fmt::format("tc qdisc delete clsact on link {}", link), {ENODEV, ENOENT, EINVAL});
  if (!gone) return gone.error();
  return {};
}

}  // namespace portway
