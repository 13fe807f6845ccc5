// Requests about TCP sockets to the kernel (sock_diag(7)).
#pragma once

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>

#include <cstdint>

namespace portway {

/// `type`: SOCK_DIAG_BY_FAMILY or SOCK_DESTROY. `flags` besides NLM_F_REQUEST. The rest of the body is zero.
struct TcpDiagRequest {
  TcpDiagRequest(std::uint16_t type, std::uint16_t flags, std::uint8_t family) {
    header.nlmsg_len = sizeof *this;
    header.nlmsg_type = type;
    header.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
    body.sdiag_family = family;
    body.sdiag_protocol = IPPROTO_TCP;
  }

  nlmsghdr header{};
  inet_diag_req_v2 body{};
};

}  // namespace portway
