#include "network/socket_target.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/fd.h"
#include "network/open_beneath.h"

namespace portway {

SocketTarget socket_target(const Target& target, std::span<const std::string> directories) {
  auto place = find_beneath(target.socket, directories);
  if (!place) return {.kind = target.kind, .directory = {}, .name = target.socket, .port = target.port};
  while (place->directory.size() > 1 && place->directory.ends_with('/')) place->directory.pop_back();
  return {.kind = target.kind,
          .directory = std::move(place->directory),
          .name = std::move(place->name),
          .port = target.port};
}

int connect_to(int fd, const SocketTarget& target) {
  // O_PATH opens no device and waits for no FIFO.
  const Fd file = open_beneath(target.directory, target.name, O_PATH);
  if (!file) return -errno;
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return -errno;
  if (!S_ISSOCK(status.st_mode)) return -ENOTSOCK;
  // By the descriptor, so that it is the file that was looked at, whatever has its name by now.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  *fmt::format_to_n(address.sun_path, sizeof address.sun_path - 1, "/proc/self/fd/{}", file.get()).out = '\0';
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return -errno;
  return 0;
}

int connect_client_to(int fd, const SocketTarget& target) {
  if (const int result = connect_to(fd, target); result < 0) return result;
  ucred who{};  // whoever called listen(2)
  socklen_t size = sizeof who;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return -errno;
  return who.pid == ::getpid() ? -EPERM : 0;
}

}  // namespace portway
