// The return path of connections that reach a guest from the client's own address (IP_TRANSPARENT). The
// guest answers to an address that is not the node's, and the answers must still come to the node's own
// stack. This is what conntrack does for DNAT, without netfilter.
//
// On each guest's tap, a packet program marks the answers to the node's connections, and ICMP errors about
// them (steer.bpf.c). The node has, per address family:
//     5108: iif lo fwmark 0x20000000/0x20000000 lookup main
//     5109: fwmark 0x20000000/0x20000000 lookup 5210
//     local default dev lo table 5210
// If another program's rules come earlier, ours take lower preferences at start: they concern only our
// packets. The preferences, the table and the mark's bit are settings. The first rule is for the kernel's
// check of the source address: with src_valid_mark that lookup uses the packet's mark too, and would take
// every address for this node's. The cost does not grow with the number of forwards. Packets that belong
// to no connection of the node are not affected: the guest's own connections and routed traffic take their
// usual way.
//
// If the kernel accepts no program (no CAP_BPF, an old kernel, lockdown), each forwarded port of a guest
// has a rule instead:
//     5109: iif TAP from GUEST ipproto tcp sport PORT lookup 5210
// Each rule costs every packet of the node a little, so there are at most kPortsMax of them. The guest's
// own connections from a forwarded port number do not work, nor do routed connections to it. The rule
// would deliver the SYNs of such connections to the node, and a service on all addresses would answer
// them. A classic filter on the tap, which needs no CAP_BPF, drops them (syn_filter.h). In this case there
// is no source guard, and ICMP errors do not come back: no rule can look at what they quote, and a rule
// for all ICMP would take the guest's own.
//
// The program is attached by tcx (Linux 6.6), else by a clsact filter. Either way, other programs and
// filters on the tap still see the packets. The tcx program of a killed daemon ends with it; a filter
// stays until the next start. In between, what a guest still sends on connections that the kernel has yet
// to end goes where it is addressed. The program of the next start finds their sockets again.
//
// The same program is the source guard: it drops what one guest sends from another guest's address
// (steer.bpf.c). If clients' addresses are not wanted, the guard can run alone, without rules and route.
//
// A guest may be in another network namespace than the node's. Then all of this is made there, for the first
// guest of the namespace, and removed with the last; only the routes differ (return_path_site.h). Links and
// addresses are each namespace's own: a thousand of them may have a tap with index 2 and a guest with the
// same address. Nothing of it keeps a namespace or a link alive, except for the reference to the namespace,
// which goes with its last guest.
//
// A tap may be a port of a bridge, where other guests' taps are ports too. The answers come into the stack by
// the bridge: the program steers there, or the rules name it. The source guard, or the filter of SYNs, is on
// the tap. Only what the guest sends to the bridge itself comes into the stack: if its route to the client
// leads to another machine on the bridge, its answers are lost, and nothing here can know.
//
// Everything that this class creates is recognisable (protocol 210, filter "portway_steer"). What a
// predecessor left behind is removed at start, in a namespace of guests with the first one there. A second
// instance in the same network namespace does not start, so that the two do not remove each other's parts.
//
// Control thread. The node's own network namespace is that of the thread that calls start(); the same thread
// makes the other calls, because the kernel attaches to a link of the caller's namespace. Guests in other
// namespaces need CAP_SYS_ADMIN (namespace.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"
#include "network/namespace.h"
#include "network/return_path_site.h"
#include "network/steer_program.h"

namespace portway {

/// What add() has set up for a guest. The link's next add() has another generation, and calls that name an
/// earlier one have no effect: a late clean-up of an ended session cannot hit the next session on its tap.
struct Way {
  int link = 0;
  std::uint64_t generation = 0;
  std::uint32_t space = 0;  // of its network namespace while that has guests: RoutedConnections asks for it

  friend bool operator==(const Way&, const Way&) = default;
};

class ReturnPath {
 public:
  static constexpr std::size_t kPortsMax = ReturnPathSite::kPortsMax;
  using Kind = ReturnPathKind;

  /// kResourceExhausted if the node cannot have it; the detail says why, and what would help (CAP_BPF and
  /// CAP_NET_ADMIN, a newer kernel). Then nothing was set up. It also tries to bind a socket to an address
  /// that is not the node's: if that works, a later bind is refused only if its port is in use. kProgram
  /// falls back to rules if the kernel accepts no program; kRules uses rules whatever the kernel can do.
  /// kProgram is also refused if a routing rule of another program uses the mark's bit. `program`: one with
  /// the mark of the settings, loaded before; null: it loads one.
  static Result<std::unique_ptr<ReturnPath>> start(Kind wanted = Kind::kProgram,
                                                   const ReturnPathSettings& settings = {},
                                                   std::unique_ptr<SteerProgram> program = nullptr);

  /// Removes everything.
  ~ReturnPath() = default;
  ReturnPath(const ReturnPath&) = delete;
  ReturnPath& operator=(const ReturnPath&) = delete;

  Kind kind() const { return kind_; }
  bool has_guard() const { return program_ != nullptr; }
  /// For the relay, as long as this object lives; any thread. Null if there is no program.
  const RoutedConnections* routed() const { return program_ ? &program_->routed() : nullptr; }
  /// Packets that the guard has dropped so far.
  std::uint64_t forged_packets() const { return program_ ? program_->forged_packets() : 0; }
  /// Why there is no program; empty if there is one.
  const std::string& why_rules() const { return why_rules_; }

  /// From now on the guest's answers come back (not with kGuardOnly), and no other guest can send from its
  /// addresses: one, or one of each family. A link has one guest: a second call replaces its addresses
  /// and removes its ports. What was set up is read back, and the kernel is asked what it would do with an
  /// answer. Look at fault(): if it is not empty, repair() tries again until remove(). Call it before the
  /// first connection, whose answers would be lost.
  Way add(const GuestPlace& place, const std::vector<IpAddress>& addresses);
  Way add(int link, const std::vector<IpAddress>& addresses, const NetworkNamespace::Ptr& netns = nullptr) {
    return add(GuestPlace{.link = link, .netns = netns}, addresses);
  }
  Way add(int link, const IpAddress& address, const NetworkNamespace::Ptr& netns = nullptr) {
    return add(link, std::vector{address}, netns);
  }

  /// The guest has these addresses instead; its ports stay. Answers from an address that it keeps come back
  /// all the time. Call it before the first connection to a new address. Returns the guest's way from now on:
  /// another one, without ports, if their rules at the new addresses would be too many.
  Way change_addresses(const Way& way, const std::vector<IpAddress>& addresses);

  /// Whether the bridge of this place is one that the link is a port of. False if it cannot be found out.
  static bool is_bridge_port(const GuestPlace& place);

  /// Removes what a killed predecessor left in a namespace, unless a guest there has come back.
  /// kResourceExhausted, as for NetworkNamespace::enter() and rtnetlink(7).
  Result<void> remove_leftovers(const NetworkNamespace::Ptr& netns) const;

  /// With ReturnPathSettings::succeeds: the guests that have come back have what they need, and what else a
  /// predecessor has left is removed.
  void end_succession();

  /// The same without a return path: removes all that a predecessor has left in the node's own namespace.
  static void remove_all_left();

  /// Only one process of a network namespace can have a return path: lets another one start, and prevents
  /// that again (kResourceExhausted if one has).
  void let_go() { lock_.reset(); }
  Result<void> hold_again();

  /// Why the guest's answers do not come back (kGuardOnly: why the guard is not on its tap). Empty if they
  /// do, and for a way that was removed or replaced. Of several addresses, the first one's.
  const std::string& fault(const Way& way) const;
  /// The same for one of the guest's addresses.
  const std::string& fault(const Way& way, const IpAddress& address) const;

  /// Undoes add(). Fine if the link is gone. Connections that are still open would hang: end them first.
  void remove(const Way& way);

  /// With rules, the answers from a port of the guest, from all its addresses, come back only after this
  /// call. Otherwise it does nothing. kResourceExhausted if the namespace has kPortsMax. Each call needs its
  /// remove_port(); remove() removes all ports of a way.
  Result<void> add_port(const Way& way, std::uint16_t guest_port);
  void remove_port(const Way& way, std::uint16_t guest_port);

  /// A way with a new fault, or without the one it had, at one of its guest's addresses.
  struct Change {
    Way way;
    std::string fault;
  };

  /// Checks the node and at most `links_max` links, the next ones each time, with the namespaces that they
  /// are in, and sets up what is missing; rules use the tap's present name.
  std::vector<Change> repair(std::size_t links_max);

 private:
  ReturnPath(Fd lock, Kind kind, const ReturnPathSettings& settings, std::unique_ptr<SteerProgram> program,
             std::string why_rules)
      : lock_(std::move(lock)),
        kind_(kind),
        settings_(settings),
        program_(std::move(program)),
        why_rules_(std::move(why_rules)) {}

  std::uint32_t space_of(const NetworkNamespace::Ptr& netns);
  const ReturnPathSite* find(const Way& way) const;
  ReturnPathSite* find(const Way& way);
  std::size_t guests() const;

  Fd lock_;  // one in a network namespace
  const Kind kind_;
  ReturnPathSettings settings_;
  const std::unique_ptr<SteerProgram> program_;  // null: rules
  const std::string why_rules_;
  std::map<std::uint32_t, ReturnPathSite> sites_;  // by space; those with guests, and the node's own
  std::map<const NetworkNamespace*, std::uint32_t> spaces_;  // of these namespaces
  std::uint32_t last_space_ = 0;
  std::uint64_t generations_ = 0;
  GuestLink repaired_;  // the link that repair() looked at last
};

}  // namespace portway
