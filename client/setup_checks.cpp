#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "client/checks.h"
#include "config/config_files.h"
#include "network/ephemeral_ports.h"

namespace portway {
namespace {

constexpr std::uint64_t kDiskMin = 64U << 20;

enum class Access : unsigned { kRead = 4, kWrite = 2 };

/// Whether the mode bits allow the access; ignores access control lists and read-only mounts.
bool may(const Subject& subject, Access access, const struct stat& status) {
  if (subject.has(Capability::kDacOverride)) return true;
  const auto bit = static_cast<mode_t>(access);
  if (status.st_uid == subject.uid) return (status.st_mode >> 6 & bit) != 0;
  const bool member = std::ranges::find(subject.groups, status.st_gid) != subject.groups.end();
  return (status.st_mode >> (member ? 3 : 0) & bit) != 0;
}

std::string error_text(int error) {
  return std::system_category().message(error);
}

Finding check_config(const NodeFacts& node) {
  if (node.config_error) {
    return {Grade::kFail, node.config_error->detail, "Fix the file; portwayd does not start with it."};
  }
  if (!node.config_found) {
    return {Grade::kWarn, node.config_file + " does not exist; the defaults are assumed.",
            "Give portwayd's configuration file with --config."};
  }
  if (const auto tls = check_listeners_tls(node.config.api); !tls) {
    return {Grade::kFail, tls.error().detail + ".", "Fix it; portwayd does not start with it."};
  }
  const std::vector<std::string> warnings = config_warnings(node.config);
  if (warnings.empty()) return {Grade::kOk, node.config_file + " is valid."};
  return {Grade::kWarn, fmt::format("{}", fmt::join(warnings, " ")),
          "Change it in " + node.config_file + "."};
}

Finding check_addresses(const NodeFacts& node) {
  const auto& wanted = node.config.node.public_addresses;
  const auto present = node.host_addresses();
  if (!present) return {Grade::kSkip, present.error().detail};
  std::vector<IpAddress> missing;
  for (const IpAddress& address : wanted) {
    if (!address.is_unspecified() && std::ranges::find(*present, address) == present->end()) {
      missing.push_back(address);
    }
  }
  if (!missing.empty()) {
    return {Grade::kFail,
            fmt::format("This node does not have {}: ports cannot be bound there.",
                        fmt::join(to_strings(missing), ", ")),
            "Add the address to an interface, or fix node.public_addresses."};
  }
  return {Grade::kOk, fmt::format("Host ports are bound to {}.", fmt::join(to_strings(wanted), ", "))};
}

Finding check_port_range(const NodeFacts& node) {
  const EphemeralPortFiles files{.range = node.root / "proc/sys/net/ipv4/ip_local_port_range",
                                 .reserved = node.root / "proc/sys/net/ipv4/ip_local_reserved_ports"};
  const std::string range = to_string(node.config.ports.range);
  const auto overlap = ephemeral_overlap(node.config.ports.range, files);
  if (!overlap) return {Grade::kOk, "The kernel uses no port of " + range + " for outgoing connections."};
  return {Grade::kWarn, overlap->problem, overlap->remedy};
}

/// The store's directory, or its nearest parent that exists, in which portwayd would create it.
std::filesystem::path existing_directory(const std::filesystem::path& file) {
  std::filesystem::path directory = std::filesystem::absolute(file).parent_path();
  std::error_code ignored;
  while (!std::filesystem::exists(directory, ignored) && directory.has_relative_path()) {
    directory = directory.parent_path();
  }
  return directory;
}

Finding check_store(const NodeFacts& node, const Subject& subject) {
  const std::filesystem::path directory = existing_directory(node.config.store.path);
  struct stat status {};
  if (::stat(directory.c_str(), &status) != 0) {
    return {Grade::kSkip, fmt::format("{}: {}.", directory.string(), error_text(errno))};
  }
  if (!S_ISDIR(status.st_mode) || !may(subject, Access::kWrite, status)) {
    const std::filesystem::path wanted = std::filesystem::absolute(node.config.store.path).parent_path();
    return {Grade::kFail, fmt::format("{}: user {} cannot write to it.", directory.string(), subject.uid),
            fmt::format("install -d -m 0750 -o {} {}, or fix store.path.", subject.uid, wanted.string())};
  }
  struct statvfs disk {};
  if (::statvfs(directory.c_str(), &disk) != 0) return {Grade::kSkip, error_text(errno)};
  if ((disk.f_flag & ST_RDONLY) != 0) {
    return {Grade::kFail, directory.string() + " is on a file system that is mounted read-only.",
            "Mount it writable (mount -o remount,rw), or fix store.path."};
  }
  const std::uint64_t left = std::uint64_t{disk.f_bavail} * disk.f_frsize;
  const std::string free = fmt::format("{} is writable and has {} MiB free.", directory.string(), left >> 20);
  if (left >= kDiskMin) return {Grade::kOk, free};
  return {Grade::kWarn, free, "Free some space: if the disk is full, the API refuses changes (503)."};
}

Finding check_admin_key(const NodeFacts& node, const Subject& subject) {
  const std::string& path = node.config.api.admin_key_file;
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT)
      return {Grade::kOk, path + " does not exist; portwayd creates it at its first start."};
    return {Grade::kSkip, fmt::format("{}: {}.", path, error_text(errno))};
  }
  if ((status.st_mode & 077) != 0) {
    return {Grade::kFail,
            fmt::format("{} is accessible to others (mode {:o}); portwayd refuses to start.", path,
                        status.st_mode & 0777),
            "chmod 600 " + path + ", and create a new key if someone may have read it."};
  }
  if (!may(subject, Access::kRead, status)) {
    return {Grade::kFail, fmt::format("{}: user {} cannot read it.", path, subject.uid),
            fmt::format("chown {} {}", subject.uid, path)};
  }
  return {Grade::kOk, fmt::format("{} has mode {:o}.", path, status.st_mode & 0777)};
}

Finding check_api(const NodeFacts& node) {
  const ApiFacts& api = node.api;
  if (!api.down) {
    const bool same = api.version.empty() || api.version == PORTWAY_VERSION;
    const std::string answers =
        fmt::format("{} is ready, version {}.", api.server, api.version.empty() ? "unknown" : api.version);
    if (same) return {Grade::kOk, answers};
    return {Grade::kWarn, answers, "This client is " PORTWAY_VERSION "; install the same version of both."};
  }
  std::vector<pid_t> running;
  for (const Subject& subject : node.subjects) {
    if (subject.is_daemon()) running.push_back(subject.pid);
  }
  if (running.empty()) {
    return {Grade::kWarn, api.down->message, "Start portwayd, or give the address of its API with --server."};
  }
  return {Grade::kFail,
          fmt::format("{} portwayd is running (process {}).", api.down->message, fmt::join(running, ", ")),
          api.down->remedy};
}

Finding check_key(const NodeFacts& node) {
  if (node.api.down) return {Grade::kSkip, "The API did not answer."};
  if (!node.api.refused) return {Grade::kOk, "The API accepts the key."};
  return {Grade::kWarn, node.api.refused->message,
          "Use the admin key: --key-file " + node.config.api.admin_key_file};
}

Finding check_taps(const NodeFacts& node) {
  if (node.api.down || node.api.refused) return {Grade::kSkip, "The API did not list the instances."};
  std::vector<std::string> missing;
  std::vector<std::string> silent;
  for (const TapUser& user : node.api.running) {
    const std::string name = user.tap + " (" + user.instance + ")";
    switch (node.link(user.tap)) {
      case LinkState::kMissing:
        missing.push_back(name);
        break;
      case LinkState::kNoCarrier:
        silent.push_back(name);
        break;
      case LinkState::kCarrier:
        break;
    }
  }
  if (!missing.empty()) {
    return {Grade::kFail, fmt::format("Devices missing on this node: {}.", fmt::join(missing, ", ")),
            "Report that the VM has stopped (portway instances stop), or register the instance again "
            "with the right tap (portway instances put)."};
  }
  if (!silent.empty()) {
    return {Grade::kWarn, fmt::format("No carrier: {}.", fmt::join(silent, ", ")),
            "ip link set DEVICE up, and check that the VMM holds it open."};
  }
  std::string text =
      fmt::format("Devices with carrier: {}, one for each running instance", node.api.running.size());
  if (const std::size_t others = node.api.in_namespaces.size(); others != 0)
    text += fmt::format(" on this node; {} in network namespaces were not looked at (portway instances list)",
                        others);
  return {Grade::kOk, text + "."};
}

/// 0 is off. 1 (strict) drops packets that arrive on another device than the route back to their source. 2
/// (loose) accepts packets whose source any route leads to. The larger of the two values applies
/// (Documentation/networking/ip-sysctl.rst).
/// Strict filtering lets an address in by one interface only, the one that the route to it names.
bool has_its_address_alone(const NodeFacts& node, const TapUser& user) {
  return user.address.empty() || std::ranges::count(node.api.running, user.address, &TapUser::address) <= 1;
}

Finding check_rp_filter(const NodeFacts& node) {
  if (node.api.down || node.api.refused) return {Grade::kSkip, "The API did not list the instances."};
  const std::int64_t all = node.sysctl("net.ipv4.conf.all.rp_filter").value_or(0);
  std::vector<std::string> open;
  for (const TapUser& user : node.api.running) {
    // Packets of a guest behind another device do not come in by its tap.
    if (!user.device.empty() || !has_its_address_alone(node, user)) continue;
    // Not sysctl(): a device's name may contain dots.
    const auto own = node.number("proc/sys/net/ipv4/conf/" + user.tap + "/rp_filter");
    if (own && std::max(*own, all) != 1) open.push_back(user.tap);
  }
  if (open.empty()) return {Grade::kOk, "No guest can use another guest's IPv4 source address."};
  const std::string where =
      fmt::format("Reverse path filtering is off or loose on {}", fmt::join(open, ", "));
  const std::string strict = fmt::format("sysctl -w {}net/ipv4/conf/{}/rp_filter=1",
                                         all > 1 ? "net/ipv4/conf/all/rp_filter=0 " : "", open.front());
  if (node.api.source_guard) {
    return {Grade::kWarn,
            where + ": a guest can use the source address of a machine that is not a guest of this node.",
            strict};
  }
  return {Grade::kWarn,
          where + ": a guest can use another guest's address as its source, and so end its connections.",
          strict +
              "; or grant portwayd CAP_BPF and CAP_NET_ADMIN, which it needs to drop such packets, IPv6 "
              "included."};
}

}  // namespace

std::span<const Check> setup_checks() {
  static constexpr auto kChecks = std::to_array<Check>({
      {"config", check_config},
      {"addresses", check_addresses},
      {"port-range", check_port_range},
      {"store", check_store},
      {"admin-key", check_admin_key},
      {"api", check_api},
      {"key", check_key},
      {"taps", check_taps},
      {"rp-filter", check_rp_filter},
  });
  return kChecks;
}

}  // namespace portway
