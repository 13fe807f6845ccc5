#include "proxy/kernel_io.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <span>
#include <utility>

#include "base/fd.h"
#include "base/socket.h"
#include "base/unix_socket.h"
#include "network/ephemeral_ports.h"
#include "proxy/listen_socket.h"

namespace portway {
namespace {

/// A call's result as an Io returns it: -errno on failure.
template <class T>
T result_of(T result) {
  return result < 0 ? static_cast<T>(-errno) : result;
}

/// A system call without glibc's wrapper, for calls made per message: in a process with threads the
/// wrapper is a cancellation point, which costs two locked instructions, and nobody cancels our threads.
template <class... Arguments>
std::ptrdiff_t call(long number, Arguments... arguments) {
  return result_of(std::ptrdiff_t{::syscall(number, arguments...)});
}

/// getpeername(2) or getsockname(2).
int endpoint_of(int fd, int (*ask)(int, sockaddr*, socklen_t*), Endpoint& out) {
  Endpoint endpoint;
  auto size = static_cast<socklen_t>(endpoint.capacity());
  if (ask(fd, endpoint.data(), &size) < 0) return -errno;
  endpoint.resize(size);
  out = endpoint;
  return 0;
}

std::uint16_t big_endian_16(const std::uint8_t* bytes) {
  return static_cast<std::uint16_t>(bytes[0] << 8 | bytes[1]);
}

/// Reads the client from the IP and TCP headers of its SYN (RFC 791, RFC 8200). False if they do not give
/// the whole endpoint: extension headers, or a link-local address, which needs its link.
bool client_of_syn(std::span<const std::uint8_t> syn, Client& out) {
  constexpr std::size_t kIpv4Min = 20;
  constexpr std::size_t kIpv6 = 40;
  constexpr std::size_t kPorts = 4;
  if (syn.size() < kIpv4Min + kPorts) return false;
  if (syn[0] >> 4 == 4) {
    const std::size_t header = std::size_t{4} * (syn[0] & 0x0f);
    if (header < kIpv4Min || syn.size() < header + kPorts) return false;
    out.dscp = syn[1] & 0xfc;
    boost::asio::ip::address_v4::bytes_type address;
    std::copy_n(syn.begin() + 12, address.size(), address.begin());
    out.endpoint = Endpoint(boost::asio::ip::address_v4(address), big_endian_16(&syn[header]));
    return true;
  }
  out.dscp = static_cast<std::uint8_t>(syn[0] << 4 | syn[1] >> 4) & 0xfc;
  boost::asio::ip::address_v6::bytes_type address;
  std::copy_n(syn.begin() + 8, address.size(), address.begin());
  const boost::asio::ip::address_v6 source(address);
  if (syn.size() < kIpv6 + kPorts || syn[6] != IPPROTO_TCP || source.is_link_local()) return false;
  out.endpoint = Endpoint(source, big_endian_16(&syn[kIpv6]));
  return true;
}

}  // namespace

Nanos KernelIo::now() const {
  timespec time;
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return std::chrono::seconds(time.tv_sec) + Nanos(time.tv_nsec);
}

int KernelIo::accept(int listener) {
  return static_cast<int>(call(SYS_accept4, listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

int KernelIo::socket(int family, const NetworkNamespace::Ptr& netns) {
  constexpr int kType = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  if (netns != nullptr) {
    const int made = stay_.make_socket(netns, family, kType, IPPROTO_TCP);
    if (!stays_) stay_.end();
    return made;
  }
  stay_.end();
  if (family == AF_UNIX) return result_of(make_unix_socket().release());
  return result_of(::socket(family, kType, IPPROTO_TCP));
}

void KernelIo::set_stays_in_namespaces(bool stays) {
  stays_ = stays;
  if (!stays) stay_.end();
}

int KernelIo::connect(int fd, const Endpoint& to) {
  return result_of(::connect(fd, to.data(), static_cast<socklen_t>(to.size())));
}

int KernelIo::connect(int fd, const SocketTarget& to) {
  return connect_client_to(fd, to);
}

int KernelIo::socket_error(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) return -errno;
  return -error;
}

namespace {

class KernelProbe final : public PortProbe {
 public:
  explicit KernelProbe(SynProbe probe) : probe_(std::move(probe)) {}

  int fd() const override { return probe_.fd(); }
  int answer() override { return probe_.answer(); }
  bool needs_asking() const override { return probe_.needs_asking(); }

 private:
  SynProbe probe_;
};

}  // namespace

std::unique_ptr<PortProbe> KernelIo::probe(const SynProbeTarget& target, int& error) {
  SynProbe probe;
  error = SynProbe::open(target, probe);
  return error == 0 ? std::make_unique<KernelProbe>(std::move(probe)) : nullptr;
}

int KernelIo::set_option(int fd, int level, int option, int value) {
  return result_of(::setsockopt(fd, level, option, &value, sizeof value));
}

int KernelIo::bind_to_device(int fd, int device) {
  return set_option(fd, SOL_SOCKET, SO_BINDTOIFINDEX, device);  // Linux 5.1
}

int KernelIo::bind_transparent(int fd, const Endpoint& source) {
  const bool v6 = source.address().is_v6();
  if (const int result = v6 ? set_option(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
                            : set_option(fd, IPPROTO_IP, IP_TRANSPARENT, 1);
      result < 0) {
    return result;
  }
  if (source.port() != 0) {
    if (const int result = set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1); result < 0) return result;
  } else if (const int result = set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1); result < 0) {
    return result;
  }
  return result_of(::bind(fd, source.data(), static_cast<socklen_t>(source.size())));
}

int KernelIo::local_endpoint(int fd, Endpoint& out) {
  return endpoint_of(fd, ::getsockname, out);
}

int KernelIo::remote_endpoint(int fd, Endpoint& out) {
  return endpoint_of(fd, ::getpeername, out);
}

std::vector<PortRange> KernelIo::local_ports() {
  stay_.end();
  return ephemeral_ports();  // of this thread's network namespace
}

int KernelIo::take_client(int fd, Client& out) {
  // One call returns both. If the SYN was not kept (SYN cookies) or is not enough, a second call is
  // needed. If the buffer were too small, the kernel would keep the SYN.
  std::array<std::uint8_t, 256> syn;
  socklen_t size = syn.size();
  if (::getsockopt(fd, IPPROTO_TCP, TCP_SAVED_SYN, syn.data(), &size) < 0) size = 0;
  if (client_of_syn(std::span(syn).first(size), out)) return 0;
  return endpoint_of(fd, ::getpeername, out.endpoint);
}

int KernelIo::listen_again(int fd) {
  return result_of(::listen(fd, kListenBacklog));
}

int KernelIo::unacknowledged(int fd) {
  int bytes = 0;
  return ::ioctl(fd, SIOCOUTQ, &bytes) < 0 ? -errno : bytes;
}

int KernelIo::unread(int fd) {
  int bytes = 0;
  return ::ioctl(fd, SIOCINQ, &bytes) < 0 ? -errno : bytes;
}

TcpSummary KernelIo::tcp_summary(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0) return {};
  // If a window has shrunk below the bytes in flight, retransmissions probe it but are not counted. Then
  // one is counted if the timeout has passed since the last answer.
  const bool timed_out = info.tcpi_unacked > 0 && info.tcpi_backoff > 0 &&
                         std::uint64_t{1000} * info.tcpi_last_ack_recv > info.tcpi_rto;
  return {.rtt_us = info.tcpi_rtt,
          .retransmits = info.tcpi_total_retrans,
          .closed = info.tcpi_state == TCP_CLOSE,
          .unanswered = std::uint32_t{info.tcpi_retransmits} + info.tcpi_probes + (timed_out ? 1 : 0),
          .answered_ago = std::chrono::milliseconds(info.tcpi_last_ack_recv)};
}

void KernelIo::find_urgent(std::span<pollfd> sockets) {
  // A socket may occur more than once, and poll(2) refuses more entries than RLIMIT_NOFILE.
  constexpr std::size_t kAtOnce = 256;
  for (std::size_t done = 0; done < sockets.size(); done += kAtOnce) {
    const auto some = sockets.subspan(done, std::min(kAtOnce, sockets.size() - done));
    const bool asked = ::poll(some.data(), some.size(), 0) >= 0;
    for (pollfd& each : some) each.revents = asked ? each.revents & POLLPRI : 0;
  }
}

bool KernelIo::at_urgent_mark(int fd) {
  int at_mark = 0;
  return ::ioctl(fd, SIOCATMARK, &at_mark) == 0 && at_mark != 0;
}

std::ptrdiff_t KernelIo::recv(int fd, void* buffer, std::size_t size, int flags) {
  return call(SYS_recvfrom, fd, buffer, size, flags | MSG_DONTWAIT, nullptr, nullptr);
}

std::ptrdiff_t KernelIo::send(int fd, const void* data, std::size_t size, int flags) {
  return call(SYS_sendto, fd, data, size, flags | MSG_DONTWAIT | MSG_NOSIGNAL, nullptr, 0);
}

std::ptrdiff_t KernelIo::splice(int from, int to, std::size_t size) {
  // SPLICE_F_NONBLOCK applies only to the pipe; the sockets are O_NONBLOCK. SPLICE_F_MORE would hold back
  // the last piece of a message for about 200 ms, TCP_NODELAY or not.
  return call(SYS_splice, from, nullptr, to, nullptr, size, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
}

std::ptrdiff_t KernelIo::write(int fd, const void* data, std::size_t size) {
  return result_of(::write(fd, data, size));
}

int KernelIo::pipe(int (&fds)[2], std::size_t size) {
  int ends[2];
  if (::pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0) return -errno;
  Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  // Refused (EPERM) beyond the user's limit: the pipe keeps its default size.
  int got = ::fcntl(write_end.get(), F_SETPIPE_SZ, static_cast<int>(size));
  if (got < 0) got = ::fcntl(write_end.get(), F_GETPIPE_SZ);
  if (got < 0) return -errno;
  fds[0] = read_end.release();
  fds[1] = write_end.release();
  return got;
}

int KernelIo::shutdown(int fd, int how) {
  return result_of(::shutdown(fd, how));
}

// A slot is plain old data in shared memory, so its descriptors are numbers; only these three functions
// close them.
void KernelIo::close(int fd) {
  ::close(fd);
}

void KernelIo::close_time_wait(int fd, const Endpoint& remote, int device,
                               const NetworkNamespace::Ptr& netns) {
  Endpoint local;
  const bool known = local_endpoint(fd, local) == 0;
  ::close(fd);
  if (known) time_waits_.end(local, remote, device, netns);
}

int KernelIo::set_reset_at_end(int fd, bool reset) {
  return result_of(portway::set_reset_at_end(fd, reset));
}

void KernelIo::close_with_reset(int fd) {
  portway::close_with_reset(fd);
}

}  // namespace portway
