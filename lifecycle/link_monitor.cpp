#include "lifecycle/link_monitor.h"

#include <fmt/format.h>
#include <linux/if.h>
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

constexpr int kReceiveBuffer =
    1024 * 1024;  // bursts of a thousand taps; what overflows it is told by ENOBUFS
constexpr int kFirstDumpTimeoutMs = 5000;

Error refused(std::string_view what, int error) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("rtnetlink: {}: {}; without it the end of a guest would go unnoticed", what,
                                std::strerror(error))};
}

}  // namespace

Result<std::unique_ptr<LinkMonitor>> LinkMonitor::start(OnChange on_change) {
  Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!socket) return refused("socket", errno);
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUF, &kReceiveBuffer, sizeof kReceiveBuffer);
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK;
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
    return refused("bind", errno);
  auto monitor = std::unique_ptr<LinkMonitor>(new LinkMonitor(std::move(socket), std::move(on_change)));
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
  if (::send(socket_.get(), &request, sizeof request, 0) < 0) return refused("dump", errno);
  dumping_ = true;
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
  // The kernel answers before send(2) returns, after all that it has told so far.
  (void)::send(socket_.get(), &request, sizeof request, 0);
  read();
}

Result<void> LinkMonitor::read_first_dump() {
  while (dumping_) {
    pollfd readable{.fd = socket_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&readable, 1, kFirstDumpTimeoutMs) == 0) return refused("dump", ETIMEDOUT);
    read();
  }
  return {};
}

void LinkMonitor::read() {
  alignas(nlmsghdr) std::array<char, 32 * 1024> buffer;
  for (;;) {
    const auto got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (got > 0) {
      on_messages(buffer.data(), static_cast<std::size_t>(got));
    } else if (got < 0 && errno == ENOBUFS) {
      // Messages were lost: only a new dump tells what is true now.
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

void LinkMonitor::on_message(const nlmsghdr& header) {
  const bool of_dump = dumping_ && header.nlmsg_seq == dump_;
  // A dump that links changed under is inconsistent by the kernel's own word; a dump that failed tells
  // nothing.
  if (of_dump && (header.nlmsg_flags & NLM_F_DUMP_INTR) != 0) dump_again_ = true;
  switch (header.nlmsg_type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      on_link(header);
      break;
    case NLMSG_ERROR:
      if (of_dump) dump_again_ = true;
      [[fallthrough]];
    case NLMSG_DONE:
      if (of_dump) on_dump_done();
      break;
    default:
      break;
  }
}

void LinkMonitor::on_link(const nlmsghdr& header) {
  const auto& info = *static_cast<const ifinfomsg*>(NLMSG_DATA(&header));
  // A bridge reports its ports again under its own family; there, a "deletion" only means that one has left
  // it.
  if (info.ifi_family != AF_UNSPEC) return;
  if (header.nlmsg_type == RTM_DELLINK) {
    remove(info.ifi_index);
    return;
  }
  Link link{.index = info.ifi_index,
            .name = {},
            .up = (info.ifi_flags & IFF_UP) != 0,
            .carrier = (info.ifi_flags & IFF_LOWER_UP) != 0};
  auto rest = static_cast<int>(IFLA_PAYLOAD(&header));
  for (const rtattr* attribute = IFLA_RTA(&info); RTA_OK(attribute, rest);
       attribute = RTA_NEXT(attribute, rest)) {
    if (attribute->rta_type == IFLA_IFNAME) link.name = static_cast<const char*>(RTA_DATA(attribute));
    if (attribute->rta_type == IFLA_CARRIER_DOWN_COUNT) {
      link.carrier_downs = *static_cast<const std::uint32_t*>(RTA_DATA(attribute));
    }
  }
  const auto [known, is_new] = links_.try_emplace(link.index);
  const bool changed = is_new || known->second.link != link;
  if (!is_new) forget_name(known->second.link);
  by_name_[link.name] = link.index;
  known->second = {link, dump_};
  if (changed && telling_) on_change_(link, false);
}

/// Unless another link has it by now.
void LinkMonitor::forget_name(const Link& link) {
  const auto found = by_name_.find(link.name);
  if (found != by_name_.end() && found->second == link.index) by_name_.erase(found);
}

void LinkMonitor::on_dump_done() {
  dumping_ = false;
  if (std::exchange(dump_again_, false)) {
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
