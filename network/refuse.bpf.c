// Socket lookup program (BPF_PROG_TYPE_SK_LOOKUP) of the node's network namespace: refuses a client at one
// of the node's addresses and ports although a listener would accept it. The kernel then answers the
// client's SYN with RST, as if nothing listened.
//
// Runs when the kernel looks for a listener: for a SYN, and for a stray segment of no connection. Existing
// connections are not affected. Linux 5.9.
#include "network/refuse.h"

#include <linux/bpf.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { kAddressFamilyV4 = 2 };  // AF_INET; its header belongs to the C library

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, kRefusalsMax);
  __type(key, struct RefusalKey);
  __type(value, __u64);
} refusals SEC(".maps");

SEC("sk_lookup")
int portway_refuse(struct bpf_sk_lookup* packet) {
  if (packet->protocol != IPPROTO_TCP) return SK_PASS;
  struct RefusalKey key = {.local_port = packet->local_port};
  if (packet->family == kAddressFamilyV4) {
    key.client.word[2] = key.local.word[2] = bpf_htonl(0xffff);
    key.client.word[3] = packet->remote_ip4;
    key.local.word[3] = packet->local_ip4;
  } else {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      key.client.word[word] = packet->remote_ip6[word];
      key.local.word[word] = packet->local_ip6[word];
    }
  }
  __u64* last_asked = bpf_map_lookup_elem(&refusals, &key);
  if (!last_asked) return SK_PASS;
  *last_asked = bpf_ktime_get_ns();
  return SK_DROP;
}
