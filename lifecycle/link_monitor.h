// Which network devices exist and have a carrier, from rtnetlink(7): how the node learns that a guest's tap
// is gone.
//
// No socket event tells of it: an established connection stays writable and a pending connect stays pending.
// The kernel's link messages arrive within a millisecond of a virtual machine's end. Everything is keyed on
// the interface index: a device that is made anew under the same name is another device.
//
// Runs on one Asio io_context, whose thread makes all calls and gets all callbacks.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "config/error.h"

struct nlmsghdr;

namespace portway {

struct Link {
  int index = 0;
  std::string name;
  bool carrier = false;  // IFF_LOWER_UP: for a tap, that a process holds it open and it is up

  friend bool operator==(const Link&, const Link&) = default;
};

class LinkMonitor {
 public:
  /// Something about the link changed, or (`gone`) it was deleted.
  using OnChange = std::function<void(const Link& link, bool gone)>;

  /// Reads all links, then tells of changes until destroyed. The links are known when it returns; what exists
  /// then is not told. kResourceExhausted where the netlink socket is refused.
  static Result<std::unique_ptr<LinkMonitor>> start(boost::asio::io_context& context, OnChange on_change);
  LinkMonitor(const LinkMonitor&) = delete;
  LinkMonitor& operator=(const LinkMonitor&) = delete;

  std::optional<Link> find(std::string_view name) const;
  std::optional<Link> find(int index) const;

 private:
  struct Known {
    Link link;
    std::uint32_t dump = 0;  // the last dump that listed it
  };

  LinkMonitor(boost::asio::io_context& context, int socket, OnChange on_change);

  Result<void> request_dump();
  Result<void> read_first_dump();
  void wait();
  void read();
  void on_messages(const char* data, std::size_t size);
  void on_message(const nlmsghdr& header);
  void on_link(const nlmsghdr& header);
  void on_dump_done();
  void remove(int index);

  boost::asio::posix::stream_descriptor socket_;
  const std::shared_ptr<void> alive_ =
      std::make_shared<char>();  // a callback already queued looks here first
  const OnChange on_change_;
  std::unordered_map<int, Known> links_;
  std::uint32_t dump_ = 0;  // sequence number of the dump under way or of the last one
  bool dumping_ = false;
  bool dump_again_ = false;  // messages were lost while one was under way
  bool telling_ = false;     // the first dump is done
};

}  // namespace portway
