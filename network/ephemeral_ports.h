// The ports that the kernel gives to outgoing connections by itself, and whether they get in the way of a
// range of host ports.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/endpoint.h"

namespace portway {

/// The files in which Linux lists the ports it assigns to outgoing connections (ip-sysctl.rst).
struct EphemeralPortFiles {
  std::string range = "/proc/sys/net/ipv4/ip_local_port_range";
  std::string reserved = "/proc/sys/net/ipv4/ip_local_reserved_ports";
};

/// The ports that the kernel assigns, in the calling thread's network namespace, ascending; empty when the
/// files cannot be read.
std::vector<PortRange> ephemeral_ports(const EphemeralPortFiles& files = {});

/// How many ports a remedy leaves at least to the node's own outgoing connections (to guests included, where
/// they do not keep their clients' ports). Linux begins with 28,232; one destination takes a port for a
/// minute.
inline constexpr std::uint32_t kEphemeralPortsMin = 8192;

struct EphemeralOverlap {
  std::string problem;  // a sentence
  std::string remedy;   // with values that fit: a sysctl, a ports.range, or both
};

/// The overlap, if the kernel may give ports of `range` to outgoing connections; nothing if it does not, or
/// if the files cannot be read.
std::optional<EphemeralOverlap> ephemeral_overlap(const PortRange& range,
                                                  const EphemeralPortFiles& files = {});

}  // namespace portway
