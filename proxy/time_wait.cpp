#include "proxy/time_wait.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

namespace portway {
namespace {

struct Request {
  nlmsghdr header;
  inet_diag_req_v2 body;
};

void set_address(__be32 (&out)[4], const IpAddress& address) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(out);
  if (address.is_v4()) {
    std::ranges::copy(address.to_v4().to_bytes(), bytes);
  } else {
    std::ranges::copy(address.to_v6().to_bytes(), bytes);
  }
}

}  // namespace

TimeWaitEnder::TimeWaitEnder()
    : socket_(::socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)) {}

void TimeWaitEnder::end(const Endpoint& local, const Endpoint& remote, int device) {
  if (!socket_) return;
  Request request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = SOCK_DESTROY;  // Linux 4.9; of a TIME_WAIT: 5.19
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  request.body.sdiag_family = static_cast<__u8>(local.address().is_v6() ? AF_INET6 : AF_INET);
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.id.idiag_sport = htons(local.port());
  request.body.id.idiag_dport = htons(remote.port());
  set_address(request.body.id.idiag_src, local.address());
  set_address(request.body.id.idiag_dst, remote.address());
  request.body.id.idiag_if = static_cast<__u32>(device);
  request.body.id.idiag_cookie[0] = request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  if (::send(socket_.get(), &request, sizeof request, MSG_DONTWAIT) < 0) return;
  // The kernel has done it and answered when send(2) returns.
  bool refused = false;
  alignas(nlmsghdr) std::array<char, 512> answer;
  while (::recv(socket_.get(), answer.data(), answer.size(), MSG_DONTWAIT) >=
         static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr)))) {
    const auto* header = reinterpret_cast<const nlmsghdr*>(answer.data());
    if (header->nlmsg_type != NLMSG_ERROR) continue;
    const int error = -static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
    if (error == EPERM || error == EACCES || error == EOPNOTSUPP || error == EINVAL) refused = true;
  }
  if (refused) socket_.reset();
}

}  // namespace portway
