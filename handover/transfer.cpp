#include "handover/transfer.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace portway {
namespace {

constexpr std::size_t kAtOnce = 250;           // the kernel passes 253 (SCM_MAX_FD)
constexpr std::int32_t kNumbersMax = 1 << 24;  // more than any fs.nr_open in use
constexpr std::uint32_t kMagic = 0x50574b31;

struct Message {
  std::uint32_t magic = kMagic;
  std::uint32_t version = kTransferVersion;
  std::uint32_t left = 0;   // descriptors that are still to come after this message
  std::uint32_t count = 0;  // of this message
  std::array<std::int32_t, kAtOnce> numbers{};
};

int send_message(int socket, Message message, std::span<const int> descriptors) {
  message.count = static_cast<std::uint32_t>(descriptors.size());
  std::ranges::copy(descriptors, message.numbers.begin());
  iovec data{.iov_base = &message, .iov_len = sizeof message};
  std::vector<char> control(CMSG_SPACE(descriptors.size_bytes()));
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
  for (;;) {
    if (::sendmsg(socket, &header, MSG_NOSIGNAL) >= 0) return 0;
    if (errno != EINTR) return errno;
  }
}

/// Its descriptors go into `received`, whatever the result is. An errno, or 0.
int receive_message(int socket, std::chrono::milliseconds patience, Message& message,
                    std::vector<Fd>& received) {
  pollfd ready{.fd = socket, .events = POLLIN, .revents = 0};
  const int polled = ::poll(&ready, 1, static_cast<int>(patience.count()));
  if (polled <= 0) return polled == 0 ? ETIMEDOUT : errno;
  iovec data{.iov_base = &message, .iov_len = sizeof message};
  std::vector<char> control(CMSG_SPACE(kAtOnce * sizeof(int)));
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const auto size = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  if (size < 0) return errno;
  for (cmsghdr* each = CMSG_FIRSTHDR(&header); each != nullptr; each = CMSG_NXTHDR(&header, each)) {
    if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (each->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(each) + i * sizeof fd, sizeof fd);
      received.emplace_back(fd);
    }
  }
  if (size == 0) return ECONNRESET;
  // The kernel leaves out what exceeds RLIMIT_NOFILE, and says so.
  if ((header.msg_flags & MSG_CTRUNC) != 0) return EMFILE;
  const bool fits = size == sizeof message && message.magic == kMagic &&
                    message.version == kTransferVersion && message.count == received.size() &&
                    message.count <= kAtOnce;
  return fits ? 0 : EPROTO;
}

std::optional<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return std::nullopt;
  std::ranges::copy(path, address.sun_path);
  return address;
}

template <class Use>
Fd open_socket(const std::string& path, int& error, Use use) {
  const auto address = address_of(path);
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  error = !address ? ENAMETOOLONG : !socket ? errno : 0;
  if (error == 0 && !use(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address))
    error = errno;
  return error == 0 ? std::move(socket) : Fd();
}

}  // namespace

int send_estate(int socket, int control, int memory, std::span<const int> others) {
  Message first;
  first.left = static_cast<std::uint32_t>(others.size());
  if (const int error = send_message(socket, first, std::array{control, memory})) return error;
  while (!others.empty()) {
    const auto some = others.first(std::min(kAtOnce, others.size()));
    others = others.subspan(some.size());
    Message message;
    message.left = static_cast<std::uint32_t>(others.size());
    if (const int error = send_message(socket, message, some)) return error;
  }
  return 0;
}

std::optional<Estate> receive_estate(int socket, std::chrono::milliseconds patience, int& error) {
  Estate estate;
  Message message;
  std::vector<Fd> received;
  error = receive_message(socket, patience, message, received);
  if (error != 0) return std::nullopt;
  if (received.size() != 2) {
    error = EPROTO;
    return std::nullopt;
  }
  estate.control = std::move(received[0]);
  estate.memory = std::move(received[1]);
  for (std::uint32_t left = message.left; left > 0;) {
    received.clear();
    error = receive_message(socket, patience, message, received);
    if (error == 0 && (received.empty() || received.size() + message.left != left)) error = EPROTO;
    if (error != 0) return std::nullopt;
    left = message.left;
    for (std::size_t i = 0; i < received.size(); ++i) {
      const std::int32_t number = message.numbers[i];
      if (number < 0 || number >= kNumbersMax) {
        error = EPROTO;
        return std::nullopt;
      }
      const auto place = static_cast<std::size_t>(number);
      if (place >= estate.others.size()) estate.others.resize(place + 1);
      estate.others[place] = std::move(received[i]);
    }
  }
  return estate;
}

Fd listen_for_successor(const std::string& path, int& error) {
  ::unlink(path.c_str());  // of a keeper that was killed
  return open_socket(path, error, [](int socket, const sockaddr* address, socklen_t size) {
    const mode_t before = ::umask(0177);
    const bool bound = ::bind(socket, address, size) == 0;
    ::umask(before);
    return bound && ::listen(socket, 4) == 0;
  });
}

Fd connect_to_keeper(const std::string& path, int& error) {
  return open_socket(path, error, [](int socket, const sockaddr* address, socklen_t size) {
    return ::connect(socket, address, size) == 0;
  });
}

uid_t user_of_peer(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.uid : static_cast<uid_t>(-1);
}

}  // namespace portway
