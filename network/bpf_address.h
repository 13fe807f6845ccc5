// An IP address as the BPF programs and their loaders write it. C.
#pragma once

#include <linux/types.h>

// In network byte order; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2).
struct BpfAddress {
  __u32 word[4];
};
