#include "network/netlink.h"

#include <fmt/format.h>
#include <linux/if_link.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

namespace portway {
namespace {

// The kernel answers within the call that sends; the time only bounds what cannot happen.
constexpr timeval kAnswerTimeout{.tv_sec = 5, .tv_usec = 0};
constexpr int kDumpAttempts = 10;

Error refused(std::string_view what, int error, std::string_view text) {
  std::string detail = fmt::format("{}: {}", what, std::strerror(error));
  if (!text.empty()) detail += fmt::format(" ({})", text);
  if (error == EPERM) detail += "; it needs CAP_NET_ADMIN";
  if (error == EAFNOSUPPORT) detail += "; this address family is disabled on the node";
  if (error == EOPNOTSUPP) detail += "; the kernel is built without it";
  return {.code = ErrorCode::kResourceExhausted, .detail = std::move(detail)};
}

bool is_one_of(int error, std::initializer_list<int> list) {
  return std::find(list.begin(), list.end(), error) != list.end();
}

/// The kernel's own words behind an error (extended acknowledgement, Linux 4.12).
std::string error_text(const nlmsghdr& message) {
  std::string text;
  if ((message.nlmsg_flags & NLM_F_ACK_TLVS) == 0) return text;
  const auto& body = netlink_body<nlmsgerr>(message);
  std::size_t before = sizeof body;
  if ((message.nlmsg_flags & NLM_F_CAPPED) == 0) before += body.msg.nlmsg_len - sizeof(nlmsghdr);
  for_each_attribute(message, before, [&](const rtattr& attribute) {
    if (attribute.rta_type == NLMSGERR_ATTR_MSG) text = attribute_text(attribute);
  });
  return text;
}

}  // namespace

void NetlinkMessage::start(std::uint16_t type, std::uint16_t flags, const void* body, std::size_t size) {
  assert(NLMSG_SPACE(size) <= bytes_.size());
  header().nlmsg_type = type;
  header().nlmsg_flags = static_cast<__u16>(NLM_F_REQUEST | flags);
  header().nlmsg_len = static_cast<__u32>(NLMSG_SPACE(size));
  std::memcpy(bytes_.data() + NLMSG_HDRLEN, body, size);
}

void NetlinkMessage::add(std::uint16_t type, const void* data, std::size_t size) {
  const std::size_t at = header().nlmsg_len;
  assert(at + RTA_SPACE(size) <= bytes_.size());
  const rtattr attribute{.rta_len = static_cast<unsigned short>(RTA_LENGTH(size)), .rta_type = type};
  std::memcpy(bytes_.data() + at, &attribute, sizeof attribute);
  if (size > 0) std::memcpy(bytes_.data() + at + RTA_LENGTH(0), data, size);
  header().nlmsg_len += static_cast<__u32>(RTA_SPACE(size));
}

void NetlinkMessage::add(std::uint16_t type, const IpAddress& address) {
  if (address.is_v4()) {
    const auto bytes = address.to_v4().to_bytes();
    add(type, bytes.data(), bytes.size());
  } else {
    const auto bytes = address.to_v6().to_bytes();
    add(type, bytes.data(), bytes.size());
  }
}

void NetlinkMessage::add(std::uint16_t type, std::string_view text) {
  const std::string terminated(text);
  add(type, terminated.c_str(), terminated.size() + 1);
}

void NetlinkMessage::begin_nested(std::uint16_t type) {
  nested_ = header().nlmsg_len;
  add(type, nullptr, 0);
}

void NetlinkMessage::end_nested() {
  reinterpret_cast<rtattr*>(bytes_.data() + nested_)->rta_len =
      static_cast<unsigned short>(header().nlmsg_len - nested_);
}

void for_each_attribute(const void* attributes, std::size_t size,
                        const std::function<void(const rtattr&)>& on_attribute) {
  auto rest = static_cast<int>(size);
  for (auto* attribute = static_cast<const rtattr*>(attributes); RTA_OK(attribute, rest);
       attribute = RTA_NEXT(attribute, rest)) {
    on_attribute(*attribute);
  }
}

void for_each_attribute(const nlmsghdr& message, std::size_t body_size,
                        const std::function<void(const rtattr&)>& on_attribute) {
  const std::size_t start = NLMSG_SPACE(body_size);
  if (message.nlmsg_len <= start) return;
  for_each_attribute(reinterpret_cast<const char*>(&message) + start, message.nlmsg_len - start,
                     on_attribute);
}

std::uint32_t attribute_number(const rtattr& attribute) {
  std::uint32_t value = 0;
  if (RTA_PAYLOAD(&attribute) == sizeof value) std::memcpy(&value, RTA_DATA(&attribute), sizeof value);
  return value;
}

std::string_view attribute_text(const rtattr& attribute) {
  const auto* text = static_cast<const char*>(RTA_DATA(&attribute));
  return {text, strnlen(text, RTA_PAYLOAD(&attribute))};
}

Result<std::unique_ptr<Netlink>> Netlink::open() {
  Fd opened(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!opened) return refused("rtnetlink socket", errno, "");
  const int socket = opened.get();
  constexpr int kOn = 1;
  // Each makes something better and none is needed: the kernel's words in errors, and (Linux 4.20) dumps that
  // are filtered in the kernel.
  ::setsockopt(socket, SOL_NETLINK, NETLINK_EXT_ACK, &kOn, sizeof kOn);
  ::setsockopt(socket, SOL_NETLINK, NETLINK_CAP_ACK, &kOn, sizeof kOn);
  ::setsockopt(socket, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &kOn, sizeof kOn);
  if (::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &kAnswerTimeout, sizeof kAnswerTimeout) != 0) {
    return refused("rtnetlink SO_RCVTIMEO", errno, "");
  }
  return std::unique_ptr<Netlink>(new Netlink(std::move(opened)));
}

Result<bool> Netlink::request(NetlinkMessage& message, std::string_view what,
                              std::initializer_list<int> expected) {
  message.header().nlmsg_flags |= NLM_F_ACK;
  const Answer answer = exchange(message, [](const nlmsghdr&) {});
  if (answer.error == 0) return true;
  if (is_one_of(answer.error, expected)) return false;
  return refused(what, answer.error, answer.text);
}

int Netlink::query(NetlinkMessage& message, const std::function<void(const nlmsghdr&)>& on_message) {
  message.header().nlmsg_flags |= NLM_F_ACK;  // which comes after the message
  return exchange(message, on_message).error;
}

Result<void> Netlink::dump(NetlinkMessage& message, std::string_view what,
                           const std::function<void()>& on_restart,
                           const std::function<void(const nlmsghdr&)>& on_message,
                           std::initializer_list<int> expected) {
  message.header().nlmsg_flags |= NLM_F_DUMP;
  for (int attempt = 0; attempt < kDumpAttempts; ++attempt) {
    on_restart();
    const Answer answer = exchange(message, on_message);
    if (answer.error != 0) {
      if (is_one_of(answer.error, expected)) return {};
      return refused(what, answer.error, answer.text);
    }
    if (!answer.interrupted) return {};
  }
  return refused(what, EAGAIN, "the list changes all the time");
}

Netlink::Answer Netlink::exchange(NetlinkMessage& message,
                                  const std::function<void(const nlmsghdr&)>& on_message) {
  Answer answer;
  message.header().nlmsg_seq = ++sequence_;
  if (::send(socket_.get(), &message.header(), message.header().nlmsg_len, 0) < 0) {
    answer.error = errno;
    return answer;
  }
  while (!read(sequence_, answer, on_message)) {
  }
  return answer;
}

bool Netlink::read(std::uint32_t sequence, Answer& answer,
                   const std::function<void(const nlmsghdr&)>& on_message) {
  alignas(nlmsghdr) std::array<char, 32 * 1024> buffer;  // the kernel cuts dumps for it
  const auto got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
  if (got < 0) {
    if (errno == EINTR) return false;
    answer.error = errno == EAGAIN ? ETIMEDOUT : errno;
    return true;
  }
  const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
  for (auto rest = static_cast<unsigned>(got); NLMSG_OK(header, rest); header = NLMSG_NEXT(header, rest)) {
    if (header->nlmsg_seq != sequence) continue;  // the rest of an answer that timed out
    if ((header->nlmsg_flags & NLM_F_DUMP_INTR) != 0) answer.interrupted = true;
    if (header->nlmsg_type == NLMSG_DONE) {
      answer.error = -netlink_body<int>(*header);
      return true;
    }
    if (header->nlmsg_type == NLMSG_ERROR) {
      answer.error = -netlink_body<nlmsgerr>(*header).error;
      answer.text = error_text(*header);
      return true;
    }
    on_message(*header);
  }
  return false;
}

namespace {

std::string kind_of(const rtattr& link_info) {
  std::string kind;
  for_each_attribute(RTA_DATA(&link_info), RTA_PAYLOAD(&link_info), [&kind](const rtattr& attribute) {
    if (attribute.rta_type == IFLA_INFO_KIND) kind = attribute_text(attribute);
  });
  return kind;
}

}  // namespace

std::optional<NetworkDevice> find_device(Netlink& netlink, int index) {
  ifinfomsg body{};
  body.ifi_index = index;
  NetlinkMessage message(RTM_GETLINK, 0, body);
  NetworkDevice device;
  const int error = netlink.query(message, [&device](const nlmsghdr& header) {
    device.type = netlink_body<ifinfomsg>(header).ifi_type;
    for_each_attribute(header, sizeof(ifinfomsg), [&device](const rtattr& attribute) {
      if (attribute.rta_type == IFLA_IFNAME) device.name = attribute_text(attribute);
      if (attribute.rta_type == IFLA_MASTER) device.master = static_cast<int>(attribute_number(attribute));
      if (attribute.rta_type == IFLA_LINKINFO) device.kind = kind_of(attribute);
    });
  });
  if (error != 0) return std::nullopt;
  return device;
}

}  // namespace portway
