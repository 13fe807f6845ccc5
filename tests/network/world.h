// Client, node and two guests in network namespaces of their own, and sockets in them. No netfilter. Failures
// throw std::system_error, which fails the test.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "network/return_path.h"
#include "tests/support/capabilities.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"
#include "tests/support/tcx.h"

namespace portway::test {

inline constexpr int kOn = 1;
inline constexpr timeval kLong{.tv_sec = 30, .tv_usec = 0};
inline constexpr timeval kShort{.tv_sec = 0, .tv_usec = 300'000};

template <class Value>
inline void set_option(const Fd& socket, int level, int name, const Value& value) {
  if (::setsockopt(socket.get(), level, name, &value, sizeof value) != 0) {
    throw std::system_error(errno, std::generic_category(), "setsockopt");
  }
}

inline Fd make_socket(int family, int type, int protocol) {
  Fd fd(::socket(family, type | SOCK_CLOEXEC, protocol));
  if (!fd) throw std::system_error(errno, std::generic_category(), "socket");
  set_option(fd, SOL_SOCKET, SO_RCVTIMEO, kLong);
  set_option(fd, SOL_SOCKET, SO_SNDTIMEO, kLong);
  return fd;
}

/// A TCP socket that is bound to `local`; port 0 is any.
inline Fd bound_socket(const Endpoint& local) {
  Fd fd = make_socket(local.protocol().family(), SOCK_STREAM, 0);
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, kOn);
  set_option(fd, SOL_SOCKET, SO_REUSEPORT, kOn);
  if (::bind(fd.get(), local.data(), static_cast<socklen_t>(local.size())) != 0) {
    throw std::system_error(errno, std::generic_category(), "bind");
  }
  return fd;
}

inline Endpoint address_of(const Fd& socket, decltype(&::getsockname) which) {
  Endpoint endpoint;
  auto size = static_cast<socklen_t>(endpoint.capacity());
  if (which(socket.get(), endpoint.data(), &size) != 0) {
    throw std::system_error(errno, std::generic_category(), "getsockname");
  }
  endpoint.resize(size);
  return endpoint;
}
inline Endpoint local_of(const Fd& socket) {
  return address_of(socket, ::getsockname);
}
inline Endpoint peer_of(const Fd& socket) {
  return address_of(socket, ::getpeername);
}

inline Fd bound_in(const NetworkNamespace& network, const Endpoint& local) {
  Fd fd;
  network.run([&] { fd = bound_socket(local); });
  return fd;
}

inline Fd listen(const NetworkNamespace& network, const Endpoint& local, int backlog = 8) {
  Fd fd = bound_in(network, local);
  if (::listen(fd.get(), backlog) != 0) throw std::system_error(errno, std::generic_category(), "listen");
  return fd;
}

struct Connected {
  Fd fd;
  int error = 0;
};

inline Connected connect_to(Fd socket, const Endpoint& destination) {
  const bool failed =
      ::connect(socket.get(), destination.data(), static_cast<socklen_t>(destination.size())) != 0;
  const int error = failed ? errno : 0;
  return {std::move(socket), error};
}

/// An ordinary connection.
inline Connected connect_plainly(const NetworkNamespace& network, const Endpoint& source,
                                 const Endpoint& destination) {
  Connected connected;
  network.run([&] { connected = connect_to(bound_socket(source), destination); });
  return connected;
}

inline Fd accept(const Fd& listener) {
  return Fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
}

inline bool nobody_waits(const Fd& listener) {
  ::fcntl(listener.get(), F_SETFL, O_NONBLOCK);
  return !accept(listener) && errno == EAGAIN;
}

inline std::string exchange(const Fd& from, const Fd& to, std::string_view bytes) {
  if (::send(from.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size())) {
    return std::string("send: ") + std::strerror(errno);
  }
  std::string got(bytes.size(), '\0');
  const auto count = ::recv(to.get(), got.data(), got.size(), MSG_WAITALL);
  if (count < 0) return std::string("receive: ") + std::strerror(errno);
  return got.substr(0, static_cast<std::size_t>(count));
}

/// As the proxy does it: out of that device, with the source address and port of a client. The socket is new.
inline Connected relay_to(Fd fd, const Endpoint& source, const Endpoint& destination, std::string_view device,
                          const timeval& timeout) {
  const bool v4 = source.address().is_v4();
  set_option(fd, SOL_SOCKET, SO_SNDTIMEO, timeout);
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, kOn);
  set_option(fd, v4 ? SOL_IP : SOL_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT, kOn);
  EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device.data(),
                         static_cast<socklen_t>(device.size())),
            0);
  EXPECT_EQ(::bind(fd.get(), source.data(), static_cast<socklen_t>(source.size())), 0)
      << std::strerror(errno);
  return connect_to(std::move(fd), destination);
}

/// The service takes the connection, which comes from `client`, and bytes go both ways.
inline void expect_conversation(const Fd& upstream, const Fd& listener, const Endpoint& client) {
  const Fd accepted = accept(listener);
  ASSERT_TRUE(accepted);
  EXPECT_EQ(peer_of(accepted), client);
  EXPECT_EQ(exchange(upstream, accepted, "question"), "question");
  EXPECT_EQ(exchange(accepted, upstream, "answer"), "answer");
}

/// Of a segment without data (RFC 9293, 3.1). Needed only for segments that get an answer.
inline std::uint16_t checksum(const IpAddress& source, const IpAddress& destination, const tcphdr& tcp) {
  std::string bytes;
  for (const IpAddress& address : {source, destination}) {
    if (address.is_v4()) {
      const auto raw = address.to_v4().to_bytes();
      bytes.append(raw.begin(), raw.end());
    } else {
      const auto raw = address.to_v6().to_bytes();
      bytes.append(raw.begin(), raw.end());
    }
  }
  bytes += std::string{0, IPPROTO_TCP, 0, sizeof tcp};
  bytes.append(reinterpret_cast<const char*>(&tcp), sizeof tcp);
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    sum += static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i]) << 8 |
                                      static_cast<unsigned char>(bytes[i + 1]));
  }
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<std::uint16_t>(~sum));
}

/// A TCP segment in an IP packet with any addresses; `sequence` identifies it. IPv6: `extensions` are 8
/// bytes each, in front of it.
inline std::string make_packet(const Endpoint& source, const Endpoint& destination, std::uint32_t sequence,
                               std::uint8_t flags, const std::vector<std::uint8_t>& extensions = {}) {
  tcphdr tcp{};
  tcp.source = htons(source.port());
  tcp.dest = htons(destination.port());
  tcp.seq = htonl(sequence);
  tcp.doff = 5;
  tcp.th_flags = flags;
  tcp.window = htons(1000);
  tcp.check = checksum(source.address(), destination.address(), tcp);
  std::string packet;
  if (source.address().is_v4()) {
    iphdr ip{};
    ip.version = 4;
    ip.ihl = 5;
    ip.tot_len = htons(sizeof ip + sizeof tcp);
    ip.ttl = 64;
    ip.protocol = IPPROTO_TCP;
    ip.saddr = htonl(source.address().to_v4().to_uint());
    ip.daddr = htonl(destination.address().to_v4().to_uint());
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < sizeof ip / 2; ++i) {
      std::uint16_t word = 0;
      std::memcpy(&word, reinterpret_cast<const char*>(&ip) + i * 2, sizeof word);
      sum += word;
    }
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    ip.check = static_cast<std::uint16_t>(~sum);
    packet.append(reinterpret_cast<const char*>(&ip), sizeof ip);
  } else {
    ip6_hdr ip{};
    ip.ip6_flow = htonl(6U << 28);
    ip.ip6_plen = htons(static_cast<std::uint16_t>(extensions.size() * 8 + sizeof tcp));
    ip.ip6_nxt = extensions.empty() ? std::uint8_t{IPPROTO_TCP} : extensions.front();
    ip.ip6_hlim = 64;
    std::memcpy(&ip.ip6_src, source.address().to_v6().to_bytes().data(), sizeof ip.ip6_src);
    std::memcpy(&ip.ip6_dst, destination.address().to_v6().to_bytes().data(), sizeof ip.ip6_dst);
    packet.append(reinterpret_cast<const char*>(&ip), sizeof ip);
    for (std::size_t i = 0; i < extensions.size(); ++i) {
      const std::uint8_t next = i + 1 < extensions.size() ? extensions[i + 1] : std::uint8_t{IPPROTO_TCP};
      packet += std::string{static_cast<char>(next), 0, 1, 4, 0, 0, 0, 0};  // PadN
    }
  }
  packet.append(reinterpret_cast<const char*>(&tcp), sizeof tcp);
  return packet;
}

/// Sends it, by the namespace's routes.
inline void forge(const NetworkNamespace& network, const Endpoint& source, const Endpoint& destination,
                  std::uint32_t sequence, std::uint8_t flags = TH_ACK) {
  const std::string packet = make_packet(source, destination, sequence, flags);
  network.run([&] {
    const Fd raw = make_socket(source.protocol().family(), SOCK_RAW, IPPROTO_RAW);
    const Endpoint to(destination.address(), 0);
    if (::sendto(raw.get(), packet.data(), packet.size(), 0, to.data(), static_cast<socklen_t>(to.size())) <
        0) {
      throw std::system_error(errno, std::generic_category(), "sendto");
    }
  });
}

/// Sends it over eth0 to the device at the other end, behind this many priority-only VLAN tags.
inline void send_frame(const NetworkNamespace& network, const std::string& to_mac, const std::string& packet,
                       int tags) {
  network.run([&] {
    const Fd raw = make_socket(AF_PACKET, SOCK_RAW, 0);
    std::string frame = to_mac;
    frame.append(6, '\x02');
    for (int i = 0; i < tags; ++i) frame += std::string{'\x81', 0, 0, 0};
    frame += (packet[0] & 0xf0) == 0x40 ? std::string{8, 0} : std::string{'\x86', '\xdd'};
    frame += packet;
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_ifindex = static_cast<int>(::if_nametoindex("eth0"));
    if (::sendto(raw.get(), frame.data(), frame.size(), 0, reinterpret_cast<const sockaddr*>(&to),
                 sizeof to) < 0) {
      throw std::system_error(errno, std::generic_category(), "sendto");
    }
  });
}

/// An ICMP error that quotes a packet. `value`: the second word of its header, for the path's MTU.
inline std::string make_error(bool v6, std::uint8_t type, std::uint8_t code, std::uint32_t value,
                              const std::string& quoted) {
  std::string message{static_cast<char>(type), static_cast<char>(code), 0, 0};
  const std::uint32_t word = htonl(value);
  message.append(reinterpret_cast<const char*>(&word), sizeof word);
  message += quoted;
  if (v6) return message;  // the kernel knows the addresses and computes the checksum
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < message.size(); ++i) {
    const auto byte = static_cast<std::uint32_t>(static_cast<unsigned char>(message[i]));
    sum += i % 2 == 0 ? byte << 8 : byte;
  }
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  message[2] = static_cast<char>(~sum >> 8);
  message[3] = static_cast<char>(~sum);
  return message;
}

/// Sends an ICMP message from any address.
inline void send_icmp(const NetworkNamespace& network, const IpAddress& source, const IpAddress& destination,
                      const std::string& message) {
  network.run([&] {
    const bool v4 = source.is_v4();
    const Fd raw =
        make_socket(v4 ? AF_INET : AF_INET6, SOCK_RAW, v4 ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6});
    set_option(raw, v4 ? SOL_IP : SOL_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT, kOn);
    const Endpoint from(source, 0);
    const Endpoint to(destination, 0);
    if (::bind(raw.get(), from.data(), static_cast<socklen_t>(from.size())) != 0 ||
        ::sendto(raw.get(), message.data(), message.size(), 0, to.data(), static_cast<socklen_t>(to.size())) <
            0) {
      throw std::system_error(errno, std::generic_category(), "sendto");
    }
  });
}

/// The socket receives nothing any more and acknowledges nothing.
inline void make_deaf(const Fd& socket) {
  sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
  const sock_fprog program{.len = 1, .filter = &drop};
  set_option(socket, SOL_SOCKET, SO_ATTACH_FILTER, program);
}

/// The TCP segments that arrive in a namespace.
class Sniffer {
 public:
  Sniffer(const NetworkNamespace& network, bool v6) : v6_(v6) {
    network.run([&] { raw_ = make_socket(v6 ? AF_INET6 : AF_INET, SOCK_RAW, IPPROTO_TCP); });
  }

  struct Segment {
    IpAddress source;
    tcphdr tcp;
  };
  /// nullopt if none comes within 10 s, or, with MSG_DONTWAIT, none has.
  std::optional<Segment> next(int flags = 0) {
    std::array<char, 2048> buffer;
    Endpoint source;
    auto size = static_cast<socklen_t>(source.capacity());
    const auto got = ::recvfrom(raw_.get(), buffer.data(), buffer.size(), flags, source.data(), &size);
    if (got <= 0) return std::nullopt;
    source.resize(size);
    // IPv6 raw sockets give no IP header.
    const std::size_t skip = v6_ ? 0 : static_cast<std::size_t>(buffer[0] & 0x0f) * 4;
    Segment segment{.source = source.address(), .tcp = {}};
    std::memcpy(&segment.tcp, buffer.data() + skip, sizeof segment.tcp);
    return segment;
  }

  /// Which of the two comes first; 0 if none does.
  std::uint32_t first_of(std::uint32_t a, std::uint32_t b) {
    while (const auto segment = next()) {
      const std::uint32_t sequence = ntohl(segment->tcp.seq);
      if (sequence == a || sequence == b) return sequence;
    }
    return 0;
  }

  /// Whether one of those that have arrived is an answer to a SYN, from that port.
  bool has_syn_ack_of(std::uint16_t port) {
    while (const auto segment = next(MSG_DONTWAIT)) {
      const tcphdr& tcp = segment->tcp;
      if (ntohs(tcp.source) == port && tcp.syn == 1 && tcp.ack == 1) return true;
    }
    return false;
  }

 private:
  bool v6_;
  Fd raw_;
};

/// The ICMP messages that arrive in a namespace.
class IcmpSniffer {
 public:
  IcmpSniffer(const NetworkNamespace& network, bool v6) : v6_(v6) {
    network.run([&] {
      raw_ = make_socket(v6 ? AF_INET6 : AF_INET, SOCK_RAW, v6 ? int{IPPROTO_ICMPV6} : int{IPPROTO_ICMP});
    });
  }

  /// Which of two messages sent by send_icmp() comes first; 0 if neither does within 10 s.
  int first_of(const std::string& first, const std::string& second) {
    for (;;) {
      std::array<char, 2048> buffer;
      const auto got = ::recv(raw_.get(), buffer.data(), buffer.size(), 0);
      if (got <= 0) return 0;
      const std::size_t skip = v6_ ? 0 : static_cast<std::size_t>(buffer[0] & 0x0f) * 4;
      const std::string_view message(buffer.data() + skip, static_cast<std::size_t>(got) - skip);
      if (same(message, first)) return 1;
      if (same(message, second)) return 2;
    }
  }

 private:
  /// Without the checksum.
  static bool same(std::string_view message, const std::string& sent) {
    return message.size() == sent.size() && message.substr(0, 2) == sent.substr(0, 2) &&
           message.substr(4) == sent.substr(4);
  }

  bool v6_;
  Fd raw_;
};

inline constexpr std::uint32_t kForged = 0xf0f0f0f0;
inline constexpr std::uint32_t kMarker = 0x0a0a0a0a;

struct Network {
  std::string_view client;
  std::string_view guest;
  std::string_view neighbour;
};
inline constexpr Network kV4{"198.18.1.2", "198.18.2.2", "198.18.3.2"};
inline constexpr Network kV6{"fd00:1::2", "fd00:2::2", "fd00:3::2"};

/// Everything that the return path could leave in a namespace, and on these links of it.
inline std::string listing_of(const NetworkNamespace& network, std::initializer_list<const char*> taps) {
  std::string all;
  for (const char* family : {"-4", "-6"}) {
    all += run_command(&network, {"ip", family, "-details", "rule"});
    all += run_command(&network, {"ip", family, "-details", "route", "show", "table", "all"});
  }
  // Link-local addresses appear by themselves, some time after a link; so do the local routes of IPv6
  // addresses.
  std::istringstream lines(std::exchange(all, ""));
  for (std::string line; std::getline(lines, line);) {
    if (line.find("fe80:") == std::string::npos && line.find("ff00:") == std::string::npos &&
        !line.starts_with("local fd00:"))
      all += line + "\n";
  }
  all += run_command(&network, {"tc", "qdisc", "show"});
  for (const char* tap : taps) {
    bool exists = false;
    network.run([&] { exists = ::if_nametoindex(tap) != 0; });
    if (!exists) continue;
    all += run_command(&network, {"tc", "filter", "show", "dev", tap, "ingress"});
    all += run_command(&network, {"tc", "filter", "show", "dev", tap, "egress"});
    for (const std::string& name : tcx_programs(network, tap))
      all += std::string(tap) + " tcx " + name + "\n";
  }
  return all;
}

/// client (eth0) -- (eth0) node (tap0) -- (eth0) guest, and (tap1) -- (eth0) neighbour; each of the outer
/// ones has the node as its default gateway. The thread that makes it is in the node as long as the object
/// lives.
struct World {
  World() {
    // No waiting until an IPv6 address may be used.
    for (const NetworkNamespace* network : {&client, &node, &guest, &neighbour}) {
      network->skip_address_detection();
    }
    test::connect({client, "eth0", "198.18.1.2/24"}, {node, "eth0", "198.18.1.1/24"});
    test::connect({guest, "eth0", "198.18.2.2/24"}, {node, "tap0", "198.18.2.1/24"});
    test::connect({neighbour, "eth0", "198.18.3.2/24"}, {node, "tap1", "198.18.3.1/24"});
    const std::array<const NetworkNamespace*, 3> outer{&client, &guest, &neighbour};
    const std::array<const char*, 3> devices{"eth0", "tap0", "tap1"};
    for (std::size_t i = 0; i < outer.size(); ++i) {
      const std::string number = std::to_string(i + 1);
      outer[i]->ip("address add fd00:" + number + "::2/64 nodad dev eth0");
      node.ip("address add fd00:" + number + "::1/64 nodad dev " + devices[i]);
      outer[i]->ip("route add default via 198.18." + number + ".1");
      outer[i]->ip("-6 route add default via fd00:" + number + "::1");
    }
    set_rp_filter("0");
    set_forward("1");
    if (!home || ::setns(node.fd(), CLONE_NEWNET) != 0) {
      throw std::system_error(errno, std::generic_category(), "setns");
    }
  }
  ~World() { ::setns(home.get(), CLONE_NEWNET); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  void set_rp_filter(const std::string& value) const {
    for (const char* device : {"all", "tap0", "tap1", "eth0"}) {
      node.set(std::string("net/ipv4/conf/") + device + "/rp_filter", value);
    }
  }
  void set_src_valid_mark(const std::string& value) const {
    for (const char* device : {"all", "tap0", "tap1"}) {
      node.set(std::string("net/ipv4/conf/") + device + "/src_valid_mark", value);
    }
  }
  void set_forward(const std::string& value) const {
    node.set("net/ipv4/ip_forward", value);
    node.set("net/ipv6/conf/all/forwarding", value);
  }

  /// Like that of most nodes, towards their clients.
  void add_default_route() const {
    node.ip("route add default via 198.18.1.2");
    node.ip("-6 route add default via fd00:1::2");
  }

  /// Of one of the node's devices.
  std::string mac(const std::string& name) const {
    ifreq request{};
    node.run([&] {
      name.copy(request.ifr_name, sizeof request.ifr_name - 1);
      const Fd socket = make_socket(AF_INET, SOCK_DGRAM, 0);
      if (::ioctl(socket.get(), SIOCGIFHWADDR, &request) != 0) {
        throw std::system_error(errno, std::generic_category(), "SIOCGIFHWADDR");
      }
    });
    return std::string(request.ifr_hwaddr.sa_data, 6);
  }

  int link(const char* name) const {
    int index = 0;
    node.run([&] { index = static_cast<int>(::if_nametoindex(name)); });
    return index;
  }

  std::unique_ptr<ReturnPath> start(ReturnPath::Kind wanted = ReturnPath::Kind::kProgram,
                                    const ReturnPathSettings& settings = {}) const {
    std::unique_ptr<ReturnPath> path;
    node.run([&] { path = ReturnPath::start(wanted, settings).value(); });
    return path;
  }

  /// relay_to() from the node.
  Connected connect_as(const Endpoint& source, const Endpoint& destination, std::string_view tap = "tap0",
                       const timeval& timeout = kLong, bool share_port = false) const {
    Connected connected;
    node.run([&] {
      Fd fd = make_socket(source.protocol().family(), SOCK_STREAM, 0);
      // Otherwise a relay could not use the port of a service on all addresses.
      if (share_port) set_option(fd, SOL_SOCKET, SO_REUSEPORT, kOn);
      connected = relay_to(std::move(fd), source, destination, tap, timeout);
    });
    return connected;
  }

  /// Everything that the return path could leave on the node.
  std::string listing() const { return listing_of(node, {"tap0", "tap1"}); }

  /// Another program's filter in an existing clsact hook: passes everything to the next filter.
  void add_foreign_filter(const std::string& tap, const std::string& side, const std::string& preference,
                          const std::string& protocol = "all") const {
    run_command(&node, {"tc", "filter", "add", "dev", tap, side, "pref", preference, "protocol", protocol,
                        "bpf", "bytecode", "1,6 0 0 0"});
  }
  void add_hook(const std::string& tap) const {
    run_command(&node, {"tc", "qdisc", "add", "dev", tap, "clsact"});
  }
  void delete_hook(const std::string& tap) const {
    run_command(&node, {"tc", "qdisc", "del", "dev", tap, "clsact"});
  }

  const Fd home{::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)};
  NetworkNamespace client;
  NetworkNamespace node;
  NetworkNamespace guest;
  NetworkNamespace neighbour;
};

inline IpAddress address(std::string_view text) {
  return parse_address(text).value();
}

class WorldTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    world_.emplace();
  }

  std::optional<World> world_;
};

}  // namespace portway::test
