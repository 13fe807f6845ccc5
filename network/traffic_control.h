// Filters at a link's ingress (tc(8), tc-bpf(8)): the hook `clsact` and our one filter in it. Other
// programs' filters are neither changed nor deleted.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "network/netlink.h"

namespace portway {

/// Our filter's name in listings, by which it is known. A classic one has none, and is known by its handle.
inline constexpr std::string_view kFilterName = "portway_steer";

/// A filter of ours on a link. It remembers in the kernel, in its handle, whether we made the hook too: so
/// that a successor knows whose it is.
struct OurFilter {
  std::uint32_t program = 0;  // the BPF program's id; 0: a classic one
  bool made_hook = false;
  std::vector<sock_filter> code = {};  // of a classic one
};

/// The links that have a clsact hook.
Result<std::vector<int>> links_with_hook(Netlink& netlink);

/// Our filters at the link's ingress: normally one; none if the link or its hook is gone.
Result<std::vector<OurFilter>> our_filters(Netlink& netlink, int link);

/// Attaches the program, making the hook when there is none. It comes before other programs' filters: a
/// verdict of theirs would end the walk before it. kResourceExhausted also when another kind of filter has
/// the first place.
Result<void> add_filter(Netlink& netlink, int link, int program_fd);

/// The same with a classic program (linux/filter.h), which needs no CAP_BPF, in place of the one that is
/// there.
Result<void> set_classic_filter(Netlink& netlink, int link, std::span<const sock_filter> code);

/// Deletes ours, and the hook when we made it and nothing else is in it. Fine when they, or the link, are
/// gone.
Result<void> delete_filter(Netlink& netlink, int link, const OurFilter& filter);

}  // namespace portway
