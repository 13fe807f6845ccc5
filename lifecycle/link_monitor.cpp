#include "lifecycle/link_monitor.h"

#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace portway {
namespace {

constexpr int kReceiveBuffer = 1024 * 1024;  // bursts of a thousand taps; ENOBUFS reports an overflow
constexpr int kFirstDumpTimeoutMs = 30'000;  // others may hold the kernel's lock on all links for long
constexpr int kDumpStuckAfter = 10;          // calls of ask_again()

Error refused(std::string_view what, int error) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("rtnetlink: {}: {}; without it the end of a guest would go unnoticed", what,
                                std::strerror(error))};
}

/// The kind of a link's master, which the kernel reports if the link has one.
std::string master_kind_of(const rtattr& link_info) {
  auto rest = static_cast<int>(RTA_PAYLOAD(&link_info));
  for (auto* attribute = static_cast<const rtattr*>(RTA_DATA(&link_info)); RTA_OK(attribute, rest);
       attribute = RTA_NEXT(attribute, rest)) {
    if (attribute->rta_type == IFLA_INFO_SLAVE_KIND) return static_cast<const char*>(RTA_DATA(attribute));
  }
  return "";
}

}  // namespace

Result<std::unique_ptr<LinkMonitor>> LinkMonitor::start(OnChange on_change, Send send) {
  Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!socket) return refused("socket", errno);
  // Beyond net.core.rmem_max if permitted (CAP_NET_ADMIN).
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer) < 0) {
    ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUF, &kReceiveBuffer, sizeof kReceiveBuffer);
  }
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK;
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
    return refused("bind", errno);
  socklen_t size = sizeof address;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) < 0)
    return refused("getsockname", errno);
  auto monitor =
      std::unique_ptr<LinkMonitor>(new LinkMonitor(std::move(socket), std::move(on_change), std::move(send)));
  monitor->port_ = address.nl_pid;
  if (auto asked = monitor->request_dump(); !asked) return asked.error();
  if (auto read = monitor->read_first_dump(); !read) return read.error();
  monitor->telling_ = true;
  return monitor;
}

std::optional<Link> LinkMonitor::find(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  return found == by_name_.end() ? std::nullopt : find(found->second);
}

std::optional<Link> LinkMonitor::find(int index) const {
  const auto found = links_.find(index);
  if (found == links_.end()) return std::nullopt;
  return found->second.link;
}

Result<void> LinkMonitor::request_dump() {
  struct {
    nlmsghdr header;
    ifinfomsg body;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  request.header.nlmsg_seq = ++dump_;
  request.body.ifi_family = AF_UNSPEC;
  dumping_ = dump_again_ = false;
  dump_wanted_ = true;
  if (send_to_kernel(&request, sizeof request) < 0) return refused("dump", errno);
  dumping_ = true;
  dump_wanted_ = false;
  asked_again_ = 0;
  return {};
}

void LinkMonitor::refresh(std::string_view name) {
  struct {
    nlmsghdr header;
    ifinfomsg body;
    rtattr attribute;
    char name[IFNAMSIZ];
  } request{};
  if (name.size() >= sizeof request.name) return;
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.body.ifi_family = AF_UNSPEC;
  request.attribute.rta_len = static_cast<unsigned short>(RTA_LENGTH(sizeof request.name));
  request.attribute.rta_type = IFLA_IFNAME;
  name.copy(request.name, name.size());
  // The kernel answers before send(2) returns, after everything that it has reported so far.
  (void)send_to_kernel(&request, sizeof request);
  read();
}

ssize_t LinkMonitor::send_to_kernel(const void* request, std::size_t size) const {
  return send_ ? send_(socket_.get(), request, size) : ::send(socket_.get(), request, size, 0);
}

void LinkMonitor::ask_again() {
  if (dumping_ && ++asked_again_ < kDumpStuckAfter) return;
  if (unsettled()) (void)request_dump();
}

Result<void> LinkMonitor::read_first_dump() {
  while (dumping_) {
    pollfd readable{.fd = socket_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&readable, 1, kFirstDumpTimeoutMs) == 0) return refused("dump", ETIMEDOUT);
    read();
  }
  if (dump_wanted_) return refused("dump", EIO);
  return {};
}

void LinkMonitor::read() {
  alignas(nlmsghdr) std::array<char, 32 * 1024> buffer;
  for (;;) {
    const auto got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (got > 0) {
      on_messages(buffer.data(), static_cast<std::size_t>(got));
    } else if (got < 0 && errno == ENOBUFS) {
      // Messages were lost: only a new dump shows the current state.
      if (dumping_) {
        dump_again_ = true;
      } else {
        (void)request_dump();
      }
    } else if (got == 0 || errno != EINTR) {
      return;
    }
  }
}

void LinkMonitor::on_messages(const char* data, std::size_t size) {
  auto* header = reinterpret_cast<const nlmsghdr*>(data);
  for (auto rest = static_cast<unsigned>(size); NLMSG_OK(header, rest); header = NLMSG_NEXT(header, rest)) {
    on_message(*header);
  }
}

/// Excludes answers to another program's request with the same number.
bool LinkMonitor::is_of_dump(const nlmsghdr& header) const {
  return dumping_ && header.nlmsg_seq == dump_ && header.nlmsg_pid == port_;
}

void LinkMonitor::on_message(const nlmsghdr& header) {
  const bool of_dump = is_of_dump(header);
  // The kernel marks a dump as inconsistent if links changed meanwhile.
  if (of_dump && (header.nlmsg_flags & NLM_F_DUMP_INTR) != 0) dump_again_ = true;
  switch (header.nlmsg_type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      on_link(header);
      break;
    case NLMSG_ERROR:
    case NLMSG_DONE:
      if (of_dump) on_dump_end(header);
      break;
    default:
      break;
  }
}

void LinkMonitor::on_link(const nlmsghdr& header) {
  const auto& info = *static_cast<const ifinfomsg*>(NLMSG_DATA(&header));
  // A bridge reports its ports again under its own family; there, a "deletion" only means that the port
  // has left the bridge.
  if (info.ifi_family != AF_UNSPEC) return;
  if (header.nlmsg_type == RTM_DELLINK) {
    remove(info.ifi_index);
    return;
  }
  Link link{.index = info.ifi_index,
            .name = {},
            .up = (info.ifi_flags & IFF_UP) != 0,
            .carrier = (info.ifi_flags & IFF_LOWER_UP) != 0,
            .loopback = (info.ifi_flags & IFF_LOOPBACK) != 0};
  auto rest = static_cast<int>(IFLA_PAYLOAD(&header));
  for (const rtattr* attribute = IFLA_RTA(&info); RTA_OK(attribute, rest);
       attribute = RTA_NEXT(attribute, rest)) {
    if (attribute->rta_type == IFLA_IFNAME) link.name = static_cast<const char*>(RTA_DATA(attribute));
    if (attribute->rta_type == IFLA_CARRIER_DOWN_COUNT) {
      link.carrier_downs = *static_cast<const std::uint32_t*>(RTA_DATA(attribute));
    }
    if (attribute->rta_type == IFLA_MASTER) link.master = *static_cast<const int*>(RTA_DATA(attribute));
    if (attribute->rta_type == IFLA_LINKINFO) link.master_kind = master_kind_of(*attribute);
  }
  const auto [known, is_new] = links_.try_emplace(link.index);
  const bool changed = is_new || known->second.link != link;
  if (!is_new) forget_name(known->second.link);
  by_name_[link.name] = link.index;
  known->second.link = link;
  // Other messages do not count as listed: one about a link that is already gone may have waited in the
  // socket. A link that is added during the dump makes it an interrupted one.
  if (is_of_dump(header)) known->second.dump = dump_;
  if (changed && telling_) on_change_(link, false);
}

/// Unless another link has taken it.
void LinkMonitor::forget_name(const Link& link) {
  const auto found = by_name_.find(link.name);
  if (found != by_name_.end() && found->second == link.index) by_name_.erase(found);
}

void LinkMonitor::on_dump_end(const nlmsghdr& header) {
  dumping_ = false;
  // Both kinds of message begin with an error number; 0: none.
  const bool failed =
      header.nlmsg_len >= NLMSG_LENGTH(sizeof(int)) && *static_cast<const int*>(NLMSG_DATA(&header)) < 0;
  if (failed || header.nlmsg_type == NLMSG_ERROR) {
    dump_wanted_ = true;  // not at once: it may fail again
    return;
  }
  if (dump_again_) {
    (void)request_dump();
    return;
  }
  std::vector<int> gone;
  for (const auto& [index, known] : links_) {
    if (known.dump != dump_) gone.push_back(index);
  }
  for (const int index : gone) remove(index);
}

void LinkMonitor::remove(int index) {
  const auto found = links_.find(index);
  if (found == links_.end()) return;
  const Link link = found->second.link;
  links_.erase(found);
  forget_name(link);
  if (telling_) on_change_(link, true);
}

}  // namespace portway
