#include "api/http/peer.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

namespace portway {
namespace {

/// With its zone, unlike folded().
IpAddress unmapped(const IpAddress& address) {
  if (!address.is_v6() || !address.to_v6().is_v4_mapped()) return address;
  return boost::asio::ip::make_address_v4(boost::asio::ip::v4_mapped, address.to_v6());
}

}  // namespace

std::string source_name(const Peer& peer) {
  if (peer.credentials) return fmt::format("uid:{}", peer.credentials->uid);
  return source_of(peer.origin.address).to_string();
}

std::optional<Peer> tcp_peer(const StreamSocket& socket) {
  boost::system::error_code error;
  const auto endpoint = socket.remote_endpoint(error);
  if (error) return std::nullopt;
  return Peer{.origin = {.address = unmapped(tcp_endpoint(endpoint).address())}};
}

std::optional<Peer> unix_peer(int socket) {
  ucred who{};
  socklen_t size = sizeof who;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0) return std::nullopt;
  return Peer{.origin = {}, .credentials = PeerCredentials{.pid = who.pid, .uid = who.uid, .gid = who.gid}};
}

// The kernel remembers it of the last handshake segment (tcp_v4_syn_recv_sock(), tcp_v6_syn_recv_sock()) and
// reports it as "packet options" (ip(7), ipv6(7)).
std::int32_t incoming_link(int socket) {
  int family = 0;
  socklen_t family_size = sizeof family;
  if (::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &family, &family_size) != 0) return 0;
  const bool is_v6 = family == AF_INET6;
  const int level = is_v6 ? IPPROTO_IPV6 : IPPROTO_IP;
  const int on = 1;
  ::setsockopt(socket, level, is_v6 ? IPV6_RECVPKTINFO : IP_PKTINFO, &on, sizeof on);
  alignas(cmsghdr) std::array<char, 256> buffer{};
  auto size = static_cast<socklen_t>(buffer.size());
  if (::getsockopt(socket, level, is_v6 ? IPV6_2292PKTOPTIONS : IP_PKTOPTIONS, buffer.data(), &size) != 0) {
    return 0;
  }
  msghdr message{};
  message.msg_control = buffer.data();
  message.msg_controllen = size;
  for (cmsghdr* each = CMSG_FIRSTHDR(&message); each != nullptr; each = CMSG_NXTHDR(&message, each)) {
    if (each->cmsg_level != level) continue;
    if (is_v6 && each->cmsg_type == IPV6_PKTINFO) {
      in6_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(each), sizeof info);
      return static_cast<std::int32_t>(info.ipi6_ifindex);
    }
    if (!is_v6 && each->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(each), sizeof info);
      return info.ipi_ifindex;
    }
  }
  return 0;
}

}  // namespace portway
