#include "network/open_beneath.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

namespace portway {

std::string normal_path(std::string_view path) {
  if (has_parent_component(path)) return std::string(path);
  std::string text = std::filesystem::path(path).lexically_normal();
  return text.starts_with("/var/run/") || text == "/var/run" ? text.substr(4) : text;
}

bool has_parent_component(std::string_view path) {
  const std::filesystem::path whole(path);
  return std::any_of(whole.begin(), whole.end(), [](const auto& part) { return part == ".."; });
}

std::optional<PathBeneath> find_beneath(std::string_view path, std::span<const std::string> directories) {
  if (!path.starts_with('/') || has_parent_component(path)) return std::nullopt;
  const std::string whole = normal_path(path);
  for (const std::string& directory : directories) {
    std::string start = normal_path(directory);
    if (!start.ends_with('/')) start += '/';
    if (whole.starts_with(start) && whole != start) return PathBeneath{directory, whole.substr(start.size())};
  }
  return std::nullopt;
}

Fd open_beneath(const std::string& directory, const std::string& name, std::uint64_t flags) {
  const Fd start(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!start) return {};
  open_how how{};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  return Fd(static_cast<int>(::syscall(SYS_openat2, start.get(), name.c_str(), &how, sizeof how)));
}

}  // namespace portway
