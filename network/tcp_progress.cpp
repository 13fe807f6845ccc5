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

  bool operator==(const Counters& other) const {
    return state == other.state && bytes_acked == other.bytes_acked && bytes_received == other.bytes_received;
  }
};
static_assert(offsetof(Counters, bytes_acked) == 120);

struct Fins {
  bool received;
  bool sent;
};

/// Segments and acknowledgements come while the kernel is asked for one number after the other. They end
/// soon: nobody reads or writes meanwhile, so one buffer fills and the other one becomes empty.
constexpr int kTriesMax = 1000;

std::optional<Counters> counters_of(int fd) {
  Counters counters{};
  socklen_t size = sizeof counters;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &counters, &size) != 0 || size < sizeof counters)
    return std::nullopt;
  return counters;
}

/// What the queues hold, in bytes.
struct Queues {
  int unread = 0;
  int unacknowledged = 0;
};

/// None: bytes are at or before an urgent mark, which hides those after it.
std::optional<Queues> queues_of(int fd) {
  Queues queues;
  int at_urgent = 0;
  if (::ioctl(fd, SIOCATMARK, &at_urgent) != 0 || at_urgent != 0 ||
      ::ioctl(fd, SIOCINQ, &queues.unread) != 0 || ::ioctl(fd, SIOCOUTQ, &queues.unacknowledged) != 0)
    return std::nullopt;
  return queues;
}

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
  for (int i = 0; i < kTriesMax; ++i) {
    const auto counters = counters_of(fd);
    if (!counters) return std::nullopt;
    pollfd poll{.fd = fd, .events = POLLPRI, .revents = 0};
    // SIOCINQ counts only up to the urgent byte.
    if (::poll(&poll, 1, 0) < 0 || (poll.revents & POLLPRI) != 0) return std::nullopt;
    const auto fins = fins_in(counters->state, poll.revents, error);
    const auto queues = queues_of(fd);
    if (counters_of(fd) != counters) continue;
    if (!fins || !queues) return std::nullopt;
    const std::uint64_t others_received =
        (fins->received ? 1 : 0) + static_cast<std::uint64_t>(queues->unread);
    const std::uint64_t others_sent = (opener ? 1 : 0) + (fins->sent ? 1 : 0);
    const std::uint64_t sent = counters->bytes_acked + static_cast<std::uint64_t>(queues->unacknowledged);
    if (counters->bytes_received < others_received || sent < others_sent)
      return std::nullopt;  // never connected
    return TcpProgress{.read = counters->bytes_received - others_received, .written = sent - others_sent};
  }
  return std::nullopt;
}

}  // namespace portway
