#include "api/http/unix_listener.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/unix_socket.h"

namespace portway {
namespace {

constexpr mode_t kMode = 0660;

Error cannot_listen(const std::string& path, int error) {
  const auto with = [&](ErrorCode code, std::string_view remedy) {
    return Error{code, fmt::format("cannot listen on unix:{}: {}; {}", path, std::strerror(error), remedy)};
  };
  switch (error) {
    case EADDRINUSE:
      return with(ErrorCode::kHostPortTaken, "stop the daemon that has it, or choose another path");
    case ENOENT:
    case ENOTDIR:
      return with(ErrorCode::kInvalidConfig, "make its directory first (systemd: RuntimeDirectory=)");
    case EACCES:
    case EPERM:
    case EROFS:
      return with(ErrorCode::kInvalidConfig, "choose a directory that the daemon may write");
    case ENOTSOCK:
      return with(ErrorCode::kInvalidConfig, "this file is not a socket; choose another path");
    default:
      return with(ErrorCode::kResourceExhausted, "the kernel lacks descriptors or memory");
  }
}

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::ranges::copy(path, address.sun_path);  // fits: UnixPath
  return address;
}

/// Removes what a dead daemon has left; an errno if the path cannot be used.
int clear_path(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) < 0) return errno == ENOENT ? 0 : errno;
  if (!S_ISSOCK(status.st_mode)) return ENOTSOCK;
  const Fd probe = make_unix_socket();
  const sockaddr_un address = address_of(path);
  if (!probe) return errno;
  // Only a refusal says that nobody listens; a full backlog (EAGAIN) is somebody's.
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    return EADDRINUSE;
  }
  if (errno != ECONNREFUSED) return errno == EAGAIN ? EADDRINUSE : errno;
  return ::unlink(path.c_str()) < 0 ? errno : 0;
}

}  // namespace

Result<UnixListener> UnixListener::open(const UnixPath& where, Fd inherited) {
  const std::string& path = where.path;
  struct stat status {};
  if (inherited && ::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode)) {
    UnixListener listener(path, std::move(inherited));
    listener.device_ = status.st_dev;
    listener.inode_ = status.st_ino;
    return listener;
  }
  inherited.reset();  // somebody has removed its file: nobody can reach it
  if (const int error = clear_path(path)) return cannot_listen(path, error);
  Fd socket = make_unix_socket();
  if (!socket) return cannot_listen(path, errno);
  // The file gets the socket's mode less the umask: it must never be wider than intended.
  ::fchmod(socket.get(), kMode);
  const sockaddr_un address = address_of(path);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    return cannot_listen(path, errno);
  }
  UnixListener listener(path, std::move(socket));
  if (::chmod(path.c_str(), kMode) < 0 || ::lstat(path.c_str(), &status) < 0 ||
      ::listen(listener.socket_.get(), SOMAXCONN) < 0) {
    return cannot_listen(path, errno);
  }
  listener.device_ = status.st_dev;
  listener.inode_ = status.st_ino;
  return listener;
}

UnixListener::UnixListener(UnixListener&& other) noexcept
    : path_(std::exchange(other.path_, {})),
      socket_(std::move(other.socket_)),
      device_(other.device_),
      inode_(other.inode_) {}

void UnixListener::remove() {
  if (path_.empty()) return;
  const std::string path = std::exchange(path_, {});
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_) {
    ::unlink(path.c_str());
  }
}

}  // namespace portway
