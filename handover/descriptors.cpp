#include "handover/descriptors.h"

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
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
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

DescriptorKind kind_by_mode(int fd, mode_t mode) {
  if (S_ISSOCK(mode)) return kind_of_socket(fd);
  if (S_ISFIFO(mode)) return DescriptorKind::kPipe;
  const bool is_anonymous = (mode & S_IFMT) == 0;
  return is_anonymous && is_bpf(fd) ? DescriptorKind::kBpf : DescriptorKind::kOther;
}

/// No open one has this number or a higher one.
int table_size() {
  std::ifstream status("/proc/self/status");
  constexpr std::string_view kSize = "FDSize:";
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(kSize)) return std::atoi(line.c_str() + kSize.size());
  }
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? static_cast<int>(limit.rlim_cur) : 0;
}

}  // namespace

DescriptorKind kind_of(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 ? kind_by_mode(fd, status.st_mode) : DescriptorKind::kOther;
}

std::vector<Descriptor> open_descriptors(std::span<const Descriptor> known) {
  std::vector<Descriptor> all;
  const int end = table_size();  // asking for each number is faster than listing /proc/self/fd
  auto before = known.begin();
  for (int fd = 0; fd < end; ++fd) {
    struct stat status {};
    if (::fstat(fd, &status) != 0) continue;
    while (before != known.end() && before->fd < fd) ++before;
    const bool is_known = before != known.end() && before->fd == fd && before->device == status.st_dev &&
                          before->inode == status.st_ino;
    all.push_back({.fd = fd,
                   .kind = is_known ? before->kind : kind_by_mode(fd, status.st_mode),
                   .device = status.st_dev,
                   .inode = status.st_ino});
  }
  return all;
}

std::vector<int> descriptors_to_hand_over(std::span<const Descriptor> open) {
  std::vector<int> chosen;
  std::map<std::pair<dev_t, ino_t>, int> pipes;  // one end
  for (const Descriptor& each : open) {
    if (each.fd <= STDERR_FILENO) continue;
    if (each.kind == DescriptorKind::kConnection || each.kind == DescriptorKind::kListener)
      chosen.push_back(each.fd);
    if (each.kind != DescriptorKind::kPipe) continue;
    const auto [other, is_first] = pipes.try_emplace({each.device, each.inode}, each.fd);
    if (!is_first) chosen.insert(chosen.end(), {other->second, each.fd});
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
