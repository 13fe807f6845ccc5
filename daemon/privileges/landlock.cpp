#include "daemon/privileges/landlock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "base/fd.h"

namespace portway {
namespace {

constexpr std::uint64_t kTruncate =
    1U << 14;  // LANDLOCK_ACCESS_FS_TRUNCATE, Linux 6.2: newer than Debian 12's headers
constexpr std::uint64_t kWriteFile = LANDLOCK_ACCESS_FS_WRITE_FILE;
// What the daemon does in its directories: files, sockets, and directories of files that it makes.
constexpr std::uint64_t kAllowed = kWriteFile | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG |
                                   LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_DIR | kTruncate;
constexpr std::uint64_t kRestricted = kAllowed | LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
                                      LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                                      LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;

/// False, with an errno, if the kernel refuses; a file that does not exist is none.
bool allow(const Fd& ruleset, const char* path, std::uint64_t access) {
  const Fd file(::open(path, O_PATH | O_CLOEXEC));
  if (!file) return errno == ENOENT || errno == ENOTDIR || errno == EACCES;
  landlock_path_beneath_attr rule{};
  rule.allowed_access = access;
  rule.parent_fd = file.get();
  return ::syscall(SYS_landlock_add_rule, ruleset.get(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0;
}

Error refused(const char* call) {
  return {ErrorCode::kInternal, fmt::format("a thread is not confined to the daemon's directories: {}: {}",
                                            call, std::strerror(errno))};
}

}  // namespace

Result<void> restrict_writing(const std::vector<std::string>& directories) {
  const long version = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (version < 1) return {};  // ENOSYS, or EOPNOTSUPP: off at boot
  // The first two versions do not know of truncate(2), and leave it alone.
  const std::uint64_t known = version >= 3 ? ~std::uint64_t{0} : ~kTruncate;
  landlock_ruleset_attr attributes{};
  attributes.handled_access_fs = kRestricted & known;
  const Fd ruleset(
      static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0)));
  if (!ruleset) return refused("landlock_create_ruleset");
  for (const std::string& directory : directories) {
    if (!allow(ruleset, directory.c_str(), kAllowed & known)) return refused("landlock_add_rule");
  }
  if (!allow(ruleset, "/dev/null", (kWriteFile | kTruncate) & known)) return refused("landlock_add_rule");
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) return refused("landlock_restrict_self");
  return {};
}

}  // namespace portway
