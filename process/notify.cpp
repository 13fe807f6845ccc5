#include "process/notify.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>

#include "base/fd.h"

namespace portway {

bool notify(std::string_view state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  const std::string_view name = path == nullptr ? std::string_view() : std::string_view(path);
  if (name.empty() || name.size() >= sizeof address.sun_path) return true;
  address.sun_family = AF_UNIX;
  std::ranges::copy(name, address.sun_path);
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';  // the abstract namespace
  const Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return false;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return ::sendto(socket.get(), state.data(), state.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                  reinterpret_cast<const sockaddr*>(&address), size) >= 0 ||
         (errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM);
}

}  // namespace portway
