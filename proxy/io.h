// The data plane's only interface to the kernel.
//
// Two kinds of calls. *Armed* operations (poll) are answered later by completions that wait()
// returns: the ring, or epoll, only reports. *Direct* calls move bytes and change sockets at once and never
// block. Both kinds return -errno on failure; errno itself is not used.
//
// Implementations: UringIo, EpollIo (both over KernelIo's direct calls) and, for tests, SimIo (tests/sim). An
// Io belongs to the thread that calls wait(); only wake() may be called from elsewhere.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/endpoint.h"
#include "network/namespace.h"
#include "network/socket_target.h"
#include "network/syn_probe.h"
#include "proxy/stats.h"

namespace portway {

/// The caller's name for an armed operation; the Io does not interpret it.
using Token = std::uint64_t;

struct Completion {
  Token token = 0;
  std::int32_t result = 0;  // the ready mask (poll(2) bits); failed or ended: -errno
  bool more = false;        // the operation stays armed; otherwise this is its last completion
};

/// Who opened an accepted connection.
struct Client {
  Endpoint endpoint;
  std::uint8_t dscp = 0;  // of its SYN, shifted left by two; 0 also if unknown
};

/// Nanoseconds on the monotonic clock, as the Io sees it (virtual in the simulator).
using Nanos = std::chrono::nanoseconds;

/// What the kernel's TCP reports about a socket (TCP_INFO, tcp(7)).
struct TcpSummary {
  std::uint32_t rtt_us = 0;       // smoothed; 0: unknown
  std::uint32_t retransmits = 0;  // segments sent again
  bool closed = false;            // both FINs are acknowledged, or it was reset
  // Retransmissions and probes since the peer last answered.
  std::uint32_t unanswered = 0;
  std::chrono::milliseconds answered_ago{0};  // since it last acknowledged anything
};

/// Asks whether a guest's port is open without making a connection: the guest's SYN-ACK is answered with
/// RST, and no service accepts a connection. Destroying it closes its descriptors.
class PortProbe {
 public:
  virtual ~PortProbe() = default;

  /// As in SynProbe.
  virtual int fd() const = 0;
  virtual int answer() = 0;
  virtual bool needs_asking() const = 0;
};

class Io {
 public:
  virtual ~Io() = default;

  virtual std::string_view name() const = 0;  // "uring", "epoll", "sim"
  /// Where to count what the kernel refuses. Call it before the first wait().
  virtual void count_in(WorkerCounters&) {}
  virtual Nanos now() const = 0;

  // --- Armed operations. One poll at a time on a descriptor; the descriptor must stay open until the last
  // completion (more == false) was seen.

  /// Reports readiness each time it changes: POLLIN, POLLOUT, POLLRDHUP, POLLPRI, POLLERR, POLLHUP.
  /// POLLPRI alone proves nothing; see find_urgent(). Edge-triggered: an event is not repeated, so the
  /// caller keeps its own readable/writable flags. Also reports the state at the time of arming. The poll
  /// may end by itself: arm it again. A listener is readable if a client waits in its backlog, and reports
  /// POLLHUP after shutdown(SHUT_RD).
  virtual void poll(Token token, int fd) = 0;

  /// Ends the armed operation of `fd` with this token: wait() returns its last completion, -ECANCELED or an
  /// event that came first. No other armed operation may have the token.
  virtual void cancel(Token token, int fd) = 0;

  /// Submits what was armed and returns completions: at least one, unless `timeout` passed or wake() was
  /// called. Zero polls; a negative one waits for ever. The span is valid until the next call.
  virtual std::span<const Completion> wait(Nanos timeout) = 0;

  /// Makes the current wait(), or else the next one, return soon. Any thread; does not block.
  virtual void wake() = 0;

  // --- Direct calls.

  /// The client that has waited longest in a listener's backlog: a non-blocking, close-on-exec socket.
  /// -EAGAIN if none waits, -EINVAL after shutdown(SHUT_RD). -EMFILE, -ENFILE, -ENOMEM, ...: the client
  /// keeps waiting.
  virtual int accept(int listener) = 0;
  /// A non-blocking stream socket; AF_INET, AF_INET6 or AF_UNIX. `netns`: the network namespace to make it
  /// in; null: the thread's. -EPERM if the process may not enter it.
  virtual int socket(int family, const NetworkNamespace::Ptr& netns) = 0;
  /// While set, the thread may stay in the namespace of the last socket: what runs meanwhile must not
  /// depend on the thread's namespace, apart from the calls of this class. For batches of new connections.
  virtual void set_stays_in_namespaces(bool stays) = 0;
  /// 0 if connected at once. -EINPROGRESS: poll will report POLLOUT, or POLLERR and then socket_error()
  /// the reason.
  virtual int connect(int fd, const Endpoint& to) = 0;
  /// As connect_client_to(): 0 or -errno, never -EINPROGRESS.
  virtual int connect(int fd, const SocketTarget& to) = 0;
  /// SO_ERROR as -errno, or 0; reading it clears it.
  virtual int socket_error(int fd) = 0;
  /// Sends a SYN. Null, with `error` as from SynProbe::open(), if it could not be sent or was refused at
  /// once.
  virtual std::unique_ptr<PortProbe> probe(const SynProbeTarget& target, int& error) = 0;
  virtual int set_option(int fd, int level, int option, int value) = 0;
  /// SO_BINDTOIFINDEX; `device` is an interface index. -ENODEV if there is no such device.
  virtual int bind_to_device(int fd, int device) = 0;
  /// Before connect(): binds a socket to an address that need not be the node's (IP_TRANSPARENT,
  /// IPV6_TRANSPARENT), and to its port, which other sockets may have too. Port 0: connect() chooses one.
  virtual int bind_transparent(int fd, const Endpoint& source) = 0;
  /// Of an accepted socket. The first call reads the SYN and frees it; a later one no longer knows the
  /// DSCP. -ENOTCONN if the client has reset the connection and its SYN was not kept.
  virtual int take_client(int fd, Client& out) = 0;
  virtual int local_endpoint(int fd, Endpoint& out) = 0;
  virtual int remote_endpoint(int fd, Endpoint& out) = 0;
  /// The ports that the kernel gives to outgoing connections, ascending: net.ipv4.ip_local_port_range
  /// without net.ipv4.ip_local_reserved_ports. Empty if they cannot be read. Reads files.
  virtual std::vector<PortRange> local_ports() = 0;
  /// Makes a listener that shutdown(SHUT_RD) has stopped accept again. -EADDRINUSE if another socket took
  /// the port meanwhile.
  virtual int listen_again(int fd) = 0;
  /// Bytes the peer has not acknowledged yet, FIN included (SIOCOUTQ).
  virtual int unacknowledged(int fd) = 0;
  /// Bytes that have arrived and are still unread (SIOCINQ), up to the urgent mark.
  virtual int unread(int fd) = 0;
  /// All zero if it cannot be read.
  virtual TcpSummary tcp_summary(int fd) = 0;
  /// For `events` POLLPRI: sets `revents` to POLLPRI if the socket has an unread urgent byte, else to 0.
  /// Skips negative descriptors. Needed because io_uring passes on the mask of the wake-up, and TCP wakes
  /// with POLLIN | POLLPRI at every arrival. One call for many sockets.
  virtual void find_urgent(std::span<pollfd> sockets) = 0;
  /// True if the next byte to read is the urgent one (SIOCATMARK).
  virtual bool at_urgent_mark(int fd) = 0;

  virtual std::ptrdiff_t recv(int fd, void* buffer, std::size_t size, int flags) = 0;
  virtual std::ptrdiff_t send(int fd, const void* data, std::size_t size, int flags) = 0;
  /// Socket to pipe or pipe to socket, without blocking and without SPLICE_F_MORE.
  virtual std::ptrdiff_t splice(int from, int to, std::size_t size) = 0;
  /// Into a pipe.
  virtual std::ptrdiff_t write(int fd, const void* data, std::size_t size) = 0;

  /// A non-blocking pipe of about `size` bytes: fds[0] is the reading end. Returns the actual size.
  virtual int pipe(int (&fds)[2], std::size_t size) = 0;
  virtual int shutdown(int fd, int how) = 0;
  virtual void close(int fd) = 0;
  /// With `reset`, the socket ends with RST, and at once, whoever closes it, also if the process is killed
  /// (SO_LINGER 0): else the kernel goes on with it for minutes if its peer is silent, and keeps its network
  /// namespace alive.
  virtual int set_reset_at_end(int fd, bool reset) = 0;
  /// Closes a socket so that its peer gets RST (SO_LINGER 0): unread and unacknowledged bytes are lost.
  virtual void close_with_reset(int fd) = 0;
  /// Closes a connection's socket whose TIME_WAIT has begun (TcpSummary::closed), and ends the TIME_WAIT
  /// if the kernel permits. `remote` and `device` are what the socket was connected and bound to, `netns`
  /// where it was made.
  virtual void close_time_wait(int fd, const Endpoint& remote, int device,
                               const NetworkNamespace::Ptr& netns) = 0;
};

}  // namespace portway
