// Which address each guest sees as its clients', and the return path (network/return_path.h) that this takes.
//
// An instance's path is enabled when its tap is known, maintained while its session lasts, and retired with
// it. If the return path is made of rules, each forward has a rule of its own, from acquire() to release().
// With the return path comes the source guard; a node may have the guard alone.
//
// Control thread.
#pragma once

#include <boost/functional/hash.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/forward.h"
#include "config/config.h"
#include "control/event.h"
#include "control/registry.h"
#include "network/return_path.h"
#include "network/source_plan.h"
#include "proxy/dataplane.h"

namespace portway {

class SourcePaths {
 public:
  /// References must outlive it.
  struct Parts {
    const Config& config;
    const Registry& registry;
    Dataplane& dataplane;
    ReturnPath* return_path = nullptr;    // null: guests see the node's address, and there is no source guard
    std::string why_no_return_path = {};  // why nothing leads back although it should
    /// How long a path outlives its session, whose last packets are still on the way.
    std::chrono::milliseconds kept_for{};
    /// What an instance's guest sees has changed.
    std::function<void(const Instance&, event::InstanceSourceModeChanged)> on_change = {};
  };
  explicit SourcePaths(Parts parts) : parts_(std::move(parts)) {}
  SourcePaths(const SourcePaths&) = delete;
  SourcePaths& operator=(const SourcePaths&) = delete;

  // --- What is shown. Of connections to come, as long as their clients allow it.

  /// To an instance with which nothing is wrong.
  SourcePlan node_plan() const;
  /// To each address of the instance, if its forward asks for nothing else.
  SourcePlan plan_of(const Instance& instance) const;
  ForwardSource source_of(const Instance& instance, const Forward& forward) const;
  /// kInvalidRequest if this node cannot do it.
  Result<void> check_mode(const Instance& instance, SourceMode wanted) const;

  // --- How, and why not.

  /// "bpf" or "rules"; empty if there is no return path.
  std::string_view kind() const;
  bool has_guard() const { return parts_.return_path != nullptr && parts_.return_path->has_guard(); }
  /// Packets that the guard has dropped so far.
  std::uint64_t forged_packets() const { return has_guard() ? parts_.return_path->forged_packets() : 0; }
  /// Why there is no return path although it was wanted; empty if there is one.
  const std::string& reason() const { return parts_.why_no_return_path; }
  std::string reason(const Instance& instance) const;
  /// Running instances that should have a return path, and do not.
  std::size_t instances_without() const;

  // --- A session's life.

  /// Before the first connection to the guest: its answers must find the way back.
  /// `netns`: where its tap is; null: in the node's own namespace. Nothing if it has a path already.
  void enable(const Instance& instance, const NetworkNamespace::Ptr& netns);
  /// Way::space; 0: in the node's own namespace, or it has no path.
  std::uint32_t space_of(const Instance& instance) const;
  /// Of an earlier run, in a namespace where no session goes on.
  void remove_leftovers(const NetworkNamespace::Ptr& netns);
  /// Logs and publishes what is wrong with the path, if anything.
  void report_fault(const Instance& instance);
  /// Connections to come use what is possible now.
  void apply(const Instance& instance);
  /// The guest has other addresses: makes their path, before the first connection to them, and reports
  /// whether the guest sees its clients as before.
  void change_addresses(const Instance& instance);
  void retire(const Instance& stopped);
  /// Removes a retired session's path now: its last connection is gone.
  void remove(const Uuid& session_id);

  /// What a forward that is about to be served shows its guest; makes the rule that this takes.
  ForwardSource acquire(const Instance& instance, const Forward& forward);
  void release(const ForwardId& id);

  /// Removes what nobody needs any more, and repairs what other programs removed. Every few seconds.
  void maintain();

 private:
  using Clock = std::chrono::steady_clock;
  struct Retired {
    Way way;
    Uuid session_id;
    Clock::time_point since;
  };
  /// A rule of a forward. One whose guest port was changed has more of them: connections to the former ports
  /// may go on.
  struct Rule {
    Way way;
    std::uint16_t guest_port;
    std::optional<Clock::time_point> released = std::nullopt;
  };

  bool leads_back() const;
  bool may_lead_back(const Instance& instance) const;
  ForwardSource sources_of(const Instance& instance, SourceMode wanted) const;
  ForwardSource wanted_source(const Instance& instance, const Forward& forward) const;
  void replace_rules(const ForwardId& id, const Rule& rule);
  void remove_unused();
  void repair();
  void retry_rules();
  void report_restored(const Instance& instance);

  const Parts parts_;
  std::unordered_map<std::string, Way> ways_;  // by instance
  std::vector<Retired> retired_;
  std::unordered_multimap<ForwardId, Rule, boost::hash<ForwardId>> rules_;
  // Forwards that have none although they should: they are tried again.
  std::unordered_set<ForwardId, boost::hash<ForwardId>> without_rule_;
};

}  // namespace portway
