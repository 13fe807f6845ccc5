// The way back of connections that reach a guest with the client's own address (IP_TRANSPARENT): the guest
// answers to an address that is not the node's, and the answer has to come to the node's stack all the same.
// What DNAT gets from conntrack, without netfilter.
//
// On each guest's tap a packet program marks the answers to the node's connections, and ICMP errors about
// them (steer.bpf.c); for the node, per address family, there is
//     5108: iif lo fwmark 0x20000000/0x20000000 lookup main
//     5109: fwmark 0x20000000/0x20000000 lookup 5210
//     local default dev lo table 5210
// The preferences are lower ones where somebody's rules come earlier at start: ours concern nobody else's
// packets. These, the table and the bit of the mark can be set otherwise.
// The first is for the check of the source address: with src_valid_mark it is looked up with the packet's
// mark too, and would find all the world to be this node. Cost does not grow with the number of forwards.
// Nothing is changed for packets that belong to no connection of the node: the guest's own connections and
// routed traffic go their way.
//
// If the kernel takes no program (no CAP_BPF, an old kernel, lockdown) there is a rule for each forwarded
// port of a guest instead:
//     5109: iif TAP from GUEST ipproto tcp sport PORT lookup 5210
// which costs every packet of the node a little for each rule, so there are at most kPortsMax of them; and
// the guest's own connections from a forwarded port number do not work, nor do routed ones to it. The rule
// would deliver the SYNs of such connections to the node, where a service on all addresses would answer them:
// a classic filter on the tap, which needs no CAP_BPF, drops them (syn_filter.h). There is no source guard
// then, and ICMP errors do not come back: no rule can look at what they quote, and one for all ICMP would
// take the guest's own.
//
// The program is attached by tcx (Linux 6.6), else by a clsact filter. Other people's programs and filters on
// the tap continue, either way. A killed daemon's tcx program ends with it, a filter stays until the next
// start. Between the two, what a guest still sends on connections that the kernel has yet to end goes where
// it is addressed; the next start's program finds their sockets again.
//
// The same program is the source guard: it drops what one guest sends with another's address (steer.bpf.c).
// If clients' addresses are not wanted, there can be the guard alone, without rules and route.
//
// Everything it makes can be recognised (protocol 210, filter "portway_steer"), and what a predecessor left
// is removed at start. So that two of them in one network namespace do not end each other, the second one
// does not start.
//
// Control thread; the network namespace is that of the thread that calls start(), which makes the other calls
// too: the kernel attaches to a link of the caller's.
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

/// What it takes of the numbers that all programs of a node share.
struct ReturnPathSettings {
  std::uint32_t rule_preference = 0;  // of the rule that leads to the table, from 2; the one before it is
                                      // taken too. 0: chosen at start
  std::uint32_t table = 5210;         // none of the kernel's: 0, 253 to 255
  std::uint32_t mark_bit = 29;        // 0-31; free of what Kubernetes (14, 15), Cilium (8-11) and Tailscale
                                      // (16-23) use
};

/// What add() has made for a guest. A link's next add() has another generation, and what names the one before
/// has no effect any more: a late clean-up of an ended session cannot hit the next one on its tap.
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

  /// kResourceExhausted when the node cannot have it; the detail says why, and what would help (CAP_BPF and
  /// CAP_NET_ADMIN, a newer kernel). Then nothing was made. It also tries whether a socket can be bound to an
  /// address that is not the node's: what works then is refused later only where a port is in use. kProgram:
  /// rules where the kernel takes no program; kRules: whatever the kernel can do.
  /// kProgram is also refused where a routing rule of another program has the mark's bit.
  static Result<std::unique_ptr<ReturnPath>> start(Kind wanted = Kind::kProgram,
                                                   const ReturnPathSettings& settings = {});

  /// Removes everything.
  ~ReturnPath();
  ReturnPath(const ReturnPath&) = delete;
  ReturnPath& operator=(const ReturnPath&) = delete;

  Kind kind() const { return kind_; }
  bool has_guard() const { return program_ != nullptr; }
  /// For the relay, as long as this object lives; any thread. Null where the program is not there.
  const RoutedConnections* routed() const { return program_ ? &program_->routed() : nullptr; }
  /// Packets that the guard has dropped so far.
  std::uint64_t forged_packets() const { return program_ ? program_->forged_packets() : 0; }
  /// Why it is not a program; empty where it is.
  const std::string& why_rules() const { return why_rules_; }

  /// From now on the guest's answers shall come back (not with kGuardOnly), and no other guest send with its
  /// addresses: one, or one of each family. `link` is the interface index of its tap, an Ethernet device; one
  /// guest a link, a second call replaces its addresses and takes the ports away. What was made is read back,
  /// and the kernel is asked what it would do with an answer. Look at fault(): where that is not empty,
  /// repair() tries again until remove(). Call it before the first connection, whose answers would be lost.
  Way add(int link, const std::vector<IpAddress>& addresses);
  Way add(int link, const IpAddress& address) { return add(link, std::vector{address}); }

  /// What stands in the way: why the guest's answers do not come back (kGuardOnly: why the guard is not on
  /// its tap). Empty where nothing does, and for a way that is no more. Of several, the first address's.
  const std::string& fault(const Way& way) const;
  /// The same of the answers that this one of the guest's addresses sends.
  const std::string& fault(const Way& way, const IpAddress& address) const;

  /// The opposite of add(). Fine when the link is gone. Connections that are still open hang: end them first.
  void remove(const Way& way);

  /// With rules, the answers from a port of the guest come back only after this, those of all its addresses;
  /// otherwise it does nothing.
  /// kResourceExhausted when there are kPortsMax. Each call has its remove_port(), and remove() goes for all
  /// of a way's.
  Result<void> add_port(const Way& way, std::uint16_t guest_port);
  void remove_port(const Way& way, std::uint16_t guest_port);

  /// A way that has got a fault, or has lost it, in one of its guest's addresses.
  struct Change {
    Way way;
    std::string fault;
  };

  /// Looks whether all is well with the node and with at most `links_max` links, the next ones each time, and
  /// makes what is not there, by the tap's present name where rules name it.
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
