// A classic packet filter (linux/filter.h) for a guest's tap: what steering by rules lacks, since a rule
// cannot look at TCP's flags. It needs no CAP_BPF. Pure.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <span>
#include <vector>

namespace portway {

/// Drops the TCP segments with SYN and without ACK that a guest sends from one of these ports: they open
/// connections, and so are no answers. A rule would deliver them to the node, where a service on all
/// addresses would answer them. At most 128 ports. The verdicts are those of tc(8): direct action.
std::vector<sock_filter> make_syn_filter(std::span<const std::uint16_t> ports);

}  // namespace portway
