// What the packet program (steer.bpf.c, which is C) and its loader (steer_program.cpp) agree on.
#pragma once

#include "network/bpf_address.h"

// Taps of a node: more than a node has virtual machines. One more is refused by the map (E2BIG).
enum { kSteerGuestsMax = 65536 };

// Value of the map `guests`, whose key is the tap's interface index.
struct SteerGuest {
  struct BpfAddress address[2];  // of the guest behind it: IPv4, IPv6; all zero where it has none
  __u32 steered;                 // 0: the source guard only, and the mark is left alone
};
