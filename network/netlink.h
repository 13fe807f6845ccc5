// Requests to the kernel's routing socket (rtnetlink(7)), one at a time: sent, waited for, answered. Nothing
// is subscribed to. A request takes tens of microseconds; a dump as long as its list.
//
// The network namespace is that of the thread that called open(). One thread at a time.
#pragma once

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"

namespace portway {

/// A message under construction: the header, the body of its type (rtmsg, tcmsg, fib_rule_hdr), then
/// attributes. What does not fit is a mistake of ours, and asserted.
class NetlinkMessage {
 public:
  template <class Body>
  NetlinkMessage(std::uint16_t type, std::uint16_t flags, const Body& body) {
    start(type, flags, &body, sizeof body);
  }

  void add(std::uint16_t type, const void* data, std::size_t size);
  void add(std::uint16_t type, std::uint32_t value) { add(type, &value, sizeof value); }
  void add(std::uint16_t type, const IpAddress& address);
  void add(std::uint16_t type, std::string_view text);  // with the NUL that the kernel wants
  void add_byte(std::uint16_t type, std::uint8_t value) { add(type, &value, sizeof value); }

  /// Attributes until end_nested() are inside this one.
  void begin_nested(std::uint16_t type);
  void end_nested();

  nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(bytes_.data()); }

 private:
  void start(std::uint16_t type, std::uint16_t flags, const void* body, std::size_t size);

  alignas(nlmsghdr) std::array<char, 2048> bytes_{};  // the longest has a packet filter
  std::size_t nested_ = 0;                            // where the open nested attribute starts
};

/// Calls `on_attribute` for each attribute of a chain of `size` bytes; truncated ones are skipped.
void for_each_attribute(const void* attributes, std::size_t size,
                        const std::function<void(const rtattr&)>& on_attribute);
/// The same for the attributes behind the body of a message.
void for_each_attribute(const nlmsghdr& message, std::size_t body_size,
                        const std::function<void(const rtattr&)>& on_attribute);
std::uint32_t attribute_number(const rtattr& attribute);   // 0 when it is no 32-bit number
std::string_view attribute_text(const rtattr& attribute);  // without the NUL; valid as long as the message

/// The body of a message that was received, with zeros where the message is too short.
template <class Body>
const Body& netlink_body(const nlmsghdr& message) {
  static const Body kNone{};
  if (message.nlmsg_len < NLMSG_LENGTH(sizeof(Body))) return kNone;
  return *static_cast<const Body*>(NLMSG_DATA(&message));
}

class Netlink {
 public:
  static Result<std::unique_ptr<Netlink>> open();
  Netlink(const Netlink&) = delete;
  Netlink& operator=(const Netlink&) = delete;

  /// True when the kernel did it, false when its answer was one of the errors in `expected` (EEXIST, ENOENT,
  /// ...). Any other is kResourceExhausted, whose detail begins with `what`; it names the capability if
  /// one is missing.
  Result<bool> request(NetlinkMessage& message, std::string_view what,
                       std::initializer_list<int> expected = {});

  /// Of a request that is answered with a message: calls `on_message` with it. The errno of the kernel's
  /// answer, 0 if there is none; the caller interprets it.
  int query(NetlinkMessage& message, const std::function<void(const nlmsghdr&)>& on_message);

  /// Calls `on_message` for each message of the answer, which ends consistent. An error in `expected` is an
  /// empty list. `on_restart` comes first, and again when the list changed meanwhile and is read again.
  Result<void> dump(NetlinkMessage& message, std::string_view what, const std::function<void()>& on_restart,
                    const std::function<void(const nlmsghdr&)>& on_message,
                    std::initializer_list<int> expected = {});

 private:
  explicit Netlink(Fd socket) : socket_(std::move(socket)) {}

  /// The answer to one message: its end, and the errno and text in it.
  struct Answer {
    int error = 0;
    std::string text = {};
    bool interrupted = false;  // a dump whose list changed meanwhile
  };
  Answer exchange(NetlinkMessage& message, const std::function<void(const nlmsghdr&)>& on_message);
  /// True when the answer has ended.
  bool read(std::uint32_t sequence, Answer& answer, const std::function<void(const nlmsghdr&)>& on_message);

  const Fd socket_;
  std::uint32_t sequence_ = 0;
};

/// A network device of the socket's namespace.
struct NetworkDevice {
  std::string name;
  unsigned type = 0;      // ARPHRD_*
  int master = 0;         // the interface index of what it is a port of; 0: nothing
  std::string kind = {};  // "bridge", "veth", ...; empty if the driver has none
};
/// Nothing when there is no such interface index.
std::optional<NetworkDevice> find_device(Netlink& netlink, int index);

}  // namespace portway
