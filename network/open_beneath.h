// openat2(2) below a directory that others can write to. Any thread.
#pragma once

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "base/fd.h"

namespace portway {

/// Opens `name`, a relative path, below `directory`, whose own symbolic links are followed. Links in `name`
/// are refused (ELOOP; magic links, too), and nothing outside is opened (EXDEV). It may cross mounts: a
/// namespace is one. Empty, with errno; ENOSYS before Linux 5.6.
inline Fd open_beneath(const std::string& directory, const std::string& name, std::uint64_t flags) {
  const Fd start(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!start) return {};
  open_how how{};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  return Fd(static_cast<int>(::syscall(SYS_openat2, start.get(), name.c_str(), &how, sizeof how)));
}

}  // namespace portway
