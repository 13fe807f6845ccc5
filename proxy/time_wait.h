// Ends a connection's TIME_WAIT (RFC 9293, 3.6.1) before its minute is over.
//
// If the client ends first, the node does so towards the guest, and keeps the connection's source port for 60
// s. From the node's own address there are some 28,000 ports towards one guest port: 470 connections a
// second. TIME_WAIT protects a later connection of the same addresses and ports against old segments, and
// answers a FIN that comes again because its acknowledgement was lost. Between the node and its guest no
// segment is old, and a lost acknowledgement leaves the guest with a connection that a RST ends, after
// everything was delivered.
//
// Needs CAP_NET_ADMIN and a kernel with INET_DIAG_DESTROY (sock_diag(7)); without them, nothing
// happens.
#pragma once

#include <cstdint>

#include "base/endpoint.h"
#include "base/fd.h"

struct inet_diag_msg;  // linux/inet_diag.h

namespace portway {

/// One thread. Nothing blocks.
class TimeWaitEnder {
 public:
  TimeWaitEnder();

  /// The socket from `local` to `remote` is closed. Nothing but a TIME_WAIT is ended: the ports may be
  /// another connection's by now. `device`: the interface index that it was bound to; 0: none.
  void end(const Endpoint& local, const Endpoint& remote, int device);

 private:
  struct Request;
  bool send(Request& request);
  bool receive(std::uint32_t sequence, inet_diag_msg& found);

  std::uint32_t sequence_ = 0;
  Fd socket_;  // NETLINK_SOCK_DIAG; none where the kernel does not do it, or not for us
};

}  // namespace portway
