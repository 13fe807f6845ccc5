#include "lifecycle/link_monitor.h"

#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/net_namespace.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
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
constexpr int kIdGroup = RTNLGRP_NSID;       // reports the ends of namespaces
// The kernel answers within the call that sends; the time only bounds what cannot happen.
constexpr timeval kIdTimeout{.tv_sec = 5, .tv_usec = 0};

Error refused(std::string_view what, int error) {
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("rtnetlink: {}: {}; without it the end of a guest would go unnoticed", what,
                                std::strerror(error))};
}

Error not_added(std::string_view what, int error) {
  return {
      .code = ErrorCode::kResourceExhausted,
      .detail = fmt::format(
          "The links of the network namespace cannot be watched: {}: {}{}.", what, std::strerror(error),
          error == EPERM || error == EACCES ? "; grant portwayd CAP_NET_ADMIN and CAP_NET_BROADCAST" : ""),
      .field = "netns"};
}

/// The id that a message about one is of.
NetnsId id_in(const nlmsghdr& header) {
  const char* attributes = reinterpret_cast<const char*>(&header) + NLMSG_SPACE(sizeof(rtgenmsg));
  auto rest = static_cast<int>(header.nlmsg_len) - static_cast<int>(NLMSG_SPACE(sizeof(rtgenmsg)));
  for (const auto* attribute = reinterpret_cast<const rtattr*>(attributes); RTA_OK(attribute, rest);
       attribute = RTA_NEXT(attribute, rest)) {
    if (attribute->rta_type == NETNSA_NSID) return *static_cast<const NetnsId*>(RTA_DATA(attribute));
  }
  return NetnsId::kNode;
}

/// The namespace that a message came from.
NetnsId sender_of(msghdr& message) {
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control != nullptr;
       control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_NETLINK || control->cmsg_type != NETLINK_LISTEN_ALL_NSID) continue;
    NetnsId netns = NetnsId::kNode;
    std::memcpy(&netns, CMSG_DATA(control), sizeof netns);
    return netns;
  }
  return NetnsId::kNode;
}

Fd open_socket(int flags) {
  return Fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, NETLINK_ROUTE));
}

/// RTM_GETLINK about the links of a namespace.
class LinkRequest {
 public:
  LinkRequest(NetnsId netns, std::uint16_t flags) {
    header_.nlmsg_len = NLMSG_LENGTH(sizeof body_);
    header_.nlmsg_type = RTM_GETLINK;
    header_.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
    body_.ifi_family = AF_UNSPEC;
    if (netns != NetnsId::kNode) add(IFLA_TARGET_NETNSID, &netns, sizeof netns);
  }

  void set_sequence(std::uint32_t sequence) { header_.nlmsg_seq = sequence; }
  /// About the one with this name, which is shorter than IFNAMSIZ.
  void set_name(std::string_view name) { add(IFLA_IFNAME, std::string(name).c_str(), name.size() + 1); }
  std::size_t size() const { return header_.nlmsg_len; }

 private:
  void add(std::uint16_t type, const void* value, std::size_t size) {
    char* const end = attributes_.data() + header_.nlmsg_len - NLMSG_LENGTH(sizeof body_);
    const rtattr attribute{static_cast<std::uint16_t>(RTA_LENGTH(size)), type};
    std::memcpy(end, &attribute, sizeof attribute);
    std::memcpy(end + RTA_LENGTH(0), value, size);
    header_.nlmsg_len += RTA_SPACE(size);
  }

  nlmsghdr header_{};
  ifinfomsg body_{};
  std::array<char, RTA_SPACE(sizeof(NetnsId)) + RTA_SPACE(IFNAMSIZ)> attributes_{};
};

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

Result<std::unique_ptr<LinkMonitor>> LinkMonitor::start(OnChange on_change, OnNamespaceGone on_namespace_gone,
                                                        Send send) {
  Fd socket = open_socket(SOCK_NONBLOCK);
  if (!socket) return refused("socket", errno);
  Fd ids = open_socket(0);
  if (!ids) return refused("socket", errno);
  if (::setsockopt(ids.get(), SOL_SOCKET, SO_RCVTIMEO, &kIdTimeout, sizeof kIdTimeout) < 0)
    return refused("SO_RCVTIMEO", errno);
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
  std::unique_ptr<LinkMonitor> monitor(new LinkMonitor(std::move(socket), std::move(ids),
                                                       std::move(on_change), std::move(on_namespace_gone),
                                                       std::move(send)));
  monitor->port_ = address.nl_pid;
  if (struct stat own{}; ::stat("/proc/thread-self/ns/net", &own) == 0) {
    monitor->own_ = {own.st_dev, own.st_ino};
  }
  if (auto read = monitor->read_first_dump(NetnsId::kNode); !read) return read.error();
  return monitor;
}

std::optional<Link> LinkMonitor::find(NetnsId netns, std::string_view name) const {
  const auto space = namespaces_.find(netns);
  if (space == namespaces_.end()) return std::nullopt;
  const auto found = space->second.by_name.find(std::string(name));
  return found == space->second.by_name.end() ? std::nullopt : find(netns, found->second);
}

std::optional<Link> LinkMonitor::find(NetnsId netns, int index) const {
  const auto space = namespaces_.find(netns);
  if (space == namespaces_.end()) return std::nullopt;
  const auto found = space->second.links.find(index);
  if (found == space->second.links.end()) return std::nullopt;
  return found->second.link;
}

// --- Namespaces.

Result<NetnsId> LinkMonitor::add_namespace(int netns_fd) {
  struct stat file {};
  if (::fstat(netns_fd, &file) != 0) return not_added("fstat", errno);
  if (std::pair(file.st_dev, file.st_ino) == own_) {
    return Error{.code = ErrorCode::kInvalidRequest,
                 .detail = "It is the node's own network namespace, which is watched anyway.",
                 .field = "netns"};
  }
  auto id = id_of(netns_fd);
  if (!id) return id;
  read();
  if (const auto known = namespaces_.find(*id); known != namespaces_.end()) {
    if (!known->second.id_given) return id;
    on_gone(*id);  // an earlier namespace had it
  }
  if (auto heard = hear_others(); !heard) return heard.error();
  namespaces_.try_emplace(*id);
  if (auto listed = read_first_dump(*id); !listed) {
    remove_namespace(*id);
    return listed.error();
  }
  return id;
}

void LinkMonitor::remove_namespace(NetnsId netns) {
  if (netns == NetnsId::kNode || namespaces_.erase(netns) == 0) return;
  wanted_.erase(netns);
  if (namespaces_.size() == 1) hear_no_others();
}

/// Only while there are others to watch: a node may have thousands of containers.
Result<void> LinkMonitor::hear_others() {
  if (hears_others_) return {};
  constexpr int kOn = 1;
  if (::setsockopt(socket_.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &kIdGroup, sizeof kIdGroup) != 0) {
    return not_added("RTNLGRP_NSID", errno);
  }
  hears_others_ = true;
  if (::setsockopt(socket_.get(), SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, &kOn, sizeof kOn) != 0) {
    const int error = errno;
    hear_no_others();
    return not_added("NETLINK_LISTEN_ALL_NSID", error);
  }
  return {};
}

/// Both, whatever the kernel answers: hear_others() sets both again.
void LinkMonitor::hear_no_others() {
  constexpr int kOff = 0;
  ::setsockopt(socket_.get(), SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, &kOff, sizeof kOff);
  ::setsockopt(socket_.get(), SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &kIdGroup, sizeof kIdGroup);
  hears_others_ = false;
}

LinkMonitor::IdAnswer LinkMonitor::ask_for_id(std::uint16_t type, std::uint16_t attribute,
                                              std::int32_t value) {
  struct alignas(NLMSG_ALIGNTO) Attribute {
    rtattr header;
    std::int32_t value;
  };
  struct {
    nlmsghdr header;
    rtgenmsg body;
    Attribute of;
    Attribute id;
  } request{};
  const bool gives = type == RTM_NEWNSID;
  request.header.nlmsg_len = static_cast<std::uint32_t>(sizeof request - (gives ? 0 : sizeof request.id));
  request.header.nlmsg_type = type;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  request.header.nlmsg_seq = ++id_request_;
  request.of = {{RTA_LENGTH(sizeof value), attribute}, value};
  request.id = {{RTA_LENGTH(sizeof value), NETNSA_NSID}, NETNSA_NSID_NOT_ASSIGNED};  // the kernel's choice
  if (send_to_kernel(ids_, &request, request.header.nlmsg_len) < 0) return {.error = errno};
  IdAnswer answer;
  for (;;) {
    alignas(nlmsghdr) std::array<char, 4096> buffer;
    const auto got = ::recv(ids_.get(), buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return {.error = errno == EAGAIN ? ETIMEDOUT : errno};
    const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
    for (auto rest = static_cast<unsigned>(got); NLMSG_OK(header, rest); header = NLMSG_NEXT(header, rest)) {
      if (header->nlmsg_seq != id_request_) continue;  // the rest of an answer that timed out
      if (header->nlmsg_type == RTM_NEWNSID) answer.id = id_in(*header);
      if (header->nlmsg_type == NLMSG_ERROR) {
        answer.error = -*static_cast<const int*>(NLMSG_DATA(header));
        return answer;
      }
    }
  }
}

/// Gives it one if it has none. Others may do so at the same time: the kernel itself does, for a link
/// between namespaces.
Result<NetnsId> LinkMonitor::id_of(int netns_fd) {
  for (bool given = false;; given = true) {
    const IdAnswer has = ask_for_id(RTM_GETNSID, NETNSA_FD, netns_fd);
    if (has.error != 0) return not_added("RTM_GETNSID", has.error);
    if (has.id != NetnsId::kNode) return has.id;
    if (given) return not_added("RTM_NEWNSID", EAGAIN);
    const int error = ask_for_id(RTM_NEWNSID, NETNSA_FD, netns_fd).error;
    if (error != 0 && error != EEXIST) return not_added("RTM_NEWNSID", error);
  }
}

bool LinkMonitor::is_gone(NetnsId netns) {
  return netns != NetnsId::kNode &&
         ask_for_id(RTM_GETNSID, NETNSA_NSID, static_cast<std::int32_t>(netns)).error == ENOENT;
}

/// The kernel changes an id first and reports that afterwards. So either message may be late, from before
/// the namespace was added. Both together report that another one has the id now.
void LinkMonitor::on_namespace_id(const nlmsghdr& header) {
  const NetnsId netns = id_in(header);
  const auto space = namespaces_.find(netns);
  if (netns == NetnsId::kNode || space == namespaces_.end()) return;
  const bool freed = header.nlmsg_type == RTM_DELNSID;
  (freed ? space->second.id_freed : space->second.id_given) = true;
  if (space->second.has_lost_id() || (freed && is_gone(netns))) return on_gone(netns);
  wanted_.insert(netns);
  request_next_dump();
}

void LinkMonitor::on_gone(NetnsId netns) {
  const auto gone = namespaces_.extract(netns);
  wanted_.erase(netns);
  if (namespaces_.size() == 1) hear_no_others();
  if (!gone.mapped().telling) return;  // add_namespace() will
  for (const auto& [index, known] : gone.mapped().links) on_change_(known.link, true);
  if (on_namespace_gone_) on_namespace_gone_(netns);
}

// --- Requests for links.

Result<void> LinkMonitor::request_dump(NetnsId netns) {
  LinkRequest request(netns, NLM_F_DUMP);
  request.set_sequence(++dump_);
  dumping_ = dump_again_ = false;
  dump_of_ = netns;
  wanted_.insert(netns);
  if (send_to_kernel(socket_, &request, request.size()) < 0) return refused("dump", errno);
  dumping_ = true;
  wanted_.erase(netns);
  asked_again_ = 0;
  return {};
}

/// One at a time: a socket has one dump. In turn: one that is refused each time does not keep the others
/// waiting.
void LinkMonitor::request_next_dump() {
  if (dumping_ || wanted_.empty()) return;
  auto next = wanted_.upper_bound(dump_of_);
  if (next == wanted_.end()) next = wanted_.begin();
  (void)request_dump(*next);
}

void LinkMonitor::refresh(NetnsId netns, std::string_view name) {
  if (name.size() >= IFNAMSIZ) return;
  LinkRequest request(netns, 0);
  request.set_name(name);
  // The kernel answers before send(2) returns, after everything that it has reported so far.
  (void)send_to_kernel(socket_, &request, request.size());
  read();
}

ssize_t LinkMonitor::send_to_kernel(const Fd& socket, const void* request, std::size_t size) const {
  return send_ ? send_(socket.get(), request, size) : ::send(socket.get(), request, size, 0);
}

void LinkMonitor::ask_again() {
  if (!dumping_) return request_next_dump();
  if (++asked_again_ >= kDumpStuckAfter) (void)request_dump(dump_of_);
}

Result<void> LinkMonitor::read_first_dump(NetnsId netns) {
  wanted_.insert(netns);
  bool asked = false;
  while (wanted_.contains(netns) || (dumping_ && dump_of_ == netns)) {
    if (!dumping_) {
      if (std::exchange(asked, true)) return refused("dump", EIO);
      if (auto requested = request_dump(netns); !requested) return requested;
    }
    pollfd readable{.fd = socket_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&readable, 1, kFirstDumpTimeoutMs) == 0) return refused("dump", ETIMEDOUT);
    read();
  }
  const auto space = namespaces_.find(netns);
  if (space == namespaces_.end()) return refused("dump", ENOENT);
  space->second.telling = true;
  return {};
}

// --- Messages.

void LinkMonitor::read() {
  alignas(nlmsghdr) std::array<char, 32 * 1024> buffer;
  for (;;) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(NetnsId))> control;
    iovec bytes{.iov_base = buffer.data(), .iov_len = buffer.size()};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const auto got = ::recvmsg(socket_.get(), &message, 0);
    if (got > 0) {
      on_messages(buffer.data(), static_cast<std::size_t>(got), sender_of(message));
    } else if (got < 0 && errno == ENOBUFS) {
      on_lost();
    } else if (got == 0 || errno != EINTR) {
      return;
    }
  }
}

/// Only a new dump shows the current state.
void LinkMonitor::on_lost() {
  for (const auto& [netns, space] : namespaces_) {
    if (dumping_ && netns == dump_of_) {
      dump_again_ = true;
    } else {
      wanted_.insert(netns);
    }
  }
  request_next_dump();
}

void LinkMonitor::on_messages(const char* data, std::size_t size, NetnsId netns) {
  auto* header = reinterpret_cast<const nlmsghdr*>(data);
  for (auto rest = static_cast<unsigned>(size); NLMSG_OK(header, rest); header = NLMSG_NEXT(header, rest)) {
    on_message(*header, netns);
  }
}

/// Excludes answers to another program's request with the same number.
bool LinkMonitor::is_of_dump(const nlmsghdr& header) const {
  return dumping_ && header.nlmsg_seq == dump_ && header.nlmsg_pid == port_;
}

void LinkMonitor::on_message(const nlmsghdr& header, NetnsId netns) {
  if (!namespaces_.contains(netns)) return;  // of namespaces that nobody added
  const bool of_dump = is_of_dump(header);
  // The kernel marks a dump as inconsistent if links changed meanwhile.
  if (of_dump && (header.nlmsg_flags & NLM_F_DUMP_INTR) != 0) dump_again_ = true;
  switch (header.nlmsg_type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      on_link(header, netns);
      break;
    case RTM_NEWNSID:
    case RTM_DELNSID:
      if (netns == NetnsId::kNode) on_namespace_id(header);  // others have ids of their own
      break;
    case NLMSG_ERROR:
    case NLMSG_DONE:
      if (of_dump) on_dump_end(header);
      break;
    default:
      break;
  }
}

void LinkMonitor::on_link(const nlmsghdr& header, NetnsId netns) {
  const auto& info = *static_cast<const ifinfomsg*>(NLMSG_DATA(&header));
  // A bridge reports its ports again under its own family; there, a "deletion" only means that the port
  // has left the bridge.
  if (info.ifi_family != AF_UNSPEC) return;
  if (header.nlmsg_type == RTM_DELLINK) {
    remove(netns, info.ifi_index);
    return;
  }
  Link link{.netns = netns,
            .index = info.ifi_index,
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
    // In an answer about another namespace, which comes from this one.
    if (attribute->rta_type == IFLA_TARGET_NETNSID) {
      link.netns = *static_cast<const NetnsId*>(RTA_DATA(attribute));
    }
  }
  const auto space = namespaces_.find(link.netns);
  if (space == namespaces_.end()) return;  // it was removed after the question
  const auto [known, is_new] = space->second.links.try_emplace(link.index);
  const bool changed = is_new || known->second.link != link;
  if (!is_new) forget_name(space->second, known->second.link);
  space->second.by_name[link.name] = link.index;
  known->second.link = link;
  // Other messages do not count as listed: one about a link that is already gone may have waited in the
  // socket. A link that is added during the dump makes it an interrupted one.
  if (is_of_dump(header)) known->second.dump = dump_;
  if (changed && space->second.telling) on_change_(link, false);
}

/// Unless another link has taken it.
void LinkMonitor::forget_name(Namespace& space, const Link& link) {
  const auto found = space.by_name.find(link.name);
  if (found != space.by_name.end() && found->second == link.index) space.by_name.erase(found);
}

void LinkMonitor::on_dump_end(const nlmsghdr& header) {
  dumping_ = false;
  const NetnsId netns = dump_of_;
  // Both kinds of message begin with an error number; 0: none.
  const bool failed =
      header.nlmsg_len >= NLMSG_LENGTH(sizeof(int)) && *static_cast<const int*>(NLMSG_DATA(&header)) < 0;
  if (!namespaces_.contains(netns)) return request_next_dump();  // it was removed meanwhile
  if (failed || header.nlmsg_type == NLMSG_ERROR) {
    if (!is_gone(netns)) {
      wanted_.insert(netns);  // not at once: it may fail again
      return;
    }
    on_gone(netns);
    return request_next_dump();
  }
  if (dump_again_) {
    (void)request_dump(netns);
    return;
  }
  std::vector<int> gone;
  for (const auto& [index, known] : namespaces_.at(netns).links) {
    if (known.dump != dump_) gone.push_back(index);
  }
  request_next_dump();
  for (const int index : gone) remove(netns, index);
}

void LinkMonitor::remove(NetnsId netns, int index) {
  const auto space = namespaces_.find(netns);
  if (space == namespaces_.end()) return;
  const auto found = space->second.links.find(index);
  if (found == space->second.links.end()) return;
  const Link link = found->second.link;
  space->second.links.erase(found);
  forget_name(space->second, link);
  if (space->second.telling) on_change_(link, true);
}

}  // namespace portway
