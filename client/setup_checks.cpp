#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "base/tls_files.h"
#include "client/checks.h"
#include "network/ephemeral_ports.h"

namespace portway {
namespace {

constexpr std::uint64_t kDiskMin = 64U << 20;

enum class Access : unsigned { kRead = 4, kWrite = 2 };

/// What the mode bits say for the subject; access lists and read-only mounts are not looked at.
bool may(const Subject& subject, Access access, const struct stat& status) {
  if (subject.uid == 0) return true;
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
    return {Grade::kFail, node.config_error->detail, "Correct the file; portwayd does not start with it."};
  }
  if (!node.config_found) {
    return {Grade::kWarn, node.config_file + " is not there; the defaults are assumed.",
            "Name portwayd's file with --config."};
  }
  const Config::Api& api = node.config.api;
  if (!api.tls_certificate.empty()) {
    const auto tls = check_tls_files({api.tls_certificate, api.tls_private_key, api.client_ca});
    if (!tls) {
      return {Grade::kFail, tls.error().detail + ".", "Correct it; portwayd does not start like this."};
    }
  }
  const std::vector<std::string> warnings = config_warnings(node.config);
  if (warnings.empty()) return {Grade::kOk, node.config_file + " is good."};
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
            fmt::format("This node does not have {}: no port can be bound there.",
                        fmt::join(to_strings(missing), ", ")),
            "Add the address to an interface, or correct node.public_addresses."};
  }
  return {Grade::kOk, fmt::format("Host ports are bound to {}.", fmt::join(to_strings(wanted), ", "))};
}

Finding check_port_range(const NodeFacts& node) {
  const EphemeralPortFiles files{.range = node.root / "proc/sys/net/ipv4/ip_local_port_range",
                                 .reserved = node.root / "proc/sys/net/ipv4/ip_local_reserved_ports"};
  const std::string range = to_string(node.config.ports.range);
  const auto overlap = ephemeral_overlap(node.config.ports.range, files);
  if (!overlap) return {Grade::kOk, "The kernel gives none of " + range + " to outgoing connections."};
  return {Grade::kWarn, overlap->problem, overlap->remedy};
}

/// Where the store is, or the directory in which portwayd would make its directory.
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
    return {Grade::kFail, fmt::format("{}: user {} cannot write there.", directory.string(), subject.uid),
            fmt::format("install -d -m 0750 -o {} {}, or correct store.path.", subject.uid, wanted.string())};
  }
  struct statvfs disk {};
  if (::statvfs(directory.c_str(), &disk) != 0) return {Grade::kSkip, error_text(errno)};
  if ((disk.f_flag & ST_RDONLY) != 0) {
    return {Grade::kFail, directory.string() + " is on a disk that is mounted read-only.",
            "Mount it writable (mount -o remount,rw), or correct store.path."};
  }
  const std::uint64_t left = std::uint64_t{disk.f_bavail} * disk.f_frsize;
  const std::string free = fmt::format("{} is writable, {} MiB are free.", directory.string(), left >> 20);
  if (left >= kDiskMin) return {Grade::kOk, free};
  return {Grade::kWarn, free, "Make room: on a full disk the API refuses changes (503)."};
}

Finding check_admin_key(const NodeFacts& node, const Subject& subject) {
  const std::string& path = node.config.api.admin_key_file;
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {Grade::kOk, path + " is not there; portwayd makes it at its first start."};
    return {Grade::kSkip, fmt::format("{}: {}.", path, error_text(errno))};
  }
  if ((status.st_mode & 077) != 0) {
    return {Grade::kFail,
            fmt::format("{}: others may use it (mode {:o}); portwayd refuses to start.", path,
                        status.st_mode & 0777),
            "chmod 600 " + path + ", and make a new key if somebody may have read it."};
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
    return {Grade::kWarn, api.down->message, "Start portwayd, or name its API with --server."};
  }
  return {Grade::kFail,
          fmt::format("{} portwayd runs (process {}).", api.down->message, fmt::join(running, ", ")),
          api.down->remedy};
}

Finding check_key(const NodeFacts& node) {
  if (node.api.down) return {Grade::kSkip, "The API did not answer."};
  if (!node.api.refused) return {Grade::kOk, "The API takes the key."};
  return {Grade::kWarn, node.api.refused->message,
          "Use the admin key: --key-file " + node.config.api.admin_key_file};
}

Finding check_taps(const NodeFacts& node) {
  if (node.api.down || node.api.refused) return {Grade::kSkip, "The API did not tell of the instances."};
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
    return {Grade::kFail, fmt::format("These are not on this node: {}.", fmt::join(missing, ", ")),
            "Tell that the VM stopped (portway instances stop), or put the instance with its right tap."};
  }
  if (!silent.empty()) {
    return {Grade::kWarn, fmt::format("No carrier: {}.", fmt::join(silent, ", ")),
            "ip link set DEVICE up, and see whether the VMM holds it open."};
  }
  return {Grade::kOk,
          fmt::format("Devices with a carrier: {}, one for each running instance.", node.api.running.size())};
}

/// 0 is off; 1, strict, drops what the route back to its source does not lead to; 2, loose, lets pass
/// whatever any route leads to. The larger of the two values counts (Documentation/networking/ip-sysctl.rst).
Finding check_rp_filter(const NodeFacts& node) {
  if (node.api.down || node.api.refused) return {Grade::kSkip, "The API did not tell of the instances."};
  const std::int64_t all = node.sysctl("net.ipv4.conf.all.rp_filter").value_or(0);
  std::vector<std::string> open;
  for (const TapUser& user : node.api.running) {
    // Not sysctl(): a device's name may have dots.
    const auto own = node.number("proc/sys/net/ipv4/conf/" + user.tap + "/rp_filter");
    if (own && std::max(*own, all) != 1) open.push_back(user.tap);
  }
  if (open.empty()) return {Grade::kOk, "No guest can send with another's IPv4 address."};
  const std::string where =
      fmt::format("Reverse path filtering is off or loose on {}", fmt::join(open, ", "));
  const std::string strict = fmt::format("sysctl -w {}net/ipv4/conf/{}/rp_filter=1",
                                         all > 1 ? "net/ipv4/conf/all/rp_filter=0 " : "", open.front());
  if (node.api.source_guard) {
    return {Grade::kWarn,
            where + ": a guest can send with the address of a machine that is no guest of this node.",
            strict};
  }
  return {Grade::kWarn,
          where + ": a guest can send with another guest's address, and so end its connections.",
          strict +
              "; or give portwayd CAP_BPF and CAP_NET_ADMIN, which it needs to drop such packets, IPv6 too."};
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
