#include "network/tcp_progress.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>

namespace portway {
namespace {

/// The start of tcp_info (linux/tcp.h, which does not go together with netinet/tcp.h).
struct Counters {
  std::uint8_t state;
  std::byte others[119];
  std::uint64_t bytes_acked;
  std::uint64_t bytes_received;
};
static_assert(offsetof(Counters, bytes_acked) == 120);

struct Fins {
  bool received;
  bool sent;
};

/// A FIN counts as a byte of its stream.
std::optional<Fins> fins_in(int state, short events, int error) {
  switch (state) {
    case TCP_ESTABLISHED:
      return Fins{.received = false, .sent = false};
    case TCP_CLOSE_WAIT:
      return Fins{.received = true, .sent = false};
    case TCP_FIN_WAIT1:
    case TCP_FIN_WAIT2:
      return Fins{.received = false, .sent = true};
    case TCP_LAST_ACK:
    case TCP_CLOSING:
    case TCP_TIME_WAIT:
      return Fins{.received = true, .sent = true};
    case TCP_CLOSE:  // after both FINs, or after a RST
      // tcp_reset() of the kernel: EPIPE if a FIN had come.
      if (error == ECONNRESET || error == EPIPE) return Fins{.received = error == EPIPE, .sent = false};
      if (error != 0 || (events & POLLERR) != 0) return std::nullopt;
      return Fins{.received = true, .sent = true};
    default:
      return std::nullopt;
  }
}

}  // namespace

std::optional<TcpProgress> tcp_progress(int fd, bool opener, int error) {
  Counters counters{};
  socklen_t size = sizeof counters;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &counters, &size) != 0 || size < sizeof counters)
    return std::nullopt;
  pollfd poll{.fd = fd, .events = POLLPRI, .revents = 0};
  // SIOCINQ counts only up to the urgent byte.
  if (::poll(&poll, 1, 0) < 0 || (poll.revents & POLLPRI) != 0) return std::nullopt;
  const auto fins = fins_in(counters.state, poll.revents, error);
  int at_urgent = 0;
  int unread = 0;
  int unacknowledged = 0;
  if (!fins || ::ioctl(fd, SIOCATMARK, &at_urgent) != 0 || at_urgent != 0 ||
      ::ioctl(fd, SIOCINQ, &unread) != 0 || ::ioctl(fd, SIOCOUTQ, &unacknowledged) != 0)
    return std::nullopt;
  const std::uint64_t others_received = (fins->received ? 1 : 0) + static_cast<std::uint64_t>(unread);
  const std::uint64_t others_sent = (opener ? 1 : 0) + (fins->sent ? 1 : 0);
  const std::uint64_t sent = counters.bytes_acked + static_cast<std::uint64_t>(unacknowledged);
  if (counters.bytes_received < others_received || sent < others_sent)
    return std::nullopt;  // never connected
  return TcpProgress{.read = counters.bytes_received - others_received, .written = sent - others_sent};
}

}  // namespace portway
