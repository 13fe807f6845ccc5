#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <string>
#include <utility>
#include <vector>

#include "client/checks.h"

namespace portway {
namespace {

constexpr std::int64_t kBacklog = 4096;     // of Portway's listeners
constexpr std::int64_t kPagesPerPipe = 64;  // 256 KiB
constexpr std::pair kUringKernel{5, 19};    // multishot accept and poll

std::string who(const Subject& subject) {
  return subject.is_daemon() ? fmt::format("portwayd (process {})", subject.pid) : "this shell";
}

Finding check_kernel(const NodeFacts& node) {
  const std::string release = node.text("proc/sys/kernel/osrelease").value_or("");
  int major = 0;
  int minor = 0;
  const char* end = release.data() + release.size();
  const auto [dot, error] = std::from_chars(release.data(), end, major);
  if (error != std::errc() || dot == end) return {Grade::kSkip, "/proc/sys/kernel/osrelease cannot be read."};
  std::from_chars(dot + 1, end, minor);
  if (std::pair(major, minor) >= kUringKernel) return {Grade::kOk, "Linux " + release + "."};
  return {Grade::kWarn,
          "Linux " + release + " is too old for Portway to use io_uring; portwayd runs on epoll.",
          "Use Linux 5.19 or newer."};
}

Finding check_io_uring(const NodeFacts& node) {
  const bool asked_for = node.config.proxy.io_backend == IoBackend::kUring;
  const bool unwanted = node.config.proxy.io_backend == IoBackend::kEpoll;
  if (unwanted) return {Grade::kOk, "Not used: proxy.io_backend is epoll."};
  const Grade bad = asked_for ? Grade::kFail : Grade::kWarn;
  if (!node.api.io_backend.empty()) {  // the daemon's own report is better than a probe in this process
    if (node.api.io_backend != "epoll") return {Grade::kOk, "portwayd runs on io_uring."};
    return {bad, "portwayd runs on epoll: " + node.api.io_backend_reason + ".",
            "Allow io_uring for its process (seccomp profile, kernel.io_uring_disabled) and restart it."};
  }
  const Result<void> tried = node.try_io_uring();
  if (tried) return {Grade::kOk, "io_uring works in this shell."};
  if (const auto disabled = node.sysctl("kernel.io_uring_disabled"); disabled.value_or(0) != 0) {
    return {bad, fmt::format("kernel.io_uring_disabled is {}; portwayd runs on epoll.", *disabled),
            sysctl_remedy("kernel.io_uring_disabled", 0)};
  }
  return {bad, tried.error().detail + "; portwayd would run on epoll.",
          "Remove the cause that the message names, or set proxy.io_backend = \"epoll\"."};
}

/// Counted as in portwayd: two for each connection and each pipe, one for each listener, and a reserve.
std::uint64_t descriptors_wanted(const Config& config) {
  return 2ULL * config.proxy.connections_max + 2ULL * config.proxy.pipes_max +
         std::uint64_t{config.ports.range.size()} * config.node.public_addresses.size() + 1024;
}

Finding check_descriptors(const NodeFacts& node, const Subject& subject) {
  const std::uint64_t wanted = descriptors_wanted(node.config);
  const std::string has =
      fmt::format("{} may have {} descriptors; {} are needed for {} connections", who(subject),
                  subject.descriptors_max, wanted, node.config.proxy.connections_max);
  if (subject.descriptors_max >= wanted) return {Grade::kOk, has + "."};
  if (!subject.is_daemon() && subject.has(Capability::kSysResource)) {
    return {Grade::kOk, has + "; with CAP_SYS_RESOURCE portwayd raises the limit itself."};
  }
  return {Grade::kWarn, has + ": portwayd allows fewer connections.",
          fmt::format("Set LimitNOFILE={} (systemd) or ulimit -Hn {}, or lower proxy.connections_max.",
                      wanted, wanted)};
}

Finding check_open_files(const NodeFacts& node) {
  const auto wanted = static_cast<std::int64_t>(descriptors_wanted(node.config));
  const auto nr_open = node.sysctl("fs.nr_open");
  const auto file_max = node.sysctl("fs.file-max");
  if (!nr_open || !file_max) return {Grade::kSkip, "/proc/sys/fs cannot be read."};
  const auto lacks = [&](std::string_view name, std::int64_t value) {
    return Finding{Grade::kWarn, fmt::format("{} is {}; {} descriptors are needed.", name, value, wanted),
                   sysctl_remedy(name, wanted * 2)};
  };
  if (*nr_open < wanted) return lacks("fs.nr_open", *nr_open);
  if (*file_max - node.sysctl("fs.file-nr").value_or(0) < wanted) return lacks("fs.file-max", *file_max);
  return {Grade::kOk, fmt::format("fs.nr_open is {}, fs.file-max {}.", *nr_open, *file_max)};
}

Finding check_pipes(const NodeFacts& node, const Subject& subject) {
  if (subject.has(Capability::kSysResource) || subject.has(Capability::kSysAdmin)) {
    return {Grade::kOk, "No limit: " + who(subject) + " has the capability that lifts it."};
  }
  const auto pages = node.sysctl("fs.pipe-user-pages-soft");
  if (!pages) return {Grade::kSkip, "fs.pipe-user-pages-soft cannot be read."};
  const std::int64_t wanted = kPagesPerPipe * node.config.proxy.pipes_max;
  if (*pages == 0 || *pages >= wanted) {
    return {Grade::kOk, fmt::format("fs.pipe-user-pages-soft is {}.", *pages)};
  }
  return {Grade::kWarn,
          fmt::format("fs.pipe-user-pages-soft is {}: after {} busy pipes, new pipes are small and bulk "
                      "transfers slow down.",
                      *pages, *pages / kPagesPerPipe),
          "Grant portwayd CAP_SYS_RESOURCE, or " + sysctl_remedy("fs.pipe-user-pages-soft", wanted)};
}

/// The missing capabilities and what does not work without them; both are empty if nothing is missing.
struct Missing {
  std::string names;
  std::string consequences;

  void add(const std::string& name, const std::string& consequence) {
    names += (names.empty() ? "" : " and ") + name;
    consequences += (consequences.empty() ? "" : "; ") + consequence;
  }
};

Missing missing_for_guests(const Subject& subject, SourceMode mode) {
  const bool shows_clients = mode == SourceMode::kAuto || mode == SourceMode::kTransparent;
  const bool admin = subject.has(Capability::kNetAdmin);
  Missing missing;
  if (!admin) {
    missing.add("CAP_NET_ADMIN", mode == SourceMode::kTransparent
                                     ? "portwayd does not start (proxy.source_mode is transparent)"
                                 : shows_clients
                                     ? "guests see the node's address instead of their clients' addresses"
                                     : "guests can use each other's source addresses");
  }
  // CAP_SYS_ADMIN includes it (capabilities(7)).
  if (!subject.has(Capability::kBpf) && !subject.has(Capability::kSysAdmin)) {
    std::string consequence = "a client whose connection the guest refuses is first accepted and then reset";
    if (admin) {
      consequence += ", guests can use each other's source addresses";
      if (shows_clients) consequence += ", and at most 128 guest ports see their clients' addresses";
    }
    missing.add("CAP_BPF", consequence);
  }
  if (!subject.has(Capability::kNetRaw)) {
    missing.add("CAP_NET_RAW", admin ? "a probe leaves a half-open connection in the guest for a second"
                                     : "guests are not probed");
  }
  return missing;
}

Finding check_capabilities(const NodeFacts& node, const Subject& subject) {
  std::string held;
  for (const CapabilityUse& use : kCapabilityUses) {
    if (subject.has(use.capability)) held += (held.empty() ? "" : ", ") + std::string(use.name);
  }
  const std::string has = who(subject) + " has " + (held.empty() ? "no relevant capability" : held);
  const std::int64_t first = node.sysctl("net.ipv4.ip_unprivileged_port_start").value_or(1024);
  if (node.config.ports.range.first < first && !subject.has(Capability::kNetBindService)) {
    return {Grade::kFail,
            fmt::format("{}: ports below {} cannot be bound, and ports.range starts at {}.", has, first,
                        node.config.ports.range.first),
            "Grant portwayd CAP_NET_BIND_SERVICE, or " +
                sysctl_remedy("net.ipv4.ip_unprivileged_port_start", 1024)};
  }
  const SourceMode mode = node.config.proxy.source_mode;
  const Missing missing = missing_for_guests(subject, mode);
  if (!missing.names.empty()) {
    const bool fails = mode == SourceMode::kTransparent && !subject.has(Capability::kNetAdmin);
    return {fails ? Grade::kFail : Grade::kWarn,
            fmt::format("{}, but not {}: {}.", has, missing.names, missing.consequences),
            "Grant portwayd what is missing (systemd: AmbientCapabilities= and CapabilityBoundingSet=) and "
            "restart it."};
  }
  return {Grade::kOk, has + "."};
}

Finding check_namespaces(const NodeFacts& node, const Subject& subject) {
  std::vector<std::string> missing;
  for (const auto& [capability, name] :
       {std::pair(Capability::kSysAdmin, "CAP_SYS_ADMIN"), std::pair(Capability::kNetAdmin, "CAP_NET_ADMIN"),
        std::pair(Capability::kNetBroadcast, "CAP_NET_BROADCAST")}) {
    if (!subject.has(capability)) missing.emplace_back(name);
  }
  const std::vector<std::string>& users = node.api.in_namespaces;
  if (missing.empty()) {
    return {Grade::kOk, fmt::format("{} can reach guests in network namespaces of their own; {} running "
                                    "instances have one.",
                                    who(subject), users.size())};
  }
  const std::string lacks = fmt::format("{} has not {}", who(subject), fmt::join(missing, ", "));
  if (users.empty()) {
    return {Grade::kOk, lacks + ", which only instances with netns or tap_netns need; none is running."};
  }
  return {Grade::kFail,
          fmt::format("{}: instances in network namespaces of their own are not served ({}).", lacks,
                      fmt::join(users, ", ")),
          fmt::format("Grant portwayd {} (systemd: AmbientCapabilities= and CapabilityBoundingSet=; "
                      "RestrictNamespaces= must allow net) and restart it.",
                      fmt::join(missing, ", "))};
}

/// Each connection from the node's address to one guest port takes a source port, also while in TIME_WAIT.
Finding check_source_ports(const NodeFacts& node, const Subject& subject) {
  if (subject.has(Capability::kNetAdmin)) {
    return {Grade::kOk, "With CAP_NET_ADMIN portwayd itself ends TIME_WAIT on connections to guests."};
  }
  const auto reuse = node.sysctl("net.ipv4.tcp_tw_reuse");
  if (!reuse) return {Grade::kSkip, "net.ipv4.tcp_tw_reuse cannot be read."};
  if (*reuse == 1) return {Grade::kOk, "net.ipv4.tcp_tw_reuse is 1."};
  return {Grade::kWarn,
          fmt::format(
              "net.ipv4.tcp_tw_reuse is {}, and {} does not have CAP_NET_ADMIN: if the node's address is the "
              "source, about 470 short connections a second exhaust the source ports for one guest port.",
              *reuse, who(subject)),
          "Grant portwayd CAP_NET_ADMIN, or " + sysctl_remedy("net.ipv4.tcp_tw_reuse", 1)};
}

Finding check_backlog(const NodeFacts& node) {
  const auto most = node.sysctl("net.core.somaxconn");
  if (!most) return {Grade::kSkip, "net.core.somaxconn cannot be read."};
  if (*most >= kBacklog) return {Grade::kOk, fmt::format("net.core.somaxconn is {}.", *most)};
  return {Grade::kWarn,
          fmt::format("net.core.somaxconn is {}: the kernel drops connections early in a burst.", *most),
          sysctl_remedy("net.core.somaxconn", kBacklog)};
}

Finding check_conntrack(const NodeFacts& node) {
  const auto most = node.sysctl("net.netfilter.nf_conntrack_max");
  const auto now = node.sysctl("net.netfilter.nf_conntrack_count");
  if (!most || !now) return {Grade::kOk, "Not loaded: no connections are tracked."};
  const std::string full = fmt::format("{} of {} connections are tracked", *now, *most);
  if (*now * 5 < *most * 4) return {Grade::kOk, full + "; Portway does not need connection tracking."};
  return {Grade::kWarn, full + ": when the table is full, the kernel drops packets of forwards as well.",
          "Remove the rules that cause tracking (nft list ruleset), or " +
              sysctl_remedy("net.netfilter.nf_conntrack_max", *most * 2)};
}

}  // namespace

std::span<const Check> kernel_checks() {
  static constexpr auto kChecks = std::to_array<Check>({
      {"kernel", check_kernel},
      {"io_uring", check_io_uring},
      {"descriptors", check_descriptors},
      {"open-files", check_open_files},
      {"pipes", check_pipes},
      {"capabilities", check_capabilities},
      {"namespaces", check_namespaces},
      {"source-ports", check_source_ports},
      {"backlog", check_backlog},
      {"conntrack", check_conntrack},
  });
  return kChecks;
}

}  // namespace portway
