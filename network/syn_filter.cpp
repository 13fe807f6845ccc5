#include "network/syn_filter.h"

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <string_view>
#include <utility>

namespace portway {
namespace {

// In an Ethernet frame, without the tag that the kernel has taken off.
constexpr std::uint32_t kProtocolAt = 12;
constexpr std::uint32_t kIpAt = ETH_HLEN;
constexpr std::uint32_t kIp6PayloadAt = kIpAt + sizeof(ip6_hdr);
constexpr std::uint32_t kVlanIdMask = 0x0fff;
constexpr std::uint32_t kFlagsAt = 13;  // in the TCP header

/// Jumps go to names, which come later.
class Code {
 public:
  void add(int code, std::uint32_t k) { code_.push_back({static_cast<__u16>(code), 0, 0, k}); }
  /// To `yes` when the condition holds, else to `no`; empty: on to the next instruction.
  void jump(int condition, std::uint32_t k, std::string_view yes, std::string_view no = "") {
    jumps_.push_back({code_.size(), yes, no});
    add(BPF_JMP | condition | BPF_K, k);
  }
  void label(std::string_view name) { labels_.emplace_back(name, code_.size()); }

  std::vector<sock_filter> finish() {
    for (const Jump& jump : jumps_) {
      code_[jump.from].jt = distance(jump.from, jump.yes);
      code_[jump.from].jf = distance(jump.from, jump.no);
    }
    return std::move(code_);
  }

 private:
  struct Jump {
    std::size_t from;
    std::string_view yes;
    std::string_view no;
  };

  __u8 distance(std::size_t from, std::string_view name) const {
    if (name.empty()) return 0;
    const auto label = std::ranges::find(labels_, name, &std::pair<std::string_view, std::size_t>::first);
    assert(label != labels_.end() && label->second > from && label->second - from <= 256);
    return static_cast<__u8>(label->second - from - 1);
  }

  std::vector<sock_filter> code_;
  std::vector<Jump> jumps_;
  std::vector<std::pair<std::string_view, std::size_t>> labels_;
};

/// What is cut off in the middle of a header is passed on: loading beyond the end would be TC_ACT_OK, and
/// skip the filters of others.
void check_size(Code& code, std::uint32_t size) {
  code.add(BPF_LD | BPF_W | BPF_LEN, 0);
  code.jump(BPF_JGE, size, "", "pass");
}

}  // namespace

std::vector<sock_filter> make_syn_filter(std::span<const std::uint16_t> ports) {
  assert(ports.size() <= 128);
  Code code;
  code.add(BPF_LD | BPF_H | BPF_ABS, kProtocolAt);
  code.jump(BPF_JEQ, ETH_P_IP, "ipv4");
  code.jump(BPF_JEQ, ETH_P_IPV6, "ipv6");
  code.jump(BPF_JEQ, ETH_P_8021Q, "tag");
  code.jump(BPF_JEQ, ETH_P_8021AD, "tag", "pass");

  // A second tag. The kernel takes off all that only say a priority (id 0), and nobody means two of them.
  code.label("tag");
  check_size(code, kIpAt + sizeof(std::uint16_t));
  code.add(BPF_LD | BPF_H | BPF_ABS, kIpAt);
  code.jump(BPF_JSET, kVlanIdMask, "pass", "drop");

  // Rules find the ports behind extension headers, where no TCP of anybody's has its SYN.
  code.label("ipv6");
  check_size(code, kIp6PayloadAt + 1);
  code.add(BPF_LDX | BPF_W | BPF_IMM, sizeof(ip6_hdr));
  code.add(BPF_LD | BPF_B | BPF_ABS, kIpAt + offsetof(ip6_hdr, ip6_nxt));
  code.jump(BPF_JEQ, IPPROTO_TCP, "tcp");
  code.jump(BPF_JEQ, IPPROTO_HOPOPTS, "extension");
  code.jump(BPF_JEQ, IPPROTO_ROUTING, "extension");
  code.jump(BPF_JEQ, IPPROTO_DSTOPTS, "extension", "pass");
  code.label("extension");
  code.add(BPF_LD | BPF_B | BPF_ABS, kIp6PayloadAt);  // what comes next
  code.jump(BPF_JEQ, IPPROTO_TCP, "drop");
  code.jump(BPF_JEQ, IPPROTO_HOPOPTS, "drop");
  code.jump(BPF_JEQ, IPPROTO_ROUTING, "drop");
  code.jump(BPF_JEQ, IPPROTO_DSTOPTS, "drop", "pass");

  code.label("ipv4");
  check_size(code, kIpAt + sizeof(iphdr));
  code.add(BPF_LDX | BPF_B | BPF_MSH, kIpAt);  // the header's size
  code.add(BPF_LD | BPF_B | BPF_ABS, kIpAt + offsetof(iphdr, protocol));
  code.jump(BPF_JEQ, IPPROTO_TCP, "", "pass");
  code.add(BPF_LD | BPF_H | BPF_ABS, kIpAt + offsetof(iphdr, frag_off));
  code.jump(BPF_JSET, IP_MF | IP_OFFMASK, "pass");  // rules do not look into fragments

  code.label("tcp");
  code.add(BPF_LD | BPF_W | BPF_LEN, 0);
  code.add(BPF_ALU | BPF_SUB | BPF_K, kIpAt + sizeof(tcphdr));  // no less: the IP header has been there
  code.jump(BPF_JGE | BPF_X, 0, "", "pass");
  code.add(BPF_LD | BPF_B | BPF_IND, kIpAt + kFlagsAt);
  code.add(BPF_ALU | BPF_AND | BPF_K, TH_SYN | TH_ACK);
  code.jump(BPF_JEQ, TH_SYN, "", "pass");
  code.add(BPF_LD | BPF_H | BPF_IND, kIpAt);  // the source port
  for (const std::uint16_t port : ports) code.jump(BPF_JEQ, port, "drop");

  code.label("pass");
  code.add(BPF_RET | BPF_K, static_cast<std::uint32_t>(TC_ACT_UNSPEC));
  code.label("drop");
  code.add(BPF_RET | BPF_K, TC_ACT_SHOT);
  return code.finish();
}

}  // namespace portway
