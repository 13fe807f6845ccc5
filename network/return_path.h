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
// Everything that this class creates is recognisable (protocol 210, filter "portway_steer"), and what a
// predecessor left behind is removed at start. A second instance in the same network namespace does not
// start, so that the two do not remove each other's parts.
//
// Control thread. The network namespace is that of the thread that calls start(); the same thread makes
// the other calls, because the kernel attaches to a link of the caller's namespace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"
#include "network/netlink.h"
#include "network/policy_routing.h"
#include "network/steer_program.h"
#include "network/traffic_control.h"

namespace portway {

/// Numbers that all programs of a node share.
struct ReturnPathSettings {
  std::uint32_t rule_preference = 0;  // of the rule that leads to the table, from 2; the one before it is
                                      // taken too. 0: chosen at start
  std::uint32_t table = 5210;         // none of the kernel's: 0, 253 to 255
  std::uint32_t mark_bit = 29;        // 0-31; free of what Kubernetes (14, 15), Cilium (8-11) and Tailscale
                                      // (16-23) use
};

/// What add() has set up for a guest. The link's next add() has another generation, and calls that name an
/// earlier one have no effect: a late clean-up of an ended session cannot hit the next session on its tap.
struct Way {
  int link = 0;
  std::uint64_t generation = 0;

  friend bool operator==(const Way&, const Way&) = default;
};

class ReturnPath {
 public:
  static constexpr std::size_t kPortsMax = 128;
  enum class Kind : std::uint8_t {
    kProgram,    // and the source guard
    kRules,      //
    kGuardOnly,  // no return path: connections need a source address of the node
  };

  /// kResourceExhausted if the node cannot have it; the detail says why, and what would help (CAP_BPF and
  /// CAP_NET_ADMIN, a newer kernel). Then nothing was set up. It also tries to bind a socket to an address
  /// that is not the node's: if that works, a later bind is refused only if its port is in use. kProgram
  /// falls back to rules if the kernel accepts no program; kRules uses rules whatever the kernel can do.
  /// kProgram is also refused if a routing rule of another program uses the mark's bit.
  static Result<std::unique_ptr<ReturnPath>> start(Kind wanted = Kind::kProgram,
                                                   const ReturnPathSettings& settings = {});

  /// Removes everything.
  ~ReturnPath();
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
  /// addresses: one, or one of each family. `link` is the interface index of its tap, an Ethernet device. A
  /// link has one guest: a second call replaces its addresses and removes its ports. What was set up is read
  /// back, and the kernel is asked what it would do with an answer. Look at fault(): if it is not empty,
  /// repair() tries again until remove(). Call it before the first connection, whose answers would be lost.
  Way add(int link, const std::vector<IpAddress>& addresses);
  Way add(int link, const IpAddress& address) { return add(link, std::vector{address}); }

  /// The guest has these addresses instead; its ports stay. Answers from an address that it keeps come back
  /// all the time. Call it before the first connection to a new address. Returns the guest's way from now on:
  /// another one, without ports, if their rules at the new addresses would be too many.
  Way change_addresses(const Way& way, const std::vector<IpAddress>& addresses);

  /// Why the guest's answers do not come back (kGuardOnly: why the guard is not on its tap). Empty if they
  /// do, and for a way that was removed or replaced. Of several addresses, the first one's.
  const std::string& fault(const Way& way) const;
  /// The same for one of the guest's addresses.
  const std::string& fault(const Way& way, const IpAddress& address) const;

  /// Undoes add(). Fine if the link is gone. Connections that are still open would hang: end them first.
  void remove(const Way& way);

  /// With rules, the answers from a port of the guest, from all its addresses, come back only after this
  /// call. Otherwise it does nothing. kResourceExhausted if there are kPortsMax. Each call needs its
  /// remove_port(); remove() removes all ports of a way.
  Result<void> add_port(const Way& way, std::uint16_t guest_port);
  void remove_port(const Way& way, std::uint16_t guest_port);

  /// A way with a new fault, or without the one it had, at one of its guest's addresses.
  struct Change {
    Way way;
    std::string fault;
  };

  /// Checks the node and at most `links_max` links, the next ones each time, and sets up what is missing;
  /// rules use the tap's present name.
  std::vector<Change> repair(std::size_t links_max);

 private:
  struct Guest {
    std::uint64_t generation = 0;
    std::vector<IpAddress> addresses;
    std::string tap = {};                             // for rules: the name that they have
    std::map<std::uint16_t, std::size_t> ports = {};  // with rules: how often each was added
    std::vector<std::string> faults = {};             // of the addresses
    bool has(int family) const;
    const std::string& fault() const;
  };

  ReturnPath(Fd lock, std::unique_ptr<Netlink> netlink, const ReturnPathSettings& settings, Kind kind,
             std::unique_ptr<SteerProgram> program, std::string why_rules, std::string why_no_v6);

  const Guest* find(const Way& way) const;
  Guest* find(const Way& way);
  void set_up(int link, Guest& guest);
  Result<void> make_node(int family);
  Result<void> make_link(int link, Guest& guest);
  Result<void> attach(int link, const Guest& guest);
  Result<void> name_rules(int link, Guest& guest);
  std::vector<RoutingRule> port_rules(const Guest& guest, const IpAddress& address) const;
  Result<void> add_port_rules(const Guest& guest);
  Result<void> set_syn_filter(int link, const Guest& guest);
  static std::vector<sock_filter> syn_filter_of(const Guest& guest);
  void forget_port(int link, Guest& guest, std::uint16_t guest_port);
  void delete_port_rules(const Guest& guest);
  void take_down(int link);
  void leave_node(const Guest& former);
  Result<bool> is_attached(int link) const;
  Result<void> verify_node(int family) const;
  Result<void> verify_link(int link, const Guest& guest, const IpAddress& address) const;
  Result<void> verify_routes(int link, const Guest& guest, const IpAddress& address) const;
  Result<void> repair_node(int family);
  Result<void> repair_link(int link, Guest& guest, const IpAddress& address);
  std::size_t guests_of(int family) const;
  std::size_t ports() const;

  const Fd lock_;  // one in a network namespace
  const std::unique_ptr<Netlink> netlink_;
  const ReturnPathSettings settings_;  // with the preference that was chosen
  const Kind kind_;
  const std::unique_ptr<SteerProgram> program_;  // null: rules
  const std::string why_rules_;
  const std::string why_no_v6_;  // why no socket can have the address of an IPv6 client; empty where it can
  std::map<int, Guest> guests_;  // by link
  std::uint64_t generations_ = 0;
  int repaired_ = 0;  // the link that repair() looked at last
};

}  // namespace portway
