// The packet program of steer.bpf.c in the kernel, and its maps of guests, for the taps of all network
// namespaces. It is taken out of the kernel when the object and the last filter that uses it are gone.
//
// Interface indexes and guests' addresses are each namespace's own, and a program cannot ask in which one it
// runs. So each tap in another namespace than the node's gets an entry program of a few instructions, which
// knows the namespace's number (its space) and calls the common one. It takes 0.1 ms to load, and 7 KB of
// kernel memory. It calls nothing any more once the process has ended, even if a filter still holds it.
//
// Control thread. attach() works on the links of the network namespace that the thread is in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"
#include "network/bpf_object.h"
#include "network/routed_connections.h"

namespace portway {

/// A guest's tap.
struct GuestLink {
  std::uint32_t space = 0;  // our number of its network namespace; 0: the node's own
  int index = 0;

  friend bool operator<(const GuestLink& a, const GuestLink& b) {
    return std::pair(a.space, a.index) < std::pair(b.space, b.index);
  }
};

class SteerProgram {
 public:
  /// kResourceExhausted when the kernel refuses; the detail says why and what would help. Needs CAP_BPF and
  /// CAP_NET_ADMIN, and Linux 5.5. `mark`: the bit of the packet mark that it sets.
  static Result<std::unique_ptr<SteerProgram>> load(std::uint32_t mark);

  /// The guest behind this link has these addresses, at most one of each family: on the other links of its
  /// space with a guest, packets from them are dropped. `steered`: the answers that come in by this link and
  /// from these addresses may be steered. Replaces the link's guest; on an error nothing has changed.
  /// `bridge`: the index of the one that the link is a port of, by which its answers come in; 0: none.
  Result<void> set_guest(const GuestLink& link, const std::vector<IpAddress>& addresses, bool steered,
                         int bridge = 0);
  void remove_guest(const GuestLink& link);

  /// What is to be attached to a link.
  struct Attachable {
    Fd fd;
    std::uint32_t id;  // as the kernel's listings name it
  };
  Result<Attachable> make_attachable(const GuestLink& link) const;

  /// Attaches it at the link's ingress by tcx, before all other programs there. They still see the
  /// packets, and nobody but this object can detach it; it also ends with the process. False where that
  /// cannot be: the kernel has no tcx (before Linux 6.6), the link has as many programs as the kernel takes,
  /// or there is no such link. What this keeps open keeps neither the link nor its namespace alive.
  bool attach(const GuestLink& link, const Attachable& program);
  /// By attach(), to the link that is there now.
  bool is_attached(const GuestLink& link) const;
  void detach(const GuestLink& link) { attached_.erase(link); }

  /// What goes to the guests by routes of their clients' own.
  const RoutedConnections& routed() const { return routed_; }

  /// Packets that were dropped for their source address so far.
  std::uint64_t forged_packets() const;

 private:
  struct Unmap {
    void operator()(const RoutedSet* table) const;
  };
  struct Guest {
    std::vector<IpAddress> addresses;
    int bridge = 0;
  };
  using RoutedTable = std::unique_ptr<const RoutedSet[], Unmap>;

  SteerProgram(std::unique_ptr<BpfObject> object, RoutedTable routed);
  Result<Fd> make_entry(std::uint32_t space) const;
  Result<void> join(const GuestLink& bridge, const std::vector<IpAddress>& addresses);
  void leave(const GuestLink& bridge, const std::vector<IpAddress>& addresses);
  Result<void> own(std::uint32_t space, const std::vector<IpAddress>& addresses);
  void disown(std::uint32_t space, const std::vector<IpAddress>& addresses);
  Result<void> own(std::uint32_t space, const IpAddress& address);
  void disown(std::uint32_t space, const IpAddress& address);

  const std::unique_ptr<BpfObject> object_;  // owns the descriptors
  const int program_;
  const int inside_;
  const int guests_;
  const int owners_;
  const int members_;
  const int forged_;
  const RoutedTable routed_table_;
  const RoutedConnections routed_;
  std::map<GuestLink, Fd> attached_;                       // the tcx links
  std::map<GuestLink, Guest> known_;                       // as in the map `guests`, without the bridges
  std::multiset<std::pair<GuestLink, IpAddress>> joined_;  // as in the map `members`
  // How many links of a space have an address; `owners` has those with one.
  std::map<std::pair<std::uint32_t, IpAddress>, std::size_t> links_;
};

}  // namespace portway
