// What the packet program (steer.bpf.c, which is C) and its loader (steer_program.cpp) agree on.
#pragma once

#include <linux/types.h>

// One bit of the packet mark means "belongs to a connection of this node's stack". The rest of the mark is
// other people's; this bit is free of what Kubernetes (0x4000, 0x8000), Cilium (0x0f00) and Tailscale
// (0xff0000) use.
enum { kSteerMark = 0x20000000 };

// Taps of a node: more than a node has virtual machines. One more is refused by the map (E2BIG).
enum { kSteerGuestsMax = 65536 };

// An IP address in network byte order; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). Key of the map `owners`,
// the addresses that any guest has.
struct SteerAddress {
  __u32 word[4];
};

// Value of the map `guests`, whose key is the tap's interface index.
struct SteerGuest {
  struct SteerAddress address;  // of the guest behind it
  __u32 steered;                // 0: the source guard only, and the mark is left alone
};
