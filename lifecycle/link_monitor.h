// Which network devices exist and have a carrier, from rtnetlink(7). It shows when a guest's tap is gone.
//
// No socket event does: an established connection stays writable and a pending connect stays pending. The
// kernel's link messages arrive within a millisecond of a virtual machine's end. Everything is keyed on
// the interface index: a device created again under the same name is another device.
//
// Messages get lost, and a carrier may be back before the next one. Every message has the kernel's count
// of carrier losses, which shows that.
//
// It starts with the node's network namespace. Others can be added: the one socket reports the links of
// all (NETLINK_LISTEN_ALL_NSID, Linux 4.2), and which namespaces are gone. Names and indices are each
// namespace's own: a thousand may have a tap0 with index 2.
//
// Belongs to one thread, which calls read() when descriptor() is readable; read() makes the callbacks.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/fd.h"

struct nlmsghdr;

namespace portway {

/// The kernel's number for another network namespace, as the node's sees it (ip-netns(8), "nsid"). It is
/// given to the next namespace once this one is gone.
enum class NetnsId : std::int32_t {
  kNode = -1,     // its own
  kUnknown = -2,  // one that is not watched
};

/// An interface, whatever its name is.
struct LinkId {
  NetnsId netns = NetnsId::kNode;
  std::int32_t index = 0;  // 0: none

  friend bool operator==(const LinkId&, const LinkId&) = default;
  friend bool operator<(const LinkId& a, const LinkId& b) {
    return std::pair(a.netns, a.index) < std::pair(b.netns, b.index);
  }
};

struct Link {
  NetnsId netns = NetnsId::kNode;
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
  /// A namespace that was added is gone. Its links were reported as gone before; it is no longer watched.
  using OnNamespaceGone = std::function<void(NetnsId netns)>;
  using Send = std::function<ssize_t(int socket, const void* bytes, std::size_t size)>;  // send(2)

  /// Reads all links before it returns; links that exist by then are not reported. kResourceExhausted if
  /// the netlink socket is refused. The node's namespace is that of the calling thread. Callbacks must not
  /// add namespaces. `send` is for tests with a kernel that refuses.
  static Result<std::unique_ptr<LinkMonitor>> start(OnChange on_change,
                                                    OnNamespaceGone on_namespace_gone = nullptr,
                                                    Send send = nullptr);
  LinkMonitor(const LinkMonitor&) = delete;
  LinkMonitor& operator=(const LinkMonitor&) = delete;

  /// Readable if read() has something to do.
  int descriptor() const { return socket_.get(); }
  /// Reports what has changed since the last call. Never blocks.
  void read();
  /// As read(), and also brings the device with this name up to date: carrier messages may be up to a
  /// second late (the kernel's linkwatch).
  void refresh(NetnsId netns, std::string_view name);
  void refresh(std::string_view name) { refresh(NetnsId::kNode, name); }

  /// Watches another namespace too, after read(). Its links are known when it returns; those are not
  /// reported. The same id again if it is watched already. kResourceExhausted if the kernel refuses, e.g.
  /// without CAP_NET_ADMIN and CAP_NET_BROADCAST; kInvalidRequest for the node's own.
  ///
  /// The descriptor is needed for the call only. While the caller keeps one open, the namespace exists and
  /// has this id. Otherwise it can end, which is reported; but if messages are lost just then, another
  /// namespace that gets the id can pass for it.
  Result<NetnsId> add_namespace(int netns_fd);
  /// Forgets it and its links, without reporting anything. Nothing if it is not watched.
  void remove_namespace(NetnsId netns);

  /// Messages were lost, and the new list of all links is not complete yet. Until then no link counts as
  /// gone.
  bool unsettled() const { return dumping_ || !wanted_.empty(); }
  /// Call it now and then while unsettled(): asks for the list again if the kernel refused it, or started
  /// it and got stuck.
  void ask_again();

  std::optional<Link> find(NetnsId netns, std::string_view name) const;
  std::optional<Link> find(NetnsId netns, int index) const;
  std::optional<Link> find(std::string_view name) const { return find(NetnsId::kNode, name); }
  std::optional<Link> find(int index) const { return find(NetnsId::kNode, index); }

 private:
  struct Known {
    Link link;
    std::uint32_t dump = 0;  // the last dump that listed it
  };

  struct Namespace {
    std::unordered_map<int, Known> links = {};
    std::unordered_map<std::string, int> by_name = {};
    bool telling = false;  // the first dump is done: report changes
    // What was reported of its id since it was added.
    bool id_freed = false;
    bool id_given = false;

    bool has_lost_id() const { return id_freed && id_given; }
  };
  /// What the kernel answers about a namespace's id.
  struct IdAnswer {
    int error = 0;  // errno
    NetnsId id = NetnsId::kNode;
  };

  LinkMonitor(Fd socket, Fd ids, OnChange on_change, OnNamespaceGone on_namespace_gone, Send send)
      : socket_(std::move(socket)),
        ids_(std::move(ids)),
        on_change_(std::move(on_change)),
        on_namespace_gone_(std::move(on_namespace_gone)),
        send_(std::move(send)) {}

  ssize_t send_to_kernel(const Fd& socket, const void* request, std::size_t size) const;
  Result<void> hear_others();
  void hear_no_others();
  IdAnswer ask_for_id(std::uint16_t type, std::uint16_t attribute, std::int32_t value);
  Result<NetnsId> id_of(int netns_fd);
  bool is_gone(NetnsId netns);
  Result<void> request_dump(NetnsId netns);
  void request_next_dump();
  Result<void> read_first_dump(NetnsId netns);
  bool is_of_dump(const nlmsghdr& header) const;
  void on_lost();
  void on_messages(const char* data, std::size_t size, NetnsId netns);
  void on_message(const nlmsghdr& header, NetnsId netns);
  void on_link(const nlmsghdr& header, NetnsId netns);
  void on_namespace_id(const nlmsghdr& header);
  void on_dump_end(const nlmsghdr& header);
  void on_gone(NetnsId netns);
  static void forget_name(Namespace& space, const Link& link);
  void remove(NetnsId netns, int index);

  const Fd socket_;
  const Fd ids_;  // for requests about ids, which are answered at once
  const OnChange on_change_;
  const OnNamespaceGone on_namespace_gone_;
  const Send send_;
  std::map<NetnsId, Namespace> namespaces_ = {{NetnsId::kNode, {}}};  // and those that were added
  std::pair<dev_t, ino_t> own_;       // the file of the node's namespace; 0: unknown
  bool hears_others_ = false;         // messages of other namespaces
  std::uint32_t port_ = 0;            // the kernel's number of the socket
  std::uint32_t id_request_ = 0;      // sequence number of the last request about an id
  std::uint32_t dump_ = 0;            // sequence number of the current or last dump
  NetnsId dump_of_ = NetnsId::kNode;  // what it lists
  bool dumping_ = false;
  std::set<NetnsId> wanted_;  // still to be listed: messages were lost, or a dump was refused or failed
  int asked_again_ = 0;       // during a dump
  bool dump_again_ = false;   // messages were lost during a dump
};

}  // namespace portway
