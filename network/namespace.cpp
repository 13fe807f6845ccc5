#include "network/namespace.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "base/socket.h"
#include "network/open_beneath.h"

namespace portway {
namespace {

constexpr const char* kOfThisThread = "/proc/thread-self/ns/net";
constexpr std::size_t kPathMaxBytes = 4095;  // PATH_MAX without the terminator

// --- Entering and leaving.

/// Of the calling thread.
thread_local Fd home;       // its own namespace; empty until it first enters another one
thread_local int now = -1;  // the namespace it is in

/// 0, or a negative errno. Whoever may enter its own namespace may return to it.
int open_home() {
  if (home) return 0;
  Fd opened(::open(kOfThisThread, O_RDONLY | O_CLOEXEC));
  if (!opened || ::setns(opened.get(), CLONE_NEWNET) != 0) return -errno;
  home = std::move(opened);
  now = home.get();
  return 0;
}

/// Enters the namespace. The descriptor to leave() with, or a negative errno.
int go_into(int fd) {
  if (const int error = open_home(); error != 0) return error;
  if (::setns(fd, CLONE_NEWNET) != 0) return -errno;
  return std::exchange(now, fd);
}

void leave(int before) {
  if (::setns(before, CLONE_NEWNET) != 0) {
    // Not by the daemon's log, which writes later.
    fmt::print(
        stderr,
        "fatal: a thread cannot leave a guest's network namespace (setns: {}); what it does next would "
        "happen there\n",
        std::strerror(errno));
    std::abort();
  }
  now = before;
}

// --- Errors.

Error invalid(std::string detail) {
  return {.code = ErrorCode::kInvalidRequest, .detail = std::move(detail), .field = "netns"};
}

/// If the error is the daemon's and not the request's: resources, capabilities.
std::optional<Error> own_failure(const std::string& what, int error) {
  std::string remedy;
  switch (error) {
    case EMFILE:
    case ENFILE:
      remedy = "raise the limit of descriptors (LimitNOFILE=, fs.file-max)";
      break;
    case ENOMEM:
    case ENOBUFS:
      remedy = "free memory";
      break;
    case ENOSYS:
      remedy = "it needs Linux 5.6 and a seccomp filter that allows openat2(2)";
      break;
    default:
      return std::nullopt;
  }
  return Error{.code = ErrorCode::kResourceExhausted,
               .detail = fmt::format("{} cannot be opened: {}; {}.", what, std::strerror(error), remedy),
               .field = "netns"};
}

Error not_entered(const std::string& what, int error) {
  if (const auto failure = own_failure(what, error)) return *failure;
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("{} cannot be entered: {}{}.", what, std::strerror(error),
                                error == EPERM ? "; grant portwayd CAP_SYS_ADMIN (systemd: "
                                                 "AmbientCapabilities= and CapabilityBoundingSet=; "
                                                 "RestrictNamespaces= must allow net), or leave netns out"
                                               : ""),
          .field = "netns"};
}

Error not_opened(const std::string& what, int error) {
  if (const auto failure = own_failure(what, error)) return *failure;
  switch (error) {
    case ELOOP:
      return invalid(fmt::format(
          "{} leads through a symbolic link, which is not followed; give the path that it leads to.", what));
    case ENOENT:
    case ENOTDIR:
      return invalid(fmt::format(
          "There is no {}; make the namespace first (ip netns add NAME), or correct the path.", what));
    case ENXIO:  // a Unix socket, or a device without a driver
    case ENODEV:
      return invalid(
          fmt::format("{} is no network namespace; give the path of one, as ip netns add makes it.", what));
    case ENAMETOOLONG:
      return invalid(fmt::format("{} has a component of more than 255 bytes; correct the path.", what));
    default:
      return invalid(
          fmt::format("{} cannot be opened: {}; let portwayd's user read it.", what, std::strerror(error)));
  }
}

// --- Paths.

Result<PathBeneath> find_place(std::string_view path, std::span<const std::string> directories) {
  if (!path.starts_with('/') || path.size() > kPathMaxBytes || path.find('\0') != std::string_view::npos) {
    return invalid(
        fmt::format("{} is no absolute path of at most {} bytes; give one such as /run/netns/NAME.",
                    in_quotes(path), kPathMaxBytes));
  }
  if (has_parent_component(path)) {
    return invalid(fmt::format("{} contains \"..\"; give the path without it.", in_quotes(path)));
  }
  if (auto place = find_beneath(path, directories)) return *std::move(place);
  return invalid(fmt::format(
      "{} is below none of guests.netns_directories ({}); give a namespace that is, or add its "
      "directory.",
      in_quotes(path), directories.empty() ? "none" : fmt::format("{}", fmt::join(directories, ", "))));
}

/// O_NONBLOCK: a FIFO without a writer.
Result<Fd> open_within(const PathBeneath& place, const std::string& what) {
  Fd opened = open_beneath(place.directory, place.name, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!opened) return not_opened(what, errno);
  return opened;
}

// --- What has been opened.

constexpr auto kOtherKinds = std::to_array<std::pair<int, std::string_view>>({
    {CLONE_NEWNS, "mount"},
    {CLONE_NEWUTS, "UTS"},
    {CLONE_NEWIPC, "IPC"},
    {CLONE_NEWUSER, "user"},
    {CLONE_NEWPID, "PID"},
    {CLONE_NEWCGROUP, "cgroup"},
    {0x80, "time"},  // CLONE_NEWTIME
});

/// Why the file is no network namespace; nothing if it is one.
std::optional<Error> other_kind(const Fd& file, const struct stat& status, const std::string& what) {
  const int kind = ::ioctl(file.get(), NS_GET_NSTYPE);
  if (kind == CLONE_NEWNET) return std::nullopt;
  const auto* named = std::ranges::find(kOtherKinds, kind, &std::pair<int, std::string_view>::first);
  if (kind > 0) {
    return invalid(fmt::format("{} is a {} namespace; give a network namespace.", what,
                               named == kOtherKinds.end() ? "different" : named->second));
  }
  if (S_ISREG(status.st_mode) && status.st_size == 0) {
    return invalid(
        fmt::format("{} is no network namespace but an empty file: no namespace is mounted there (any more), "
                    "or only where portwayd does not see it. Make it again (ip netns add NAME), and let the "
                    "mount reach portwayd's mount namespace.",
                    what));
  }
  return invalid(
      fmt::format("{} is no network namespace; give the path of one, as ip netns add makes it.", what));
}

bool is_own(const struct stat& status) {
  struct stat own {};
  return ::stat(kOfThisThread, &own) == 0 && own.st_dev == status.st_dev && own.st_ino == status.st_ino;
}

/// Of the namespace that the thread is in: 0, or a negative errno. Kernels before 5.14 have no cookie.
int read_cookie(std::uint64_t& cookie) {
  const Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return -errno;
  cookie = netns_cookie(socket.get());
  return 0;
}

/// The namespaces that are open, by device and inode, which are a namespace's own while it is.
struct OpenNamespaces {
  std::mutex mutex;
  std::map<std::pair<dev_t, ino_t>, std::weak_ptr<const NetworkNamespace>> by_file;
};

OpenNamespaces& open_namespaces() {
  static auto& all = *new OpenNamespaces;  // never destroyed: references may outlive main()
  return all;
}

int open_to_read(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  return file < 0 ? -errno : file;
}

NetworkNamespace::OpenFile& opener() {
  static auto& open_file = *new NetworkNamespace::OpenFile(open_to_read);
  return open_file;
}

}  // namespace

void NetworkNamespace::open_processes_by(OpenFile open_file) {
  opener() = std::move(open_file);
}

InNamespace::~InNamespace() {
  if (before_ >= 0) leave(before_);
}

Result<NetworkNamespace::Ptr> NetworkNamespace::open(std::string_view path,
                                                     std::span<const std::string> directories) {
  auto place = find_place(path, directories);
  if (!place) return place.error();
  const std::string what = in_quotes(path);
  auto file = open_within(*place, what);
  if (!file) return file.error();
  return from(std::move(*file), what);
}

Result<NetworkNamespace::Ptr> NetworkNamespace::open_of_process(std::int32_t pid,
                                                                const std::function<bool()>& is_the_one) {
  const std::string what = fmt::format("The network namespace of process {}", pid);
  const int opened = opener()(fmt::format("/proc/{}/ns/net", pid));
  Fd file(opened < 0 ? -1 : opened);
  if (!file) {
    const int error = -opened;
    if (const auto failure = own_failure(what, error)) return *failure;
    if (error != EACCES && error != EPERM) {
      return invalid(
          fmt::format("There is no process {}; give the pid of the running virtual machine monitor.", pid));
    }
    return Error{.code = ErrorCode::kResourceExhausted,
                 .detail = fmt::format("{} cannot be opened: {}; grant portwayd CAP_SYS_PTRACE, or name the "
                                       "namespace by its path.",
                                       what, std::strerror(error)),
                 .field = "netns"};
  }
  if (!is_the_one()) {
    return invalid(
        fmt::format("Process {} has ended; give the pid of the running virtual machine monitor.", pid));
  }
  return from(std::move(file), what);
}

Result<NetworkNamespace::Ptr> NetworkNamespace::from(Fd fd, const std::string& what) {
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return not_opened(what, errno);
  if (auto error = other_kind(fd, status, what)) return *error;
  if (is_own(status)) {
    return invalid(fmt::format(
        "{} is the node's own network namespace, which needs no name: leave this field out.", what));
  }
  OpenNamespaces& all = open_namespaces();
  const std::lock_guard lock(all.mutex);
  auto& entry = all.by_file[{status.st_dev, status.st_ino}];
  if (auto open = entry.lock()) return open;
  NamespaceIdentity identity{.cookie = 0, .device = status.st_dev, .inode = status.st_ino};
  int error = go_into(fd.get());
  if (error >= 0) {
    const InNamespace inside(error);
    error = read_cookie(identity.cookie);
    // A descriptor that was opened by the namespace's path would keep umount(8) from unmounting it there.
    if (error == 0) fd.reset(::open(kOfThisThread, O_RDONLY | O_CLOEXEC));
    if (!fd) error = -errno;
  }
  if (error < 0) {
    all.by_file.erase({status.st_dev, status.st_ino});
    return not_entered(what, -error);
  }
  const Ptr opened(new NetworkNamespace(std::move(fd), identity));
  entry = opened;
  return opened;
}

NetworkNamespace::~NetworkNamespace() {
  OpenNamespaces& all = open_namespaces();
  const std::lock_guard lock(all.mutex);
  const auto entry = all.by_file.find({identity_.device, identity_.inode});
  // Somebody may have opened it again.
  if (entry != all.by_file.end() && entry->second.expired()) all.by_file.erase(entry);
}

int NetworkNamespace::make_socket(int domain, int type, int protocol) const {
  const int before = go_into(fd());
  if (before < 0) return before;
  const InNamespace inside(before);
  const int made = ::socket(domain, type, protocol);
  return made >= 0 ? made : -errno;
}

int NamespaceStay::make_socket(NetworkNamespace::Ptr netns, int domain, int type, int protocol) {
  if (netns_ != netns) {
    end();
    const int before = go_into(netns->fd());
    if (before < 0) return before;
    inside_.emplace(InNamespace(before));
    netns_ = std::move(netns);
  }
  const int made = ::socket(domain, type, protocol);
  return made >= 0 ? made : -errno;
}

void NamespaceStay::end() {
  inside_.reset();
  netns_.reset();
}

Result<InNamespace> NetworkNamespace::enter() const {
  const int before = go_into(fd());
  if (before < 0) return not_entered("The network namespace", -before);
  return InNamespace(before);
}

}  // namespace portway
