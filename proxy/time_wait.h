// Ends a connection's TIME_WAIT (RFC 9293, 3.6.1) before its minute is over.
//
// If the client ends first, the node closes first towards the guest, so its socket keeps the source port
// for 60 s. From the node's own address there are about 28,000 ports towards one guest port: 470
// connections a second. TIME_WAIT protects a later connection of the same addresses and ports against old
// segments, and answers a FIN that comes again because its acknowledgement was lost. Between the node and
// its guest there are no old segments, and after a lost acknowledgement a RST ends the guest's connection,
// when everything has been delivered.
//
// Needs CAP_NET_ADMIN and a kernel with INET_DIAG_DESTROY (sock_diag(7)); without them, nothing
// happens.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/endpoint.h"
#include "base/fd.h"
#include "network/namespace.h"

struct inet_diag_msg;  // linux/inet_diag.h

namespace portway {

struct TcpDiagRequest;  // network/tcp_diag.h

/// One thread. Nothing blocks.
class TimeWaitEnder {
 public:
  TimeWaitEnder();

  /// The socket from `local` to `remote` is closed. Ends only a TIME_WAIT: another connection may have the
  /// ports already. `device`: the interface index that it was bound to; 0: none. `netns`: where it was
  /// made; null: in the thread's namespace. In other namespaces kAtOnce are ended together, so that up to
  /// kAtOnce - 1 of each namespace stay for their minute.
  void end(const Endpoint& local, const Endpoint& remote, int device,
           const NetworkNamespace::Ptr& netns = {});

  static constexpr std::size_t kAtOnce = 16;

 private:
  struct Closed {
    Endpoint local;
    Endpoint remote;
    int device;
  };

  void end(const Closed& closed, const Fd& socket);
  bool send(TcpDiagRequest& request, const Fd& socket);
  bool receive(std::uint32_t sequence, const Fd& socket, inet_diag_msg& found);

  std::uint32_t sequence_ = 0;
  bool permitted_ = true;  // as far as the kernel has said
  const Fd socket_;        // NETLINK_SOCK_DIAG, in the thread's namespace
  // A socket would keep its namespace alive, and costs 7 us to make there. So it is made for kAtOnce.
  std::map<std::weak_ptr<const NetworkNamespace>, std::vector<Closed>, std::owner_less<>> elsewhere_;
};

}  // namespace portway
