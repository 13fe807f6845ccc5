// The packet program of steer.bpf.c in the kernel, and its maps of guests. It is taken out of the kernel when
// the object and the last filter that uses it are gone. Control thread, in one network namespace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"
#include "network/bpf_object.h"
#include "network/routed_connections.h"

namespace portway {

class SteerProgram {
 public:
  /// kResourceExhausted when the kernel refuses; the detail says why and what would help. Needs CAP_BPF and
  /// CAP_NET_ADMIN, and Linux 5.5. `mark`: the bit of the packet mark that it sets.
  static Result<std::unique_ptr<SteerProgram>> load(std::uint32_t mark);
  /// For attaching; owned by this object.
  int fd() const { return program_; }
  /// As the kernel's listings name it.
  std::uint32_t id() const { return id_; }

  /// The guest behind this link has these addresses, at most one of each family: on the other links with a
  /// guest, packets from them are dropped. `steered`: the answers that come in by this link and from these
  /// addresses may be steered. Replaces the link's guest; on an error nothing has changed.
  Result<void> set_guest(int link, const std::vector<IpAddress>& addresses, bool steered);
  void remove_guest(int link);

  /// Attaches it at the link's ingress by tcx, before all other programs there. They still see the
  /// packets, and nobody but this object can detach it; it also ends with the process. False where that
  /// cannot be: the kernel has no tcx (before Linux 6.6), the link has as many programs as the kernel takes,
  /// or there is no such link.
  bool attach(int link);
  /// By attach(), to the link that is there now.
  bool is_attached(int link) const;
  void detach(int link) { attached_.erase(link); }

  /// What goes to the guests by routes of their clients' own.
  const RoutedConnections& routed() const { return routed_; }

  /// Packets that were dropped for their source address so far.
  std::uint64_t forged_packets() const;

 private:
  struct Unmap {
    void operator()(const RoutedSet* table) const;
  };
  using RoutedTable = std::unique_ptr<const RoutedSet[], Unmap>;

  SteerProgram(std::unique_ptr<BpfObject> object, std::uint32_t id, RoutedTable routed);
  Result<void> own(const std::vector<IpAddress>& addresses);
  void disown(const std::vector<IpAddress>& addresses);
  Result<void> own(const IpAddress& address);
  void disown(const IpAddress& address);

  const std::unique_ptr<BpfObject> object_;  // owns the descriptors
  const std::uint32_t id_;
  const int program_;
  const int guests_;
  const int owners_;
  const int forged_;
  const RoutedTable routed_table_;
  const RoutedConnections routed_;
  std::map<int, Fd> attached_;                       // the tcx links, by link
  std::map<int, std::vector<IpAddress>> addresses_;  // by link, as in the map `guests`
  std::map<IpAddress, std::size_t> links_;  // how many links have an address; `owners` has those with one
};

}  // namespace portway
