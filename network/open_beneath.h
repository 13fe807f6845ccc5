// Files below directories of the configuration, which others can write to: which directory a path lies below,
// and openat2(2) there. Any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/fd.h"

namespace portway {

struct PathBeneath {
  std::string directory;  // as configured
  std::string name;       // the rest of the path, without "//" and "/./"
};

/// The path as text without "//" and "/./", and without the /var of /var/run, which is /run (Filesystem
/// Hierarchy Standard 3.0, section 5.13). One with a ".." component is left as it is.
std::string normal_path(std::string_view path);

/// The first of the directories that the absolute path lies below, compared as text (normal_path()). Nothing
/// if there is none, or if the path has a ".." component. A directory is not below itself.
std::optional<PathBeneath> find_beneath(std::string_view path, std::span<const std::string> directories);

/// Opens `name`, a relative path, below `directory`, whose own symbolic links are followed. Links in `name`
/// are refused (ELOOP; magic links, too), and nothing outside is opened (EXDEV). It may cross mounts: a
/// namespace is one. Empty, with errno; ENOSYS before Linux 5.6.
Fd open_beneath(const std::string& directory, const std::string& name, std::uint64_t flags);

/// Whether a component of the path is "..".
bool has_parent_component(std::string_view path);

}  // namespace portway
