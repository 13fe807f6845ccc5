#include "control/forward_set.h"

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>

namespace portway {
namespace {

/// What a set knows a forward by.
struct ForwardIdentity {
  std::string label;
  std::uint16_t guest_port = 0;
  std::string target;

  friend bool operator<(const ForwardIdentity& a, const ForwardIdentity& b) {
    return std::tie(a.label, a.guest_port, a.target) < std::tie(b.label, b.guest_port, b.target);
  }
};

ForwardIdentity identity_of(const std::string& label, std::uint16_t guest_port, const Target& target) {
  return {.label = label,
          .guest_port = guest_port,
          .target = fmt::format("{} {} {}", to_string(target.kind), target.socket, target.port)};
}

/// The instance's forwards that no spec has taken yet.
class Existing {
 public:
  explicit Existing(std::span<const Forward* const> forwards) {
    for (const Forward* each : forwards) {
      left_.emplace(identity_of(each->label, each->guest_port, each->target), each);
    }
  }

  /// With this label, wherever it leads; nullptr if there is none.
  const Forward* find(const std::string& label) const {
    const auto found = left_.lower_bound(ForwardIdentity{.label = label, .guest_port = 0, .target = {}});
    return found != left_.end() && found->first.label == label ? found->second : nullptr;
  }
  const Forward* find(const ForwardIdentity& identity) const {
    const auto found = left_.find(identity);
    return found != left_.end() ? found->second : nullptr;
  }
  void take(const Forward& forward) {
    std::erase_if(left_, [&](const auto& entry) { return entry.second == &forward; });
  }
  /// In the order of their creation.
  std::vector<Forward> left() const {
    std::map<ForwardId, const Forward*> by_id;
    for (const auto& [identity, forward] : left_) by_id.emplace(forward->id, forward);
    std::vector<Forward> forwards;
    for (const auto& [id, forward] : by_id) forwards.push_back(*forward);
    return forwards;
  }

 private:
  std::multimap<ForwardIdentity, const Forward*> left_;
};

/// The host ports of a row that has no host port of its own follow one another.
bool is_complete(const ForwardList& list, std::size_t begin, std::size_t end,
                 std::span<const Forward* const> found) {
  for (std::size_t i = begin; i < end; ++i) {
    if (found[i] == nullptr) return false;
    if (list.specs[i].follows && found[i]->host_port != found[i - 1]->host_port + 1) return false;
  }
  return true;
}

/// Specs of one row: a row is kept as a whole.
std::size_t end_of_row(const ForwardList& list, std::size_t begin) {
  std::size_t end = begin + 1;
  while (end < list.specs.size() && list.specs[end].follows) ++end;
  return end;
}

/// The change that makes `forward` what `spec` says; nothing if it is that.
std::optional<ForwardChange> change_to(Role role, const Forward& forward, std::uint16_t guest_port,
                                       const ForwardSpec& spec) {
  ForwardChange change{.limits = spec.limits, .metadata = difference(forward.metadata, spec.metadata)};
  for (std::size_t i = 0; i < kLimits; ++i) {
    const bool stays = role != Role::kAdmin && forward.admin_limits[i] && !set_limits(spec.limits)[i];
    TrafficLimits with_it = forward.limits;
    copy_limits(LimitSet().set(i), spec.limits, with_it);
    change.given[i] = !stays && with_it != forward.limits;
  }
  bool differs = change.given.any() || !change.metadata.empty();
  const auto set = [&differs](auto& field, const auto& is, const auto& wanted) {
    if (is == wanted) return;
    field = wanted;
    differs = true;
  };
  set(change.source_mode, forward.source_mode, spec.source_mode);
  set(change.guest_port, forward.guest_port, guest_port);
  set(change.enabled, forward.enabled, spec.enabled);
  set(change.expires_at, forward.expires_at, spec.expires_at);
  return differs ? std::optional(std::move(change)) : std::nullopt;
}

Error cannot_tell_apart(const ForwardSpec& spec, std::size_t first, std::size_t second) {
  const std::string_view field = spec.label.empty() ? "guest_port" : "label";
  return {ErrorCode::kInvalidRequest,
          fmt::format("The forwards {} and {} of the set have the same {}; give each a label of its own.",
                      first, second, field),
          fmt::format("port_forwards[{}].{}", second, field)};
}

}  // namespace

Result<ForwardSetPlan> plan_forward_set(Role role, const Target& of_instance, const ForwardList& list,
                                        std::span<const Forward* const> existing) {
  Existing there(existing);
  const std::size_t count = list.specs.size();
  std::vector<std::uint16_t> guest_ports(count);
  std::vector<const Forward*> found(count, nullptr);
  std::map<ForwardIdentity, std::size_t> wanted;
  std::map<std::string, std::size_t> entry_of_label;
  for (std::size_t i = 0; i < count; ++i) {
    const ForwardSpec& spec = list.specs[i];
    auto target = target_of(spec, of_instance);
    if (!target) return target.error();
    guest_ports[i] = target->is_tcp() ? spec.guest_port : std::uint16_t{0};
    const bool by_label = !spec.label.empty() && !list.is_in_row(i);
    const ForwardIdentity full = identity_of(spec.label, guest_ports[i], *target);
    const auto labelled = entry_of_label.emplace(spec.label, list.entry(i)).first;
    if (!spec.label.empty() && labelled->second != list.entry(i)) {
      return cannot_tell_apart(spec, labelled->second, list.entry(i));
    }
    const auto [first, is_new] = wanted.emplace(full, i);
    if (!is_new) return cannot_tell_apart(spec, list.entry(first->second), list.entry(i));
    const Forward* forward = there.find(full);
    if (forward == nullptr && by_label) forward = there.find(spec.label);
    const bool stays = forward != nullptr && forward->target == *target &&
                       spec.host_port.value_or(forward->host_port) == forward->host_port;
    if (stays) found[i] = forward;
  }
  ForwardSetPlan plan;
  for (std::size_t begin = 0, end = 0; begin < count; begin = end) {
    end = end_of_row(list, begin);
    const bool stays = is_complete(list, begin, end, found);
    for (std::size_t i = begin; i < end; ++i) {
      if (!stays) {
        plan.to_create.push_back(i);
        continue;
      }
      there.take(*found[i]);
      if (auto change = change_to(role, *found[i], guest_ports[i], list.specs[i])) {
        plan.to_update.push_back({*found[i], std::move(*change)});
      } else {
        plan.unchanged.push_back(*found[i]);
      }
    }
  }
  plan.to_remove = there.left();
  return plan;
}

}  // namespace portway
