// The filter on frames, in a datagram socket: a passed frame arrives whole, and a dropped one is cut to
// TC_ACT_SHOT bytes. A frame that does not arrive would end the classification (TC_ACT_OK).
#include "network/syn_filter.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "base/fd.h"

namespace portway {
namespace {

constexpr std::uint16_t kPort = 3000;

class SynFilter : public testing::Test {
 protected:
  void SetUp() override {
    std::array<int, 2> ends;
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()), 0);
    in_.reset(ends[0]);
    out_.reset(ends[1]);
    constexpr std::array<std::uint16_t, 2> kPorts = {22, kPort};
    std::vector<sock_filter> code = make_syn_filter(kPorts);
    const sock_fprog program{.len = static_cast<unsigned short>(code.size()), .filter = code.data()};
    ASSERT_EQ(::setsockopt(out_.get(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
  }

  std::string verdict(std::string_view frame) {
    ::send(in_.get(), frame.data(), frame.size(), 0);
    std::array<char, 256> buffer;
    const auto got = ::recv(out_.get(), buffer.data(), buffer.size(), 0);
    if (got < 0) return "no verdict";
    return static_cast<std::size_t>(got) == frame.size() ? "pass" : "drop";
  }

  static std::string ethernet(std::uint16_t protocol) {
    return std::string(12, '\0') + static_cast<char>(protocol >> 8) + static_cast<char>(protocol & 0xff);
  }
  static std::string bytes_of(const auto& header) {
    return {reinterpret_cast<const char*>(&header), sizeof header};
  }
  static std::string tcp(std::uint16_t source, std::uint8_t flags) {
    tcphdr header{};
    header.source = htons(source);
    header.th_flags = flags;
    return bytes_of(header);
  }
  static std::string ipv4(const std::string& payload, std::size_t options = 0) {
    iphdr header{};
    header.version = 4;
    header.ihl = static_cast<unsigned>(5 + options / 4) & 0x0f;
    header.protocol = IPPROTO_TCP;
    return ethernet(0x0800) + bytes_of(header) + std::string(options, '\1') + payload;
  }
  static std::string ipv6(const std::string& payload, std::uint8_t next = IPPROTO_TCP) {
    ip6_hdr header{};
    header.ip6_nxt = next;
    return ethernet(0x86dd) + bytes_of(header) + payload;
  }

 private:
  Fd in_;
  Fd out_;
};

TEST_F(SynFilter, DropsASynFromAForwardedPortAndNothingElse) {
  EXPECT_EQ(verdict(ipv4(tcp(kPort, TH_SYN))), "drop");
  EXPECT_EQ(verdict(ipv4(tcp(22, TH_SYN), 8)), "drop");
  EXPECT_EQ(verdict(ipv6(tcp(kPort, TH_SYN))), "drop");
  EXPECT_EQ(verdict(ipv4(tcp(kPort, TH_SYN | TH_ACK))), "pass");
  EXPECT_EQ(verdict(ipv4(tcp(kPort, TH_ACK))), "pass");
  EXPECT_EQ(verdict(ipv4(tcp(kPort + 1, TH_SYN))), "pass");
  EXPECT_EQ(verdict(ethernet(0x0806) + std::string(28, '\0')), "pass");
  EXPECT_EQ(verdict(ipv6(std::string(1, IPPROTO_TCP) + std::string(7, '\0'), IPPROTO_DSTOPTS)), "drop");
}

TEST_F(SynFilter, AFrameThatIsCutOffAnywhereIsLeftToOthers) {
  for (const std::string& frame : {ipv4(tcp(kPort, TH_SYN), 8), ipv4(tcp(kPort, TH_SYN), 40),
                                   ipv6(tcp(kPort, TH_SYN)), ethernet(0x8100) + std::string("\0\5", 2)}) {
    for (std::size_t size = 14; size < frame.size(); ++size) {
      EXPECT_EQ(verdict(std::string_view(frame).substr(0, size)), "pass") << size << " of " << frame.size();
    }
  }
}

}  // namespace
}  // namespace portway
