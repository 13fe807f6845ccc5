// The return path in one network namespace: the node's own, or one of guests (network/return_path.h says what
// it is made of). In a namespace of guests nothing of it stays open: each call enters the namespace, opens
// rtnetlink there, and closes it before it returns.
//
// A namespace that was just made has its loopback down, and the kernel makes no IPv6 route over that. So each
// guest there has a route over its own tap, which ends with the tap:
//     local default dev TAP table 5210 metric INDEX
//
// Control thread.
#pragma once

#include <linux/filter.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "network/namespace.h"
#include "network/netlink.h"
#include "network/policy_routing.h"
#include "network/steer_program.h"

namespace portway {

enum class ReturnPathKind : std::uint8_t {
  kProgram,    // and the source guard
  kRules,      //
  kGuardOnly,  // no return path: connections need a source address of the node
};

/// Numbers that all programs of a network namespace share.
struct ReturnPathSettings {
  std::uint32_t rule_preference = 0;  // of the rule that leads to the table, from 2; the one before it is
                                      // taken too. 0: chosen when the namespace is first used
  std::uint32_t table = 5210;         // none of the kernel's: 0, 253 to 255
  std::uint32_t mark_bit = 29;        // 0-31; free of what Kubernetes (14, 15), Cilium (8-11) and Tailscale
                                      // (16-23) use
  // Rules and routes that a predecessor has left work on for its connections; see
  // ReturnPath::end_succession(). Otherwise they are removed first.
  bool succeeds = false;
};

/// Where a guest is.
struct GuestPlace {
  int link = 0;                           // interface index of its tap, an Ethernet device
  NetworkNamespace::Ptr netns = nullptr;  // where the tap is; null: in the node's own
  std::string bridge = {};  // the tap is a port of this one, by which its packets come in; empty: by the tap
};

class ReturnPathSite {
 public:
  static constexpr std::size_t kPortsMax = 128;  // rules in one namespace

  /// The node's own namespace, which is that of the calling thread.
  ReturnPathSite(ReturnPathKind kind, const ReturnPathSettings& settings, SteerProgram* program,
                 std::unique_ptr<Netlink> netlink);
  /// A namespace of guests. `space`: our number of it, never 0.
  ReturnPathSite(ReturnPathKind kind, const ReturnPathSettings& settings, SteerProgram* program,
                 NetworkNamespace::Ptr netns, std::uint32_t space);
  /// Removes everything.
  ~ReturnPathSite();
  /// Removes what a predecessor has left and no guest here needs.
  void end_succession();
  ReturnPathSite(const ReturnPathSite&) = delete;
  ReturnPathSite& operator=(const ReturnPathSite&) = delete;

  const NetworkNamespace::Ptr& netns() const { return netns_; }
  bool empty() const { return guests_.empty(); }
  std::size_t size() const { return guests_.size(); }

  /// Removes what a predecessor left, and learns what the namespace permits. The first call that enters a
  /// namespace of guests does it; an error is then the fault of all its guests, until a later call succeeds.
  Result<void> prepare() { return inside({}); }

  // --- A guest's, as in ReturnPath.

  void add(const GuestPlace& place, std::uint64_t generation, const std::vector<IpAddress>& addresses);
  GuestPlace place_of(int link) const {
    return {.link = link, .netns = netns_, .bridge = guests_.at(link).bridge};
  }
  /// False if the rules of its ports would be too many: nothing has changed.
  bool change_addresses(int link, std::uint64_t generation, const std::vector<IpAddress>& addresses);
  void remove(int link, std::uint64_t generation);
  const std::string& fault(int link, std::uint64_t generation) const;
  const std::string& fault(int link, std::uint64_t generation, const IpAddress& address) const;
  Result<void> add_port(int link, std::uint64_t generation, std::uint16_t guest_port);
  void remove_port(int link, std::uint64_t generation, std::uint16_t guest_port);

  /// Checks the namespace, and the next guests behind the link `after`, at most `links_max`. Sets `after` to
  /// the last one. Adds to `changed` the links that have a new fault, or no longer the one they had. The
  /// number of guests that it looked at.
  std::size_t repair(int& after, std::size_t links_max, std::set<GuestLink>& changed);
  std::uint64_t generation_of(int link) const { return guests_.at(link).generation; }

 private:
  struct Guest {
    std::uint64_t generation = 0;
    std::vector<IpAddress> addresses;
    std::string tap = {};                             // for rules: the name of the input that they have
    std::map<std::uint16_t, std::size_t> ports = {};  // with rules: how often each was added
    std::vector<std::string> faults = {};             // of the addresses
    std::string bridge = {};                          // empty: none
    int input = 0;                                    // the bridge's index, or the link; 0: not found yet
    bool has(int family) const;
    const std::string& fault() const;
  };
  using Use = std::function<Result<void>(Netlink&)>;

  bool is_own() const { return netns_ == nullptr; }
  GuestLink key(int link) const { return {.space = space_, .index = link}; }
  Result<void> inside(const Use& use);
  Result<void> use_prepared(Netlink& netlink, const Use& use);
  Result<void> learn(Netlink& netlink);
  Result<void> here(const Result<void>& done) const;

  const Guest* find(int link, std::uint64_t generation) const;
  Guest* find(int link, std::uint64_t generation);
  void set_up(Netlink& netlink, int link, Guest& guest);
  Result<void> make_common(Netlink& netlink, int family);
  Result<void> make_link(Netlink& netlink, int link, Guest& guest);
  Result<void> add_routes(Netlink& netlink, int link, const Guest& guest);
  Result<int> find_input(Netlink& netlink, int link, const Guest& guest) const;
  Result<void> follow_input(Netlink& netlink, int link, Guest& guest);
  bool steers_on(int link, const Guest& guest) const;
  Result<void> attach(Netlink& netlink, int link, const Guest& guest);
  Result<void> attach_to(Netlink& netlink, int link);
  Result<bool> is_attached(Netlink& netlink, int link) const;
  bool is_used(int input) const;
  Result<void> name_rules(Netlink& netlink, int link, Guest& guest);
  Result<void> add_port_rules(Netlink& netlink, const Guest& guest);
  void delete_port_rules(Netlink& netlink, const Guest& guest);
  std::vector<RoutingRule> port_rules(const Guest& guest, const IpAddress& address) const;
  Result<void> set_syn_filter(Netlink& netlink, int link, const Guest& guest);
  Result<void> add_port(Netlink& netlink, int link, Guest& guest, std::uint16_t guest_port);
  void forget_port(Netlink& netlink, int link, Guest& guest, std::uint16_t guest_port);
  void take_down(int link);
  void take_down(Netlink& netlink, int link);
  void forget_program(Netlink* netlink, int link);
  void change_addresses(Netlink& netlink, int link, Guest& guest, const std::vector<IpAddress>& addresses);
  void leave_families(Netlink& netlink, int link, const Guest& former);
  Result<void> verify_common(Netlink& netlink, int family) const;
  Result<void> verify_link(Netlink& netlink, int link, const Guest& guest, const IpAddress& address) const;
  Result<void> verify_rules(Netlink& netlink, int link, const Guest& guest, const IpAddress& address) const;
  Result<void> verify_delivery(Netlink& netlink, const Guest& guest, const IpAddress& address) const;
  Result<void> repair_common(Netlink& netlink, int family);
  Result<void> repair_link(Netlink& netlink, int link, Guest& guest, const IpAddress& address);
  void note(int link, Guest& guest, std::size_t address, const Result<void>& done,
            std::set<GuestLink>& changed) const;
  void remove_others(Netlink& netlink, int family);
  std::size_t guests_of(int family) const;
  std::size_t ports() const;

  const ReturnPathKind kind_;
  ReturnPathSettings settings_;  // with the preference that was chosen
  const std::uint32_t wanted_preference_;
  SteerProgram* const program_;             // null: rules
  const std::unique_ptr<Netlink> netlink_;  // of the node's own namespace
  const NetworkNamespace::Ptr netns_;       // null: the node's own
  const std::uint32_t space_ = 0;
  bool prepared_ = false;
  std::string why_no_v6_;        // why no socket can have the address of an IPv6 client; empty where it can
  std::map<int, Guest> guests_;  // by link
  std::map<int, std::uint32_t> filters_;  // ids of the programs that are attached by filters, by link
};

}  // namespace portway
