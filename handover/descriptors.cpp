#include "handover/descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/ends_with_process.h"
#include "base/fd.h"

namespace portway {
namespace {

int option_of(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

DescriptorKind kind_of_socket(int fd) {
  const int domain = option_of(fd, SO_DOMAIN);
  if (option_of(fd, SO_TYPE) != SOCK_STREAM || ends_with_process(fd)) return DescriptorKind::kOther;
  if (domain != AF_INET && domain != AF_INET6 && domain != AF_UNIX) return DescriptorKind::kOther;
  return option_of(fd, SO_ACCEPTCONN) == 1 ? DescriptorKind::kListener : DescriptorKind::kConnection;
}

bool is_bpf(int fd) {
  std::array<char, 64> target{};
  const auto size = ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), target.data(), target.size());
  return size > 0 &&
         std::string_view(target.data(), static_cast<std::size_t>(size)).starts_with("anon_inode:bpf");
}

}  // namespace

DescriptorKind kind_of(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return DescriptorKind::kOther;
  if (S_ISSOCK(status.st_mode)) return kind_of_socket(fd);
  if (S_ISFIFO(status.st_mode)) return DescriptorKind::kPipe;
  const bool is_anonymous = (status.st_mode & S_IFMT) == 0;
  return is_anonymous && is_bpf(fd) ? DescriptorKind::kBpf : DescriptorKind::kOther;
}

std::vector<int> open_descriptors() {
  std::vector<int> all;
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir("/proc/self/fd"), ::closedir);
  if (directory == nullptr) {  // /proc is hidden: each number is tried
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return all;
    for (int fd = 0; fd < static_cast<int>(limit.rlim_cur); ++fd) {
      if (::fcntl(fd, F_GETFD) >= 0) all.push_back(fd);
    }
    return all;
  }
  const int own = ::dirfd(directory.get());
  while (const dirent* entry = ::readdir(directory.get())) {
    const std::string_view name = entry->d_name;
    int fd = -1;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), fd);
    if (parsed.ec == std::errc() && fd != own) all.push_back(fd);
  }
  std::ranges::sort(all);
  return all;
}

std::vector<int> descriptors_to_hand_over(const std::vector<int>& open) {
  std::vector<int> chosen;
  std::map<std::pair<dev_t, ino_t>, std::vector<int>> pipes;
  for (const int fd : open) {
    struct stat status {};
    switch (kind_of(fd)) {
      case DescriptorKind::kConnection:
      case DescriptorKind::kListener:
        chosen.push_back(fd);
        break;
      case DescriptorKind::kPipe:
        if (::fstat(fd, &status) == 0) pipes[{status.st_dev, status.st_ino}].push_back(fd);
        break;
      case DescriptorKind::kBpf:
      case DescriptorKind::kOther:
        break;
    }
  }
  for (const auto& [pipe, ends] : pipes) {
    if (ends.size() == 2) chosen.insert(chosen.end(), ends.begin(), ends.end());
  }
  std::ranges::sort(chosen);
  return chosen;
}

std::uint64_t netns_of_socket(int fd) {
  const Fd netns(::ioctl(fd, SIOCGSKNS));
  struct stat status {};
  return netns && ::fstat(netns.get(), &status) == 0 ? status.st_ino : 0;
}

std::vector<std::uint64_t> named_namespaces() {
  std::vector<std::uint64_t> all;
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    constexpr std::string_view kRoot = " net:[";  // the root of the mount, its fourth field
    const std::size_t at = line.find(kRoot);
    if (at == std::string::npos) continue;
    std::uint64_t inode = 0;
    const char* begin = line.data() + at + kRoot.size();
    if (std::from_chars(begin, line.data() + line.size(), inode).ec == std::errc()) all.push_back(inode);
  }
  std::ranges::sort(all);
  return all;
}

std::vector<std::uint64_t> namespaces_of_processes() {
  std::vector<std::uint64_t> all;
  std::error_code error;
  for (const auto& process : std::filesystem::directory_iterator("/proc", error)) {
    struct stat status {};
    if (::stat((process.path() / "ns/net").c_str(), &status) == 0) all.push_back(status.st_ino);
  }
  return all;
}

}  // namespace portway
