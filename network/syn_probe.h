// Asks whether a service of a guest listens, by half a handshake: a SYN, and a RST for its answer. The
// service never gets a connection, so a service that accepts only once is not used up.
//
// An ordinary TCP socket sends the SYN; its filter (SO_ATTACH_FILTER) keeps the answer from it. A raw
// socket reads the answer and sends the RST, so the guest's half-open connection is gone at once. With
// fewer privileges:
//  - No CAP_NET_RAW: the TCP socket's count of dropped segments (SO_MEMINFO) shows that there was an
//    answer. The kernel sends the RST when the guest repeats it, a second later.
//  - No filter, which newer kernels (seen in 6.18) allow on a TCP socket only with CAP_NET_ADMIN: the raw
//    socket sends the SYN, once, and the kernel, which has no socket for the answer, sends the RST. Only
//    from the node's address: a return path leads to sockets.
//  - Neither: there is no such probe (-EPERM).
//
// The guest's answer is believed: a false one is false about the guest's own port only. No call blocks or
// allocates. One thread at a time. Linux 5.1
// (SO_BINDTOIFINDEX).
#pragma once

#include <cstdint>
#include <optional>

#include "base/endpoint.h"
#include "base/fd.h"
#include "network/namespace.h"

namespace portway {

struct SynProbeTarget {
  Endpoint guest;
  int device = 0;  // interface index of the guest's tap; 0: not bound to one
  /// A client's address to probe from: it needs a return path, and CAP_NET_ADMIN or CAP_NET_RAW. None: the
  /// node's. Of the same family as the guest's.
  std::optional<IpAddress> source = std::nullopt;
  /// The kernel looks for a free source port among these only (-EADDRNOTAVAIL when there is none), if it is
  /// Linux 6.3 or later; {0, 0}: among all, which takes it long if few are left.
  PortRange source_ports = {};
  const NetworkNamespace* netns = nullptr;  // where the guest is; null: where the calling thread is
};

/// An address that stands for any client's: nobody has it, it is for documentation (RFC 5737, RFC 3849).
inline IpAddress any_client(bool v6) {
  return boost::asio::ip::make_address(v6 ? "2001:db8::1" : "192.0.2.1");
}

/// One question. Destroying it ends it: nothing more is sent.
class SynProbe {
 public:
  SynProbe() = default;  // nothing is asked

  /// Sends the SYN. 0, or a negative errno of socket(2), setsockopt(2), bind(2) or connect(2), and `out` is
  /// not changed: -EPERM (above, or the namespace cannot be entered), -ENODEV, -ENETUNREACH, -EHOSTUNREACH,
  /// -EMFILE, and -ECONNREFUSED when the answer was there at once.
  static int open(const SynProbeTarget& target, SynProbe& out);

  /// To be polled for POLLIN and POLLERR, until answer() has said anything but -EAGAIN.
  int fd() const { return raw_ ? raw_.get() : tcp_.get(); }

  /// 0: a service answered (and was sent RST). -ECONNREFUSED: the guest refused. Another negative errno, as
  /// connect(2) says it: nobody was reached. -EAGAIN: no answer yet. An error that no answer of the guest's
  /// caused (-EHOSTUNREACH) may be reported by no event: ask once more when the time is over. The kernel does
  /// not tell it of an IPv6 guest, nor to a client's address.
  int answer();

  /// No event reports that a service answered: ask again after a few milliseconds.
  bool needs_asking() const { return !raw_; }

 private:
  int listen_raw(const SynProbeTarget& target);
  int connect();
  int send_syn();
  int read_raw();
  bool send(std::uint8_t flags, std::uint32_t sequence) const;

  Fd tcp_;
  Fd raw_;  // none without CAP_NET_RAW
  Endpoint local_;
  Endpoint guest_;
  bool reset_sent_ = false;
};

}  // namespace portway
