// tc ingress program on a guest's tap (Ethernet), or on the bridge that it is a port of. It does two things
// to the packets that the guest sends.
//
// The source guard drops a packet whose source address belongs to another tap's guest. Nothing else stops
// such packets if rp_filter is off or loose, and nothing ever does for IPv6. A forged segment would find
// no socket on this tap, and the RST that the node answers with would go to the guest that owns the
// address, and end its connection. The source address in the IP header decides: fragments and extension
// headers have it in the same place (the one option that replaces it, Mobile IPv6's home address, needs an
// XFRM state on the node). Addresses that no guest of the node has may pass: a guest may route for others.
// Two taps whose guests have the same address may both use it.
//
// Steering. A connection to the guest may have a client's address as its source (IP_TRANSPARENT). The
// guest's answers then go to an address that is not the node's, and would be forwarded or dropped. The
// program asks the kernel whether the packet belongs to a socket, and marks it if so; a rule
// (return_path.cpp) delivers marked packets to the node's own stack.
//
// Only the relay's packets are steered:
//  - They come from the guest itself: the source address is the one registered for this tap, of its
//    family.
//  - The socket has exactly the packet's addresses and ports, and is in a state of the side that opened
//    the connection. A listener on the wildcard address "matches" every destination: a guest could reach
//    the node's services by any foreign address. Half-open entries of a listener (NEW_SYN_RECV, SYN_RECV)
//    are the node's services too. If another program of the node has a socket with exactly these
//    addresses, that is its own connection to this guest: it is delivered there with or without the mark.
//  - The socket is bound to this tap (SO_BINDTODEVICE), or to none: the lookup compares the interface that
//    the packet came in by, so a guest does not match another guest's connections.
//  - The stack looks the socket up again, and finds the same one or none that takes the packet. It looks
//    for a listener in two cases. For a SYN, it does so instead of using a TIME_WAIT
//    (tcp_timewait_state_process()): segments with SYN and without ACK are never steered, whatever is
//    found; no answer to the relay looks like that. (With ip_early_demux on, the kernel does not forward
//    them to the client either: ip_forward() drops packets for which a socket was found.) Or the socket
//    may be gone by then. A listener answers a segment without SYN, or with SYN and ACK, with a RST or
//    nothing (tcp_rcv_state_process(), TCP_LISTEN), so no connection is made, unless the segment
//    acknowledges a SYN cookie. The kernel makes a cookie for a SYN with the same addresses and ports, and
//    such a SYN has never reached the listener.
//  - The kernel's table `local` (preference 0) comes before our rule, so the mark opens no way to the
//    node's addresses that was not there without it.
//
// A guest's tap may be a port of a bridge. Then the program is on both: as the source guard on the port, and
// to steer on the bridge, by which the packets come in that a port sends to the node's stack. What other
// ports of the bridge send is not guarded.
//
// ICMP errors about a connection are steered too: a refusal by the guest's packet filter, or what a router
// behind the tap reports of the path's MTU. They are addressed to the client, because they quote a packet
// that came from its address, and would show the client an address that it does not know. The quoted
// header decides to which connection they belong. So anybody behind the tap may send them, but only about
// this tap's guest: the quoted packet went to the guest's address, from the address that the error is sent
// to, and belongs to a socket that is looked up as above. The stack looks the socket up by the quoted
// header too, and by the interface, and checks the quoted sequence number (tcp_v4_err(), tcp_v6_err()).
// Redirects would change the node's routes: they are dropped.
//
// Runs in the kernel for each packet from the guest. bpf_skc_lookup_tcp: Linux 5.2.
#include "network/steer.h"

#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// One bit of the packet mark means "belongs to a connection of this node's stack". The loader sets which; the
// other bits belong to other programs.
const volatile __u32 steer_mark;

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, kSteerGuestsMax);
  __type(key, struct SteerLink);
  __type(value, struct SteerGuest);
} guests SEC(".maps");

// The addresses of all guests.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 2 * kSteerGuestsMax);
  __type(key, struct SteerOwner);
  __type(value, __u8);
} owners SEC(".maps");

// The addresses of the guests behind each bridge.
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 2 * kSteerGuestsMax);
  __type(key, struct SteerMember);
  __type(value, __u8);
} members SEC(".maps");

// Connections of the guests that are not the relay's (struct RoutedSet says more). BPF_F_MMAPABLE: Linux 5.5.
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, kRoutedBuckets* kRoutedSets);
  __type(key, __u32);
  __type(value, struct RoutedSet);
} routed SEC(".maps");

// Has portway_inside, for the entry programs of network namespaces.
struct {
  __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u32);
} inside SEC(".maps");

// Packets that the source guard dropped.
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} forged SEC(".maps");

enum {
  kVlanIdMask = 0x0fff,
  kVlanTagSize = 4,
  kVlanTagsMax = 4,
  kTcpFin = 0x01,
  kTcpSyn = 0x02,
  kTcpRst = 0x04,
  kTcpAck = 0x10
};
enum { kMoreFragments = 0x2000, kFragmentOffset = 0x1fff };  // of an IPv4 header
enum { kIcmpHeaderSize = 8, kExtensionsMax = 4 };
// Types of ICMP errors (RFC 792): <linux/icmp.h> needs the C library's headers.
enum { kUnreachable = 3, kSourceQuench = 4, kRedirect = 5, kTimeExceeded = 11, kParameterProblem = 12 };

// Seconds that a connection is remembered after the guest's last segment: as long as conntrack does
// (nf_conntrack_tcp_timeout_established), and before it is known to be established and after the guest's FIN
// (nf_conntrack_tcp_timeout_syn_recv, _time_wait).
enum { kRoutedLong = 5 * 24 * 60 * 60, kRoutedShort = 120 };

enum Verdict { kNotOurs, kSteer, kDrop };

// States of a socket that has opened a connection, until it is gone.
enum {
  kActiveStates = 1 << BPF_TCP_SYN_SENT | 1 << BPF_TCP_ESTABLISHED | 1 << BPF_TCP_FIN_WAIT1 |
                  1 << BPF_TCP_FIN_WAIT2 | 1 << BPF_TCP_CLOSING | 1 << BPF_TCP_CLOSE_WAIT |
                  1 << BPF_TCP_LAST_ACK | 1 << BPF_TCP_TIME_WAIT
};

struct VlanTag {
  __be16 control;
  __be16 protocol;  // of what is behind it
};

struct TcpStart {
  __be16 ports[2];  // source, destination: in the order of struct bpf_sock_tuple
  __be32 sequence;
  __be32 acknowledgement;
  __u8 offset;
  __u8 flags;
};

// An IP packet.
struct Packet {
  __u32 version;  // 4 or 6; 0: none that this link's stack gets to see
  __u32 header;   // where the IP header begins
  union {
    struct iphdr v4;
    struct ipv6hdr v6;
  };
  struct BpfAddress source;
};

// What is too short for its header is dropped by the kernel.
static __always_inline void read_v4(struct __sk_buff* skb, struct Packet* packet) {
  if (bpf_skb_load_bytes(skb, packet->header, &packet->v4, sizeof packet->v4) != 0) return;
  packet->version = 4;
  packet->source.word[2] = bpf_htonl(0xffff);
  packet->source.word[3] = packet->v4.saddr;
}

static __always_inline void read_v6(struct __sk_buff* skb, struct Packet* packet) {
  if (bpf_skb_load_bytes(skb, packet->header, &packet->v6, sizeof packet->v6) != 0) return;
  packet->version = 6;
  __builtin_memcpy(&packet->source, &packet->v6.saddr, sizeof packet->source);
}

// False for a packet to drop: it has more VLAN tags than anybody means. A tag with the id 0 says a priority
// only, and the kernel takes off as many as there are; with another id the packet belongs to another link,
// the VLAN device on the tap.
static __always_inline bool read_packet(struct __sk_buff* skb, struct Packet* packet) {
  __be16 protocol = skb->protocol;
  packet->header = ETH_HLEN;
  if (skb->vlan_present && (skb->vlan_tci & kVlanIdMask) != 0) return true;
#pragma unroll
  for (int tags = 0; tags < kVlanTagsMax; ++tags) {
    if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD)) break;
    struct VlanTag tag;
    if (bpf_skb_load_bytes(skb, packet->header, &tag, sizeof tag) != 0) return true;
    if ((tag.control & bpf_htons(kVlanIdMask)) != 0) return true;
    packet->header += kVlanTagSize;
    protocol = tag.protocol;
  }
  if (protocol == bpf_htons(ETH_P_IP)) read_v4(skb, packet);
  if (protocol == bpf_htons(ETH_P_IPV6)) read_v6(skb, packet);
  return protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD);
}

static __always_inline bool equal(const struct BpfAddress* a, const struct BpfAddress* b) {
  return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] &&
         a->word[0] == b->word[0];
}

static __always_inline bool has_socket(struct __sk_buff* skb, struct bpf_sock_tuple* tuple, __u32 size) {
  struct bpf_sock* socket = bpf_skc_lookup_tcp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);
  if (!socket) return false;
  const bool steer = (kActiveStates >> (socket->state & 31) & 1) != 0;
  bpf_sk_release(socket);
  return steer;
}

// False also for a SYN.
static __always_inline bool read_tcp(struct __sk_buff* skb, __u32 header, struct TcpStart* tcp) {
  return bpf_skb_load_bytes(skb, header, tcp, sizeof *tcp) == 0 &&
         (tcp->flags & (kTcpSyn | kTcpAck)) != kTcpSyn;
}

// The guest's segment belongs to no connection of the node. Only an answer to a SYN takes the place of
// another connection that is still remembered; any segment takes a free place, so that connections are learnt
// that are older than this program. What may be a late segment on a connection that the relay has given up is
// remembered for a short time only: an answer to a SYN that nothing follows, and a burst of segments.
static __always_inline void note_routed(struct __sk_buff* skb, __u32 space, const struct BpfAddress* client,
                                        const struct TcpStart* tcp) {
  const struct RoutedKey key = routed_key(space, skb->ifindex, client, tcp->ports[1], tcp->ports[0]);
  const __u32 now = bpf_ktime_get_ns() / 1000000000;
  struct RoutedSet* set = bpf_map_lookup_elem(&routed, &key.index);
  if (!set) return;
  __u64* place = &set->entry[0];  // of this connection, else of the one that ends first
  bool known = false;
#pragma unroll
  for (int way = 0; way < kRoutedWays; ++way) {
    const __u64 entry = set->entry[way];
    if (known) continue;
    known = entry >> 32 == key.tag;
    if (known || routed_until(entry) < routed_until(*place)) place = &set->entry[way];
    asm volatile("" : "+r"(place));  // not base + index, see portway_steer()
  }
  const __u32 until = routed_until(*place);
  const __u32 before = (__u32)*place >> kRoutedStateShift;
  known = known && until > now;
  __u32 state = kRoutedLearnt;
  if (tcp->flags & kTcpRst) {
    if (known) *place = 0;
    return;
  }
  if (tcp->flags & kTcpSyn) {
    state = kRoutedAnswered;
  } else if (!known) {
    if (until > now || tcp->flags & kTcpFin) return;
  } else if (tcp->flags & kTcpFin || before == kRoutedClosing) {
    state = kRoutedClosing;
  } else {
    if (before == kRoutedLearnt && until - now + 2 > kRoutedShort) return;  // less than 2 s ago: one burst
    state = kRoutedOpen;
  }
  const __u32 end = now + (state == kRoutedOpen ? kRoutedLong : kRoutedShort);
  const __u64 entry = (__u64)key.tag << 32 | state << kRoutedStateShift | end;
  if (*place != entry) *place = entry;
}

static __always_inline bool answers_v4(struct __sk_buff* skb, __u32 space, const struct Packet* packet) {
  const struct iphdr* ip = &packet->v4;
  struct TcpStart tcp;
  struct bpf_sock_tuple tuple = {};
  if (ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_TCP) return false;
  // Only the first fragment has ports. A guest's TCP makes none: its segments fit the tap's MTU.
  if (ip->frag_off & bpf_htons(0x3fff)) return false;
  if (!read_tcp(skb, packet->header + ip->ihl * 4, &tcp)) return false;
  tuple.ipv4.saddr = ip->saddr;
  tuple.ipv4.daddr = ip->daddr;
  tuple.ipv4.sport = tcp.ports[0];
  tuple.ipv4.dport = tcp.ports[1];
  if (has_socket(skb, &tuple, sizeof tuple.ipv4)) return true;
  const struct BpfAddress client = {{0, 0, bpf_htonl(0xffff), ip->daddr}};
  note_routed(skb, space, &client, &tcp);
  return false;
}

static __always_inline bool answers_v6(struct __sk_buff* skb, __u32 space, const struct Packet* packet) {
  const struct ipv6hdr* ip = &packet->v6;
  struct TcpStart tcp;
  struct bpf_sock_tuple tuple = {};
  // TCP straight behind the fixed header: answers have no extension headers.
  if (ip->version != 6 || ip->nexthdr != IPPROTO_TCP) return false;
  if (!read_tcp(skb, packet->header + sizeof *ip, &tcp)) return false;
  __builtin_memcpy(tuple.ipv6.saddr, &ip->saddr, sizeof ip->saddr);
  __builtin_memcpy(tuple.ipv6.daddr, &ip->daddr, sizeof ip->daddr);
  tuple.ipv6.sport = tcp.ports[0];
  tuple.ipv6.dport = tcp.ports[1];
  if (has_socket(skb, &tuple, sizeof tuple.ipv6)) return true;
  struct BpfAddress client;
  __builtin_memcpy(&client, &ip->daddr, sizeof client);
  note_routed(skb, space, &client, &tcp);
  return false;
}

static __always_inline bool is_member(struct __sk_buff* skb, __u32 space, const struct BpfAddress* address) {
  const struct SteerMember member = {{space, skb->ifindex}, *address};
  return bpf_map_lookup_elem(&members, &member) != 0;
}

static __always_inline enum Verdict about_v4(struct __sk_buff* skb, __u32 space, const struct Packet* packet,
                                             const struct SteerGuest* guest) {
  const struct iphdr* ip = &packet->v4;
  __u32 at = packet->header + ip->ihl * 4;
  __u8 type = 0;
  struct iphdr quoted;
  struct bpf_sock_tuple tuple = {};
  if (ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_ICMP) return kNotOurs;
  if (ip->frag_off & bpf_htons(kMoreFragments | kFragmentOffset)) return kNotOurs;
  if (bpf_skb_load_bytes(skb, at, &type, sizeof type) != 0) return kNotOurs;
  if (type != kUnreachable && type != kSourceQuench && type != kRedirect && type != kTimeExceeded &&
      type != kParameterProblem) {
    return kNotOurs;
  }
  at += kIcmpHeaderSize;
  if (bpf_skb_load_bytes(skb, at, &quoted, sizeof quoted) != 0) return kNotOurs;
  if (quoted.version != 4 || quoted.ihl < 5 || quoted.protocol != IPPROTO_TCP) return kNotOurs;
  if (quoted.frag_off & bpf_htons(kFragmentOffset)) return kNotOurs;
  if (quoted.saddr != ip->daddr) return kNotOurs;
  if (guest->bridge) {
    const struct BpfAddress to = {{0, 0, bpf_htonl(0xffff), quoted.daddr}};
    if (!is_member(skb, space, &to)) return kNotOurs;
  } else if (quoted.daddr != guest->address[0].word[3] || guest->address[0].word[2] != bpf_htonl(0xffff)) {
    return kNotOurs;
  }
  __be16 ports[2];
  if (bpf_skb_load_bytes(skb, at + quoted.ihl * 4, ports, sizeof ports) != 0) return kNotOurs;
  tuple.ipv4.saddr = quoted.daddr;
  tuple.ipv4.daddr = quoted.saddr;
  tuple.ipv4.sport = ports[1];
  tuple.ipv4.dport = ports[0];
  if (!has_socket(skb, &tuple, sizeof tuple.ipv4)) return kNotOurs;
  return type == kRedirect ? kDrop : kSteer;
}

// The offset of a quoted packet's TCP header, behind extension headers that a router may have added. 0: there
// is none.
static __always_inline __u32 find_tcp(struct __sk_buff* skb, __u32 at, __u8 next) {
#pragma unroll
  for (int headers = 0; headers < kExtensionsMax; ++headers) {
    struct {
      __u8 next;
      __u8 length;  // in 8 bytes, without the first 8
      __be16 fragment;
    } extension;
    if (next == IPPROTO_TCP) return at;
    if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
        next != IPPROTO_FRAGMENT) {
      return 0;
    }
    if (bpf_skb_load_bytes(skb, at, &extension, sizeof extension) != 0) return 0;
    const bool fragment = next == IPPROTO_FRAGMENT;
    if (fragment && (extension.fragment & bpf_htons(0xfff8)) != 0) return 0;
    at += fragment ? 8 : (extension.length + 1) * 8;
    next = extension.next;
  }
  return next == IPPROTO_TCP ? at : 0;
}

// Redirects come from link-local addresses, and no router forwards them (RFC 4861, 8.1).
static __always_inline enum Verdict about_v6(struct __sk_buff* skb, __u32 space, const struct Packet* packet,
                                             const struct SteerGuest* guest) {
  const struct ipv6hdr* ip = &packet->v6;
  __u32 at = packet->header + sizeof *ip;
  __u8 type = 0;
  struct ipv6hdr quoted;
  struct bpf_sock_tuple tuple = {};
  if (ip->version != 6 || ip->nexthdr != IPPROTO_ICMPV6) return kNotOurs;
  if (bpf_skb_load_bytes(skb, at, &type, sizeof type) != 0) return kNotOurs;
  if (type < ICMPV6_DEST_UNREACH || type > ICMPV6_PARAMPROB) return kNotOurs;
  at += kIcmpHeaderSize;
  if (bpf_skb_load_bytes(skb, at, &quoted, sizeof quoted) != 0 || quoted.version != 6) return kNotOurs;
  __builtin_memcpy(tuple.ipv6.saddr, &quoted.daddr, sizeof quoted.daddr);
  __builtin_memcpy(tuple.ipv6.daddr, &quoted.saddr, sizeof quoted.saddr);
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    if (tuple.ipv6.daddr[word] != ip->daddr.in6_u.u6_addr32[word]) return kNotOurs;
  }
  struct BpfAddress to;
  __builtin_memcpy(&to, &quoted.daddr, sizeof to);
  if (guest->bridge ? !is_member(skb, space, &to) : !equal(&to, &guest->address[1])) return kNotOurs;
  at = find_tcp(skb, at + sizeof quoted, quoted.nexthdr);
  __be16 ports[2];
  if (at == 0 || bpf_skb_load_bytes(skb, at, ports, sizeof ports) != 0) return kNotOurs;
  tuple.ipv6.sport = ports[1];
  tuple.ipv6.dport = ports[0];
  return has_socket(skb, &tuple, sizeof tuple.ipv6) ? kSteer : kNotOurs;
}

// The guest's answer on a connection, or an error about one.
static __always_inline enum Verdict judge(struct __sk_buff* skb, __u32 space, const struct Packet* packet,
                                          const struct SteerGuest* guest, bool of_guest) {
  const bool v4 = packet->version == 4;
  if (of_guest && (v4 ? answers_v4(skb, space, packet) : answers_v6(skb, space, packet))) return kSteer;
  return v4 ? about_v4(skb, space, packet, guest) : about_v6(skb, space, packet, guest);
}

static __always_inline int drop(void) {
  const __u32 first = 0;
  __u64* count = bpf_map_lookup_elem(&forged, &first);
  if (count) __sync_fetch_and_add(count, 1);
  return TC_ACT_SHOT;
}

static __always_inline bool has_owner(__u32 space, const struct BpfAddress* address) {
  const struct SteerOwner owner = {*address, space};
  return bpf_map_lookup_elem(&owners, &owner) != 0;
}

static __always_inline int steer(struct __sk_buff* skb, __u32 space) {
  const struct SteerLink link = {space, skb->ifindex};
  const struct SteerGuest* guest = bpf_map_lookup_elem(&guests, &link);
  if (!guest) return TC_ACT_UNSPEC;
  struct Packet packet = {};
  if (!read_packet(skb, &packet)) return drop();
  // Each address on a path of its own: without CAP_PERFMON the verifier does not allow an offset that depends
  // on the path.
  const bool of_guest = guest->bridge         ? is_member(skb, space, &packet.source)
                        : packet.version == 6 ? equal(&packet.source, &guest->address[1])
                                              : equal(&packet.source, &guest->address[0]);
  if (packet.version != 0 && !guest->bridge && !of_guest && has_owner(space, &packet.source)) return drop();
  if (!guest->steered) return TC_ACT_UNSPEC;
  const enum Verdict verdict = packet.version == 0 ? kNotOurs : judge(skb, space, &packet, guest, of_guest);
  if (verdict == kDrop) return TC_ACT_SHOT;
  // The bit is ours alone: whoever else set it does not get a packet into the stack. One store for both,
  // behind a barrier: of two, clang makes one by way of a computed address, which the verifier does not allow
  // here.
  __u32 bit = verdict == kSteer ? steer_mark : 0;
  asm volatile("" : "+r"(bit));
  skb->mark = (skb->mark & ~steer_mark) | bit;
  return TC_ACT_UNSPEC;  // no verdict: other programs' filters still see it, and may drop it
}

// On taps in the node's own network namespace.
SEC("tc")
int portway_steer(struct __sk_buff* skb) {
  return steer(skb, 0);
}

// In all other namespaces. A program cannot ask where it runs: the tc programs of Linux 6.1 may not call
// bpf_get_netns_cookie(). So on each tap there is an entry program that knows the namespace's number, and
// calls this one.
SEC("tc")
int portway_inside(struct __sk_buff* skb) {
  return steer(skb, skb->cb[kSteerSpaceWord]);
}
