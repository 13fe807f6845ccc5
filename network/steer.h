// What the packet program (steer.bpf.c, which is C) and its loader (steer_program.cpp) agree on.
#pragma once

#include "network/bpf_address.h"

// One bit of the packet mark means "belongs to a connection of this node's stack". The rest of the mark is
// other people's; this bit is free of what Kubernetes (0x4000, 0x8000), Cilium (0x0f00) and Tailscale
// (0xff0000) use.
enum { kSteerMark = 0x20000000 };

// Taps of a node: more than a node has virtual machines. One more is refused by the map (E2BIG).
enum { kSteerGuestsMax = 65536 };

// Value of the map `guests`, whose key is the tap's interface index.
struct SteerGuest {
  struct BpfAddress address[2];  // of the guest behind it: IPv4, IPv6; all zero where it has none
  __u32 steered;                 // 0: the source guard only, and the mark is left alone
};
