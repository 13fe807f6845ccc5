// What the socket look-up program (refuse.bpf.c, which is C) and its loader (client_refusals.cpp) agree on.
#pragma once

#include "network/bpf_address.h"

// A client is refused only while others are served: a guest's own filter. One more is refused by the map
// (E2BIG).
enum { kRefusalsMax = 4096 };

// Key of the map `refusals`, whose value is when the client was last refused: nanoseconds of CLOCK_MONOTONIC,
// 0 for not yet.
struct RefusalKey {
  struct BpfAddress client;
  struct BpfAddress local;
  __u32 local_port;
};
