#include "network/orphaned_sockets.h"

#include <linux/inet_diag.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "network/netlink.h"
#include "network/tcp_diag.h"

namespace portway {
namespace {

constexpr std::uint32_t kClosing =
    1U << TCP_FIN_WAIT1 | 1U << TCP_FIN_WAIT2 | 1U << TCP_CLOSING | 1U << TCP_LAST_ACK;

IpAddress peer_of(const inet_diag_msg& socket) {
  if (socket.idiag_family == AF_INET) {
    return boost::asio::ip::address_v4(ntohl(socket.id.idiag_dst[0]));
  }
  boost::asio::ip::address_v6::bytes_type bytes;
  const auto* from = reinterpret_cast<const std::uint8_t*>(socket.id.idiag_dst);
  std::copy_n(from, bytes.size(), bytes.begin());
  return folded(boost::asio::ip::address_v6(bytes));
}

/// Those that are closing and have no inode.
std::vector<inet_diag_msg> list_orphans(const Fd& diag, std::uint8_t family) {
  std::vector<inet_diag_msg> found;
  TcpDiagRequest request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family);
  request.body.idiag_states = kClosing;
  if (::send(diag.get(), &request, sizeof request, 0) < 0) return found;
  alignas(nlmsghdr) std::array<char, 32 * 1024> buffer;
  for (;;) {
    const ssize_t got = ::recv(diag.get(), buffer.data(), buffer.size(), 0);
    if (got <= 0) return found;
    const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
    for (auto rest = static_cast<unsigned>(got); NLMSG_OK(header, rest); header = NLMSG_NEXT(header, rest)) {
      if (header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR) return found;
      const auto& socket = *static_cast<const inet_diag_msg*>(NLMSG_DATA(header));
      if (socket.idiag_inode == 0) found.push_back(socket);
    }
  }
}

bool end(const Fd& diag, const inet_diag_msg& socket) {
  TcpDiagRequest request(SOCK_DESTROY, NLM_F_ACK, socket.idiag_family);
  request.body.id = socket.id;
  if (::send(diag.get(), &request, sizeof request, 0) < 0) return false;
  alignas(nlmsghdr) std::array<char, 1024> answer;
  const ssize_t got = ::recv(diag.get(), answer.data(), answer.size(), 0);
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer.data());
  return got >= static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr))) && header->nlmsg_type == NLMSG_ERROR &&
         static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error == 0;
}

}  // namespace

void drop_unresolved_packets(const NetworkNamespace& netns, int link, std::span<const IpAddress> peers) {
  const auto inside = netns.enter();
  if (!inside) return;
  const auto netlink = Netlink::open();
  if (!netlink) return;
  for (const IpAddress& peer : peers) {
    ndmsg body{};
    body.ndm_family = static_cast<__u8>(peer.is_v4() ? AF_INET : AF_INET6);
    body.ndm_ifindex = link;
    NetlinkMessage question(RTM_GETNEIGH, 0, body);
    question.add(NDA_DST, peer);
    bool unresolved = false;
    (*netlink)->query(question, [&unresolved](const nlmsghdr& answer) {
      unresolved = (netlink_body<ndmsg>(answer).ndm_state & NUD_INCOMPLETE) != 0;
    });
    if (!unresolved) continue;
    NetlinkMessage removal(RTM_DELNEIGH, 0, body);
    removal.add(NDA_DST, peer);
    (void)(*netlink)->request(removal, "neighbour", {ENOENT});
  }
}

std::size_t end_orphaned_sockets(const NetworkNamespace& netns, int link, std::span<const IpAddress> peers) {
  // The kernel answers each request before send(2) returns.
  const int made = netns.make_socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (made < 0) return 0;
  const Fd diag(made);
  std::size_t ended = 0;
  for (const int family : {AF_INET, AF_INET6}) {
    for (const inet_diag_msg& socket : list_orphans(diag, static_cast<std::uint8_t>(family))) {
      const bool is_wanted = socket.id.idiag_if == static_cast<__u32>(link) &&
                             std::ranges::find(peers, peer_of(socket)) != peers.end();
      if (is_wanted && end(diag, socket)) ++ended;
    }
  }
  return ended;
}

}  // namespace portway
