// Connections that reach a guest by a route of the client's own, not through a forward. The relay must not
// open one from the same address and port to the same port of the guest: for the guest the two would be one,
// and the routed one would end. conntrack gives the second one another port; so does the relay
// (SourcePlan::kPortInUse).
//
// The packet program on the guest's tap records them as the guest's segments pass (steer.bpf.c), in a table
// that is mapped into memory and read without a system call. It has the connections that were opened since
// the program was attached, and older ones on which the guest has sent something within two minutes; of each
// guest the latest, up to 256.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include "base/endpoint.h"

struct RoutedSet;  // network/steer.h

namespace portway {

/// Any thread.
class RoutedConnections {
 public:
  /// A view of the program's table: kRoutedBuckets * kRoutedSets of them.
  explicit RoutedConnections(std::span<const RoutedSet> table) : table_(table) {}

  /// Whether the client has a connection to this port of the guest behind the device (an interface index).
  /// `now`: of CLOCK_MONOTONIC. `space`: where the device is (Way::space; 0: in the node's own network
  /// namespace). One answer in ten million may be a false yes.
  bool contain(int device, const Endpoint& client, std::uint16_t guest_port, std::chrono::nanoseconds now,
               std::uint32_t space = 0) const;

 private:
  std::span<const RoutedSet> table_;
};

}  // namespace portway
