// IP_LOCAL_PORT_RANGE (ip(7), Linux 6.3): connect(2) looks for a free source port among these only. At level
// SOL_IP, for IPv6 sockets too.
#pragma once

#include <cstdint>

#include "base/endpoint.h"

namespace portway {

inline constexpr int kLocalPortRange = 51;  // not in Debian 12's linux/in.h

/// The option's value.
constexpr std::uint32_t local_port_range(const PortRange& ports) {
  return std::uint32_t{ports.first} | std::uint32_t{ports.last} << 16;
}

}  // namespace portway
