// The way back of connections that reach a guest with the client's own address (IP_TRANSPARENT): the guest
// answers to an address that is not the node's, and the answer has to come to the node's stack all the same.
// What DNAT gets from conntrack, without netfilter.
//
// On each guest's tap a packet program marks the answers to the node's connections (steer.bpf.c); for the
// node, per address family, there is
//     5210: iif lo fwmark 0x20000000/0x20000000 lookup main
//     5211: fwmark 0x20000000/0x20000000 lookup 5210
//     local default dev lo table 5210
// The first is for the check of the source address: with src_valid_mark it is looked up with the packet's
// mark too, and would find all the world to be this node. Cost does not grow with the number of forwards.
// Nothing is changed for packets that belong to no connection of the node: the guest's own connections and
// routed traffic go their way.
//
// Everything it makes can be recognised (protocol 210, filter "portway_steer"), and what a predecessor left
// is removed at start. For the same reason two of them in one network namespace would end each other.
//
// Control thread; the network namespace is that of the thread that calls start().
#pragma once

#include <cstddef>
#include <memory>
#include <unordered_map>

#include "config/endpoint.h"
#include "config/error.h"
#include "network/netlink.h"
#include "network/steer_program.h"

namespace portway {

class ReturnPath {
 public:
  /// kResourceExhausted when the node cannot have it; the detail says why, and what would help (CAP_BPF and
  /// CAP_NET_ADMIN, a newer kernel). Then nothing was made, and connections need a source address of the
  /// node.
  static Result<std::unique_ptr<ReturnPath>> start();

  /// Removes everything.
  ~ReturnPath();
  ReturnPath(const ReturnPath&) = delete;
  ReturnPath& operator=(const ReturnPath&) = delete;

  /// From now on the guest's answers come back. `link` is the interface index of its tap, an Ethernet device;
  /// one guest a link, a second call replaces its address. What was made is read back; when it is not there,
  /// or could not be made, nothing of this call stays. Call it before the first connection, whose answers
  /// would be lost.
  Result<void> add(int link, const IpAddress& guest);

  /// The opposite. Fine when it was not added or the link is gone. Connections that are still open hang: end
  /// them first.
  void remove(int link);

 private:
  ReturnPath(std::unique_ptr<Netlink> netlink, std::unique_ptr<SteerProgram> program);

  Result<void> make(int link, const IpAddress& guest);
  Result<void> verify(int link, int family) const;
  std::size_t guests_of(int family) const;

  const std::unique_ptr<Netlink> netlink_;
  const std::unique_ptr<SteerProgram> program_;
  std::unordered_map<int, int> families_;  // by link: AF_INET or AF_INET6
};

}  // namespace portway
