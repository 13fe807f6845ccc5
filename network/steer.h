// What the packet program (steer.bpf.c, which is C) and its loader (steer_program.cpp) agree on.
#pragma once

#include "network/bpf_address.h"

// Taps of a node: more than a node has virtual machines. One more is refused by the map (E2BIG).
enum { kSteerGuestsMax = 65536 };

// The word of skb->cb in which a namespace's entry program (steer_program.cpp) leaves the namespace's number.
enum { kSteerSpaceWord = 4 };

// Connections of clients that have a route of their own to a guest: the program notes them, and the relay,
// which would give such a client's connection the same addresses and ports, looks there before. A guest has a
// bucket to itself (with more than kRoutedBuckets taps some share one), so that no guest can crowd out
// another's.
enum { kRoutedBuckets = 1024, kRoutedSets = 64, kRoutedWays = 4 };

// Value of the array `routed`, which the relay's threads map into their memory. An entry is the connection's
// tag << 32 | its state << kRoutedStateShift | the second of CLOCK_MONOTONIC until which it counts.
struct RoutedSet {
  __u64 entry[kRoutedWays];
};

enum { kRoutedStateShift = 30 };
enum RoutedState {
  kRoutedAnswered,  // the guest has answered the SYN
  kRoutedLearnt,    // it has sent a segment on an older one
  kRoutedOpen,      // it has sent more
  kRoutedClosing    // it has sent FIN
};

#define STEER_INLINE static inline __attribute__((always_inline))

STEER_INLINE __u32 routed_until(__u64 entry) {
  return (__u32)entry & ((1U << kRoutedStateShift) - 1);
}

// One connection's place and name in the table. The ports are in network byte order. In many network
// namespaces the link has the same index: the odd factor gives 1024 of them a bucket each.
struct RoutedKey {
  __u32 index;
  __u32 tag;
};

// MurmurHash3's finalizer: every bit of the word reaches every bit of the hash.
STEER_INLINE __u32 routed_mix(__u32 hash, __u32 word) {
  hash ^= word;
  hash = (hash ^ hash >> 16) * 0x85ebca6b;
  hash = (hash ^ hash >> 13) * 0xc2b2ae35;
  return hash ^ hash >> 16;
}

STEER_INLINE struct RoutedKey routed_key(__u32 space, __u32 link, const struct BpfAddress* client,
                                         __be16 client_port, __be16 guest_port) {
  __u32 hash = routed_mix(routed_mix(link, space), client->word[0]);
  hash = routed_mix(hash, client->word[1]);
  hash = routed_mix(hash, client->word[2]);
  hash = routed_mix(hash, client->word[3]);
  hash = routed_mix(hash, (__u32)client_port << 16 | guest_port);
  const __u32 bucket = (link + space * 61) % kRoutedBuckets;
  struct RoutedKey key = {bucket * kRoutedSets + hash % kRoutedSets, hash};
  return key;
}

// Key of the map `guests`: a tap, or a bridge. Interface indexes are each network namespace's own, and so are
// guests' addresses. A space is the number that the daemon has given to a namespace; 0 is the node's own.
struct SteerLink {
  __u32 space;
  __u32 link;  // interface index
};

// Key of the map `owners`.
struct SteerOwner {
  struct BpfAddress address;
  __u32 space;
};

// Value of the map `guests`.
struct SteerGuest {
  struct BpfAddress address[2];  // of the guest behind it: IPv4, IPv6; all zero where it has none
  __u32 steered;                 // 0: the source guard only, and the mark is left alone
  __u32 bridge;                  // 1: steering only, for the guests behind its ports: `members` has them
};

// Key of the map `members`: a guest behind a bridge.
struct SteerMember {
  struct SteerLink bridge;
  struct BpfAddress address;
};
