// tc ingress program on a guest's tap (Ethernet): marks the packets that answer one of the node's own
// connections.
//
// A connection to the guest may carry a client's address as its source (IP_TRANSPARENT). The guest's answers
// then go to an address that is not the node's, and would be forwarded or dropped. This program asks the
// kernel whether the packet belongs to a socket, and marks it if so; a rule (return_path.cpp) delivers what
// is marked to the node's own stack.
//
// A marked packet can reach that one socket and nothing else:
//  - The socket exists, is no listener, and has exactly the packet's addresses and ports. A listener does not
//  count, since
//    one on 0.0.0.0 "matches" every destination: a guest could reach the node's services by any foreign
//    address.
//  - It is bound to this tap (SO_BINDTODEVICE), or to none: the lookup compares the interface the packet came
//  in by, so
//    a guest does not match another guest's connections.
//  - The source address is the guest's own, also where rp_filter is off.
// The kernel's table `local` (preference 0) comes before our rule, so the mark opens no way to the node's
// addresses that was not there without it.
//
// Runs in the kernel for each packet from the guest. bpf_skc_lookup_tcp: Linux 5.2.
#include "network/steer.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, kSteerGuestsMax);
  __type(key, __u32);
  __type(value, struct SteerGuest);
} guests SEC(".maps");

static __always_inline bool has_socket(struct __sk_buff* skb, struct bpf_sock_tuple* tuple, __u32 size) {
  struct bpf_sock* socket = bpf_skc_lookup_tcp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);
  if (!socket) return false;
  // Everything but a listener: also one that is still connecting, and TIME_WAIT, which answers late packets.
  const bool steer = socket->state != BPF_TCP_LISTEN;
  bpf_sk_release(socket);
  return steer;
}

static __always_inline bool answers_v4(struct __sk_buff* skb, const struct SteerGuest* guest) {
  struct iphdr ip;
  struct bpf_sock_tuple tuple = {};
  if (guest->version != 4 || bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip) != 0) return false;
  if (ip.version != 4 || ip.ihl < 5 || ip.protocol != IPPROTO_TCP || ip.saddr != guest->address[0])
    return false;
  // Only the first fragment has ports. A guest's TCP makes none: its segments fit the tap's MTU.
  if (ip.frag_off & bpf_htons(0x3fff)) return false;
  tuple.ipv4.saddr = ip.saddr;
  tuple.ipv4.daddr = ip.daddr;
  // Source and destination port, in the order that the tuple has them in.
  if (bpf_skb_load_bytes(skb, ETH_HLEN + ip.ihl * 4, &tuple.ipv4.sport, 4) != 0) return false;
  return has_socket(skb, &tuple, sizeof tuple.ipv4);
}

static __always_inline bool answers_v6(struct __sk_buff* skb, const struct SteerGuest* guest) {
  struct ipv6hdr ip;
  struct bpf_sock_tuple tuple = {};
  if (guest->version != 6 || bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip) != 0) return false;
  // TCP straight behind the fixed header: answers have no extension headers.
  if (ip.version != 6 || ip.nexthdr != IPPROTO_TCP) return false;
  __builtin_memcpy(tuple.ipv6.saddr, &ip.saddr, sizeof ip.saddr);
  __builtin_memcpy(tuple.ipv6.daddr, &ip.daddr, sizeof ip.daddr);
  for (int word = 0; word < 4; ++word) {
    if (tuple.ipv6.saddr[word] != guest->address[word]) return false;
  }
  if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof ip, &tuple.ipv6.sport, 4) != 0) return false;
  return has_socket(skb, &tuple, sizeof tuple.ipv6);
}

static __always_inline bool answers(struct __sk_buff* skb) {
  const __u32 link = skb->ifindex;
  const struct SteerGuest* guest = bpf_map_lookup_elem(&guests, &link);
  if (!guest || skb->vlan_present) return false;  // a VLAN on the tap is another link
  if (skb->protocol == bpf_htons(ETH_P_IP)) return answers_v4(skb, guest);
  if (skb->protocol == bpf_htons(ETH_P_IPV6)) return answers_v6(skb, guest);
  return false;
}

SEC("tc")
int portway_steer(struct __sk_buff* skb) {
  // The bit is ours alone: whoever else set it does not get a packet into the stack. One store for both: of
  // two, clang makes one by way of a computed address, which the verifier does not allow here.
  const __u32 others = skb->mark & ~kSteerMark;
  skb->mark = others | (answers(skb) ? kSteerMark : 0);
  return TC_ACT_UNSPEC;  // no verdict: other people's filters go on, and may still drop it
}
