#include "daemon/privileges/capabilities.h"

#include <cap-ng.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <variant>

#include "config/config_files.h"

namespace portway {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kSetPcap = std::uint64_t{1} << CAP_SETPCAP;

/// Of this thread; libcap-ng's state is one for each.
std::uint64_t capability_set(capng_type_t type) {
  std::uint64_t held = 0;
  for (unsigned each = 0; each <= static_cast<unsigned>(CAP_LAST_CAP); ++each) {
    if (capng_have_capability(type, each) != 0) held |= std::uint64_t{1} << each;
  }
  return held;
}

/// False, with an errno, if the kernel refuses.
bool set_capabilities(std::uint64_t kept, unsigned types, capng_select_t select) {
  capng_clear(select);  // also of those that are newer than the library
  for (unsigned each = 0; each <= static_cast<unsigned>(CAP_LAST_CAP); ++each) {
    if ((kept >> each & 1U) != 0) capng_update(CAPNG_ADD, static_cast<capng_type_t>(types), each);
  }
  return capng_apply(select) == 0;
}

/// Whether the file system refuses the access; false if the file does not exist.
bool is_refused(const fs::path& file, int access) {
  return ::faccessat(AT_FDCWD, file.c_str(), access, AT_EACCESS) != 0 && errno == EACCES;
}

/// A file that the daemon writes, in a directory that it may have to make.
bool is_refused_to_write(const fs::path& file) {
  if (is_refused(file, R_OK | W_OK)) return true;
  return is_refused(nearest_directory(file), W_OK | X_OK);
}

bool is_refused_a_file(const Config& config, const std::string& config_path) {
  const auto is_refused_to_read = [](const std::string& file) {
    return !file.empty() && is_refused(file, R_OK);
  };
  const std::string& key = config.api.admin_key_file;
  if (is_refused_to_read(config_path) || is_refused_to_read(key)) return true;
  std::error_code ignored;
  if (!fs::exists(key, ignored) && is_refused_to_write(key)) return true;
  if (is_refused_to_write(config.store.path)) return true;
  for (const auto& [name, log] : log_files(config)) {
    if (is_refused_to_write(log)) return true;
  }
  const auto is_refused_socket = [](const ListenAddress& address) {
    const auto* path = std::get_if<UnixPath>(&address);
    return path != nullptr && is_refused(fs::path(path->path).parent_path(), W_OK | X_OK);
  };
  for (std::size_t i = 0; i < config.api.listen.size(); ++i) {
    const TlsFiles tls = tls_of_listener(config.api, i);
    if (is_refused_to_read(tls.certificate) || is_refused_to_read(tls.private_key) ||
        is_refused_to_read(tls.client_ca) || is_refused_socket(config.api.listen[i].address))
      return true;
  }
  return config.metrics.listen && is_refused_socket(*config.metrics.listen);
}

/// Without the capability, which this thread has again afterwards.
bool needs_files_of_others(const Config& config, const std::string& config_path) {
  if (!config.guests.socket_directories.empty()) return true;
  capng_get_caps_process();
  if (capng_have_capability(CAPNG_EFFECTIVE, CAP_DAC_OVERRIDE) == 0) return true;  // nothing to decide
  // CAP_DAC_READ_SEARCH would let it read, too.
  const bool reads_all = capng_have_capability(CAPNG_EFFECTIVE, CAP_DAC_READ_SEARCH) != 0;
  capng_updatev(CAPNG_DROP, CAPNG_EFFECTIVE, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, -1);
  if (capng_apply(CAPNG_SELECT_CAPS) != 0) return true;
  const bool refused = is_refused_a_file(config, config_path);
  capng_update(CAPNG_ADD, CAPNG_EFFECTIVE, CAP_DAC_OVERRIDE);
  if (reads_all) capng_update(CAPNG_ADD, CAPNG_EFFECTIVE, CAP_DAC_READ_SEARCH);
  capng_apply(CAPNG_SELECT_CAPS);
  return refused;
}

}  // namespace

std::string Privileges::names() const {
  std::vector<std::string_view> all;
  for (const CapabilityUse& use : kCapabilityUses) {
    if ((capabilities & bit_of(use.capability)) != 0) all.push_back(use.name);
  }
  return all.empty() ? "none" : fmt::format("{}", fmt::join(all, ", "));
}

std::uint64_t all_used_capabilities() {
  std::uint64_t all = 0;
  for (const CapabilityUse& use : kCapabilityUses) all |= bit_of(use.capability);
  return all;
}

std::uint64_t needed_capabilities(const Config* config, const std::string& config_path) {
  std::uint64_t needed = all_used_capabilities();
  if (config != nullptr && !needs_files_of_others(*config, config_path))
    needed &= ~bit_of(Capability::kDacOverride);
  return needed;
}

Privileges keep_capabilities(std::uint64_t wanted) {
  Privileges result;
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
    result.problem = fmt::format("no_new_privs: {}", std::strerror(errno));
  capng_setpid(::getpid());  // a keeper has the library's memory of the process from which it was cloned
  if (capng_get_caps_process() != 0) {
    result.problem = "the capabilities of this process cannot be read";
    return result;
  }
  const std::uint64_t kept = capability_set(CAPNG_PERMITTED) & wanted;
  // First, because it takes a capability that goes with the rest. Without it the set stays, and gives
  // nothing: there is no_new_privs, and to user 0 an execve(2) gives no more than is permitted.
  if ((capability_set(CAPNG_EFFECTIVE) & kSetPcap) != 0) {
    if (!set_capabilities(kept, CAPNG_BOUNDING_SET, CAPNG_SELECT_BOUNDS))
      result.problem = fmt::format("the bounding set cannot be reduced: {}", std::strerror(errno));
  }
  if (!set_capabilities(kept, CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_INHERITABLE, CAPNG_SELECT_CAPS))
    result.problem = fmt::format("capabilities cannot be dropped: {}", std::strerror(errno));
  // After the others, of which it is a part. Where it is not allowed (securebits), an upgrade has what
  // execve(2) gives.
  (void)set_capabilities(kept, CAPNG_AMBIENT, CAPNG_SELECT_AMBIENT);
  capng_get_caps_process();
  result.capabilities = capability_set(CAPNG_EFFECTIVE);
  return result;
}

void keep_privileges_of_keeper() {
  // The daemon has raised this limit for itself, and has as many descriptors; in flight they count for the
  // sender.
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  keep_capabilities(bit_of(Capability::kNetAdmin) | bit_of(Capability::kSysPtrace) |
                    bit_of(Capability::kSysResource) | bit_of(Capability::kDacOverride));
}

}  // namespace portway
