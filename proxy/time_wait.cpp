#include "proxy/time_wait.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "network/tcp_diag.h"

namespace portway {

namespace {

constexpr int kType = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC;

void set_address(__be32 (&out)[4], const IpAddress& address) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(out);
  if (address.is_v4()) {
    std::ranges::copy(address.to_v4().to_bytes(), bytes);
  } else {
    std::ranges::copy(address.to_v6().to_bytes(), bytes);
  }
}

}  // namespace

TimeWaitEnder::TimeWaitEnder() : socket_(::socket(AF_NETLINK, kType, NETLINK_SOCK_DIAG)) {}

void TimeWaitEnder::end(const Endpoint& local, const Endpoint& remote, int device,
                        const NetworkNamespace::Ptr& netns) {
  if (!permitted_) return;
  const Closed closed{.local = local, .remote = remote, .device = device};
  if (netns == nullptr) return end(closed, socket_);
  auto found = elsewhere_.find(netns);
  if (found == elsewhere_.end()) {
    std::erase_if(elsewhere_, [](const auto& entry) { return entry.first.expired(); });
    found = elsewhere_.try_emplace(netns).first;
  }
  found->second.push_back(closed);
  if (found->second.size() < kAtOnce) return;
  const auto all = std::exchange(found->second, {});
  const Fd socket(netns->make_socket(AF_NETLINK, kType, NETLINK_SOCK_DIAG));
  if (!socket) return;
  for (const Closed& each : all) end(each, socket);
}

void TimeWaitEnder::end(const Closed& closed, const Fd& socket) {
  const auto& [local, remote, device] = closed;
  TcpDiagRequest request(SOCK_DIAG_BY_FAMILY, 0, local.address().is_v6() ? AF_INET6 : AF_INET);
  request.body.id.idiag_sport = htons(local.port());
  request.body.id.idiag_dport = htons(remote.port());
  set_address(request.body.id.idiag_src, local.address());
  set_address(request.body.id.idiag_dst, remote.address());
  request.body.id.idiag_if = static_cast<__u32>(device);
  request.body.id.idiag_cookie[0] = request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  if (!send(request, socket)) return;
  inet_diag_msg found{};
  if (!receive(request.header.nlmsg_seq, socket, found)) return;
  // Another connection already has these addresses and ports, or none has: the guest had ended first.
  if (found.idiag_state != TCP_TIME_WAIT) return;
  request.header.nlmsg_type = SOCK_DESTROY;  // Linux 4.9; of a TIME_WAIT: 5.19
  std::ranges::copy(found.id.idiag_cookie, request.body.id.idiag_cookie);
  send(request, socket);  // an error, if any, is read with the next answer
}

bool TimeWaitEnder::send(TcpDiagRequest& request, const Fd& socket) {
  request.header.nlmsg_seq = ++sequence_;
  return ::send(socket.get(), &request, sizeof request, MSG_DONTWAIT) > 0;
}

/// The answer is available when send(2) returns.
bool TimeWaitEnder::receive(std::uint32_t sequence, const Fd& socket, inet_diag_msg& found) {
  alignas(nlmsghdr) std::array<char, 1024> message;
  while (true) {
    const ssize_t got = ::recv(socket.get(), message.data(), message.size(), MSG_DONTWAIT);
    const auto* header = reinterpret_cast<const nlmsghdr*>(message.data());
    if (got < static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr)))) return false;
    if (header->nlmsg_type == NLMSG_ERROR) {
      const int error = -static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
      if (error == EPERM || error == EACCES || error == EOPNOTSUPP || error == EINVAL) permitted_ = false;
      if (!permitted_ || header->nlmsg_seq == sequence) return false;
    } else if (header->nlmsg_seq == sequence && got >= static_cast<ssize_t>(NLMSG_LENGTH(sizeof found))) {
      std::memcpy(&found, NLMSG_DATA(header), sizeof found);
      return true;
    }
  }
}

}  // namespace portway
