// Which network devices exist and have a carrier, from rtnetlink(7). It shows when a guest's tap is gone.
//
// No socket event does: an established connection stays writable and a pending connect stays pending. The
// kernel's link messages arrive within a millisecond of a virtual machine's end. Everything is keyed on
// the interface index: a device created again under the same name is another device.
//
// Messages get lost, and a carrier may be back before the next one. Every message has the kernel's count
// of carrier losses, which shows that.
//
// Belongs to one thread, which calls read() when descriptor() is readable; read() makes the callbacks.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/fd.h"

struct nlmsghdr;

namespace portway {

struct Link {
  int index = 0;
  std::string name;
  bool up = false;       // IFF_UP: somebody has set it up
  bool carrier = false;  // IFF_LOWER_UP: it is up and, for a tap, a process holds it open
  // How often it has lost its carrier (IFLA_CARRIER_DOWN_COUNT, Linux 4.16); absent if the kernel does not
  // report it. A tap's count also changes while it is down and sends no messages.
  std::optional<std::uint32_t> carrier_downs = std::nullopt;
  bool loopback = false;
  int master = 0;                // the interface that it belongs to; 0: none
  std::string master_kind = {};  // "bridge", "bond", "vrf", ...

  friend bool operator==(const Link&, const Link&) = default;
};

class LinkMonitor {
 public:
  /// Something about the link changed, or (`gone`) it was deleted.
  using OnChange = std::function<void(const Link& link, bool gone)>;
  using Send = std::function<ssize_t(int socket, const void* bytes, std::size_t size)>;  // send(2)

  /// Reads all links before it returns; links that exist by then are not reported. kResourceExhausted if
  /// the netlink socket is refused. `send` is for tests with a kernel that refuses.
  static Result<std::unique_ptr<LinkMonitor>> start(OnChange on_change, Send send = nullptr);
  LinkMonitor(const LinkMonitor&) = delete;
  LinkMonitor& operator=(const LinkMonitor&) = delete;

  /// Readable if read() has something to do.
  int descriptor() const { return socket_.get(); }
  /// Reports what has changed since the last call. Never blocks.
  void read();
  /// As read(), and also brings the device with this name up to date: carrier messages may be up to a
  /// second late (the kernel's linkwatch).
  void refresh(std::string_view name);

  /// Messages were lost, and the new list of all links is not complete yet. Until then no link counts as
  /// gone.
  bool unsettled() const { return dumping_ || dump_wanted_; }
  /// Call it now and then while unsettled(): asks for the list again if the kernel refused it, or started
  /// it and got stuck.
  void ask_again();

  std::optional<Link> find(std::string_view name) const;
  std::optional<Link> find(int index) const;

 private:
  struct Known {
    Link link;
    std::uint32_t dump = 0;  // the last dump that listed it
  };

  LinkMonitor(Fd socket, OnChange on_change, Send send)
      : socket_(std::move(socket)), on_change_(std::move(on_change)), send_(std::move(send)) {}

  ssize_t send_to_kernel(const void* request, std::size_t size) const;
  Result<void> request_dump();
  Result<void> read_first_dump();
  bool is_of_dump(const nlmsghdr& header) const;
  void on_messages(const char* data, std::size_t size);
  void on_message(const nlmsghdr& header);
  void on_link(const nlmsghdr& header);
  void on_dump_end(const nlmsghdr& header);
  void forget_name(const Link& link);
  void remove(int index);

  const Fd socket_;
  const OnChange on_change_;
  const Send send_;
  std::unordered_map<int, Known> links_;
  std::unordered_map<std::string, int> by_name_;
  std::uint32_t port_ = 0;  // the kernel's number of the socket
  std::uint32_t dump_ = 0;  // sequence number of the current or last dump
  bool dumping_ = false;
  bool dump_wanted_ = false;  // a dump was refused or failed
  int asked_again_ = 0;       // during a dump
  bool dump_again_ = false;   // messages were lost during a dump
  bool telling_ = false;      // the first dump is done: report changes
};

}  // namespace portway
