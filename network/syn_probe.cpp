#include "network/syn_probe.h"

#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "network/local_port_range.h"

namespace portway {
namespace {

constexpr int kOn = 1;
constexpr std::uint32_t kSynSequence = 1;  // of a SYN that is not the kernel's: there will be no connection
constexpr int kChecksumAt = offsetof(tcphdr, check);
// A guest may send whatever it likes to the probe's port: so much is read in one call.
constexpr int kReadsMax = 32;

template <class Value>
bool set_option(const Fd& socket, int level, int name, const Value& value) {
  return ::setsockopt(socket.get(), level, name, &value, sizeof value) == 0;
}

bool set_filter(const Fd& socket, std::span<const sock_filter> code) {
  const sock_fprog program{.len = static_cast<unsigned short>(code.size()),
                           .filter = const_cast<sock_filter*>(code.data())};
  return set_option(socket, SOL_SOCKET, SO_ATTACH_FILTER, program);
}

/// The socket takes no segment at all.
bool drop_all(const Fd& tcp) {
  static constexpr std::array kCode = {sock_filter BPF_STMT(BPF_RET | BPF_K, 0)};
  return set_filter(tcp, kCode);
}

/// Only segments with RST reach the socket. A TCP socket's filter begins at the TCP header.
bool drop_all_but_resets(const Fd& tcp) {
  static constexpr std::array kCode = {
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 13),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, TH_RST, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0xffff),
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0),
  };
  return set_filter(tcp, kCode);
}

/// Of all TCP that the guest sends to the source address, what comes from the port that is asked, and goes to
/// the port that asks; while that one is not known yet (0), what may be an answer: no data. An IPv4 raw
/// socket's filter begins at the IP header.
bool receive_from(const Fd& raw, const Endpoint& guest, std::uint16_t to) {
  const sock_filter skip_ip = guest.address().is_v4() ? sock_filter BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0)
                                                      : sock_filter BPF_STMT(BPF_LDX | BPF_W | BPF_IMM, 0);
  const bool any_port = to == 0;
  const std::array code = {
      skip_ip,
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_IND, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, guest.port(), 0, 10),
      sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_IND, 2),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, to, 7, static_cast<__u8>(any_port ? 0 : 8)),
      // The headers' size, in X: the packet ends there.
      sock_filter BPF_STMT(BPF_LD | BPF_B | BPF_IND, 12),
      sock_filter BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xf0),
      sock_filter BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 2),
      sock_filter BPF_STMT(BPF_ALU | BPF_ADD | BPF_X, 0),
      sock_filter BPF_STMT(BPF_MISC | BPF_TAX, 0),
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_X, 0, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0xffff),
      sock_filter BPF_STMT(BPF_RET | BPF_K, 0),
  };
  return set_filter(raw, code);
}

bool bind_to_device(const Fd& socket, int device) {
  return device == 0 || set_option(socket, SOL_SOCKET, SO_BINDTOIFINDEX, device);
}

/// The address need not be the node's.
bool bind_to_source(const Fd& socket, const std::optional<IpAddress>& source) {
  if (!source) return true;
  const Endpoint address(*source, 0);
  const bool v4 = source->is_v4();
  return set_option(socket, v4 ? SOL_IP : SOL_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT, kOn) &&
         ::bind(socket.get(), address.data(), static_cast<socklen_t>(address.size())) == 0;
}

bool find_local(const Fd& socket, Endpoint& local) {
  auto size = static_cast<socklen_t>(local.capacity());
  if (::getsockname(socket.get(), local.data(), &size) != 0) return false;
  local.resize(size);
  return true;
}

int error_of(const Fd& tcp) {
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(tcp.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error;
}

/// Segments that its filter has dropped (Linux 4.12).
std::uint32_t dropped_by(const Fd& tcp) {
  std::array<std::uint32_t, SK_MEMINFO_VARS> info{};
  socklen_t size = sizeof info;
  ::getsockopt(tcp.get(), SOL_SOCKET, SO_MEMINFO, info.data(), &size);
  return info[SK_MEMINFO_DROPS];
}

std::uint32_t sum_of(const void* data, std::size_t size) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i + 1 < size; i += 2) {
    std::uint16_t word = 0;
    std::memcpy(&word, static_cast<const char*>(data) + i, sizeof word);
    sum += word;
  }
  return sum;
}

/// RFC 9293, 3.1. Of a header without data, over IPv4; for IPv6 the kernel does it (IPV6_CHECKSUM).
std::uint16_t checksum(const tcphdr& header, const IpAddress& from, const IpAddress& to) {
  const std::uint16_t pseudo[] = {htons(IPPROTO_TCP), htons(sizeof header)};
  const auto source = from.to_v4().to_bytes();
  const auto destination = to.to_v4().to_bytes();
  std::uint32_t sum = sum_of(&header, sizeof header) + sum_of(pseudo, sizeof pseudo) +
                      sum_of(source.data(), source.size()) + sum_of(destination.data(), destination.size());
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

/// Sets errno if it is refused.
Fd make_socket(const SynProbeTarget& target, int type, int protocol) {
  const int family = target.guest.address().is_v4() ? AF_INET : AF_INET6;
  const int flags = type | SOCK_NONBLOCK | SOCK_CLOEXEC;
  if (target.netns == nullptr) return Fd(::socket(family, flags, protocol));
  const int made = target.netns->make_socket(family, flags, protocol);
  if (made < 0) errno = -made;
  return made < 0 ? Fd() : Fd(made);
}

}  // namespace

int SynProbe::open(const SynProbeTarget& target, SynProbe& out) {
  SynProbe probe;
  probe.guest_ = on_link(target.guest, target.device);
  // Before anything can be answered.
  if (const int error = probe.listen_raw(target); error != 0 && error != -EPERM) return error;
  probe.tcp_ = make_socket(target, SOCK_STREAM, 0);
  if (!probe.tcp_ || !bind_to_device(probe.tcp_, target.device)) return -errno;
  const bool filtered = probe.raw_ ? drop_all(probe.tcp_) : drop_all_but_resets(probe.tcp_);
  if (!filtered && (errno != EPERM || !probe.raw_ || target.source)) return -errno;
  if (const PortRange& ports = target.source_ports; ports.first != 0) {
    set_option(probe.tcp_, SOL_IP, kLocalPortRange, local_port_range(ports));
  }
  // The port is chosen by connect(2): one that is free for this guest, not for the whole node.
  if (filtered && !set_option(probe.tcp_, SOL_IP, IP_BIND_ADDRESS_NO_PORT, kOn)) return -errno;
  if (!bind_to_source(probe.tcp_, target.source)) return -errno;
  const int sent = filtered ? probe.connect() : probe.send_syn();
  if (sent != 0) return sent;
  out = std::move(probe);
  return 0;
}

int SynProbe::connect() {
  if (::connect(tcp_.get(), guest_.data(), static_cast<socklen_t>(guest_.size())) != 0 &&
      errno != EINPROGRESS) {
    return -errno;
  }
  if (!find_local(tcp_, local_)) return -errno;
  return !raw_ || receive_from(raw_, guest_, local_.port()) ? 0 : -errno;
}

/// The TCP socket only holds the port; the kernel answers what comes for it with RST.
int SynProbe::send_syn() {
  Endpoint address;
  if (!find_local(raw_, address)) return -errno;
  address.port(0);
  if (::bind(tcp_.get(), address.data(), static_cast<socklen_t>(address.size())) != 0 ||
      !find_local(tcp_, local_) || !receive_from(raw_, guest_, local_.port()) ||
      !send(TH_SYN, kSynSequence)) {
    return -errno;
  }
  return 0;
}

/// When it is not allowed, the probe may work without.
int SynProbe::listen_raw(const SynProbeTarget& target) {
  const bool v4 = target.guest.address().is_v4();
  const Endpoint guest = on_link({target.guest.address(), 0}, target.device);  // a raw socket has no port
  raw_ = make_socket(target, SOCK_RAW, IPPROTO_TCP);
  if (raw_ && receive_from(raw_, target.guest, 0) && bind_to_device(raw_, target.device) &&
      bind_to_source(raw_, target.source) && (v4 || set_option(raw_, SOL_IPV6, IPV6_CHECKSUM, kChecksumAt)) &&
      ::connect(raw_.get(), guest.data(), static_cast<socklen_t>(guest.size())) == 0) {
    return 0;
  }
  const int error = errno;
  raw_.reset();
  return -error;
}

int SynProbe::answer() {
  if (!tcp_) return -EAGAIN;
  int answered = raw_ ? read_raw() : -EAGAIN;
  if (answered == -EAGAIN) {
    const int error = error_of(tcp_);
    if (error != 0) answered = -error;
  }
  if (answered == -EAGAIN && !raw_ && dropped_by(tcp_) != 0) answered = 0;
  // Not what is polled: that is closed with the probe.
  if (answered != -EAGAIN && raw_) tcp_.reset();
  return answered;
}

int SynProbe::read_raw() {
  for (int own = 0; own < kReadsMax; ++own) {
    std::array<char, 128> packet;
    const auto got = ::recv(raw_.get(), packet.data(), packet.size(), MSG_DONTWAIT);
    if (got < 0) return -EAGAIN;
    // Only an IPv4 socket's packets begin with the IP header.
    const std::size_t skip = guest_.address().is_v4() ? static_cast<std::size_t>(packet[0] & 0x0f) * 4 : 0;
    tcphdr tcp{};
    if (static_cast<std::size_t>(got) < skip + sizeof tcp) continue;
    std::memcpy(&tcp, packet.data() + skip, sizeof tcp);
    if (ntohs(tcp.dest) != local_.port()) {
      --own;  // it came before the port was known: no more will
      continue;
    }
    if (tcp.rst != 0) return -ECONNREFUSED;
    if (tcp.ack == 0) continue;
    if (tcp.syn != 0) {
      reset_sent_ = send(TH_RST, ntohl(tcp.ack_seq));
      return 0;
    }
    // The guest still has an earlier connection of this port, perhaps in TIME_WAIT, and answers no SYN until
    // that is reset. Then it is asked again at once; the kernel does so only after a second. When the RST is
    // lost, the kernel sends another for the guest's next segment.
    if (reset_sent_) continue;
    reset_sent_ = send(TH_RST, ntohl(tcp.ack_seq));
    if (reset_sent_) send(TH_SYN, kSynSequence);
  }
  return -EAGAIN;
}

bool SynProbe::send(std::uint8_t flags, std::uint32_t sequence) const {
  tcphdr header{};
  header.source = htons(local_.port());
  header.dest = htons(guest_.port());
  header.seq = htonl(sequence);
  header.doff = sizeof header / 4;
  header.th_flags = flags;
  if (guest_.address().is_v4()) header.check = checksum(header, local_.address(), guest_.address());
  return ::send(raw_.get(), &header, sizeof header, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof header;
}

}  // namespace portway
