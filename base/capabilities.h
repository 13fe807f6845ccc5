// The capabilities that portwayd uses (capabilities(7)), and what each one buys: one table for the daemon,
// which drops all others (daemon/privileges/capabilities.h), for `portway doctor`, and for docs/operating.md,
// which a test compares. Plain values, for any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace portway {

/// Numbers as in linux/capability.h: the bits of the sets in /proc/PID/status.
enum class Capability : unsigned {
  kDacOverride = 1,
  kNetBindService = 10,
  kNetBroadcast = 11,
  kNetAdmin = 12,
  kNetRaw = 13,
  kIpcLock = 14,
  kSysPtrace = 19,
  kSysAdmin = 21,
  kSysNice = 23,
  kSysResource = 24,
  kBpf = 39,
};

constexpr std::uint64_t bit_of(Capability capability) {
  return std::uint64_t{1} << static_cast<unsigned>(capability);
}

struct CapabilityUse {
  Capability capability;
  std::string_view name;
  std::string_view feature;
  // The kernel that the feature needs, or from which on it is better; empty: any that Portway runs on.
  std::string_view kernel;
  std::string_view without_it;
};

inline constexpr auto kCapabilityUses = std::to_array<CapabilityUse>({
    {Capability::kNetAdmin, "CAP_NET_ADMIN", "guests see their clients' addresses; the source guard",
     "5.5; 6.6: tcx in place of clsact filters",
     "guests see the node's address, and can send with each other's addresses"},
    {Capability::kBpf, "CAP_BPF", "the same for any number of ports; refusing single clients",
     "5.8; 5.9 for refusing single clients; before 5.8 it is part of CAP_SYS_ADMIN",
     "128 guest ports see their clients' addresses; no source guard; a refused client is accepted, then "
     "reset"},
    {Capability::kNetRaw, "CAP_NET_RAW", "`capture`; probes that leave nothing behind", "",
     "no captures; a probe's half-open connection lives for a second in the guest"},
    {Capability::kNetBindService, "CAP_NET_BIND_SERVICE",
     "clients whose own port is below 1024 keep it; an API on such a port", "",
     "they get another port; the API cannot listen there"},
    {Capability::kSysAdmin, "CAP_SYS_ADMIN",
     "guests in network namespaces of their own (`netns`, `tap_netns`), with the next one and CAP_NET_ADMIN",
     "5.6", "such an instance cannot be registered"},
    {Capability::kNetBroadcast, "CAP_NET_BROADCAST", "reports of what happens in those namespaces", "4.2",
     "such an instance cannot be registered"},
    {Capability::kSysPtrace, "CAP_SYS_PTRACE",
     "`netns` `vmm_pid` if the VMM has another user or more capabilities", "",
     "such an instance is named by a path"},
    {Capability::kSysResource, "CAP_SYS_RESOURCE",
     "full-size pipes beyond `fs.pipe-user-pages-soft`; raising the descriptor limit; a keeper that is never "
     "killed "
     "for lack of memory",
     "", "smaller pipes; `LimitNOFILE=` is the limit"},
    {Capability::kIpcLock, "CAP_IPC_LOCK", "rings of io_uring that count against no limit",
     "5.12: BPF maps do not either",
     "`LimitMEMLOCK=` is the limit, of all daemons of one user; epoll if it is too small"},
    {Capability::kSysNice, "CAP_SYS_NICE", "the API answers while the workers keep every core busy",
     "6.12: a short slice helps without it", "slower answers under load"},
    {Capability::kDacOverride, "CAP_DAC_OVERRIDE",
     "guests' sockets and configured files that belong to another user; dropped at start if there are none",
     "", "they cannot be opened; the log names them"},
});

}  // namespace portway
