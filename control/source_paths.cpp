#include "control/source_paths.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace portway {
namespace {

// Links whose return path each maintain() looks at: a millisecond, or three if it is made of rules.
constexpr std::size_t kLinksAtATime = 32;
// Rules that a forward keeps for guest ports that it had.
constexpr std::size_t kFormerPortsMax = 4;

}  // namespace

bool SourcePaths::leads_back() const {
  return parts_.return_path != nullptr && parts_.return_path->kind() != ReturnPath::Kind::kGuardOnly;
}

SourcePlan SourcePaths::node_plan() const {
  switch (parts_.config.proxy.source_mode) {
    case SourceMode::kPlain:
      return SourcePlan::kPlain;
    case SourceMode::kProxyV2:
      return SourcePlan::kProxyV2;
    case SourceMode::kAuto:
    case SourceMode::kTransparent:
      break;
  }
  return leads_back() ? SourcePlan::kTransparent : SourcePlan::kNoReturnPath;
}

SourcePlan SourcePaths::plan_of(const Instance& instance) const {
  return sources_of(instance, SourceMode::kAuto).of_all();
}

ForwardSource SourcePaths::sources_of(const Instance& instance, SourceMode wanted) const {
  if (wanted == SourceMode::kPlain) return SourcePlan::kPlain;
  if (wanted == SourceMode::kProxyV2) return SourcePlan::kProxyV2;
  const SourcePlan node = node_plan();
  if (node != SourcePlan::kTransparent) return node;
  if (instance.tap_index == 0 && instance.device.empty()) return node;  // its path is still to come
  const auto way = ways_.find(instance.id);
  if (way == ways_.end()) return SourcePlan::kNoReturnPath;
  // A bridge may have a router among its ports, to which the guest's answers go.
  const bool asked_for =
      wanted == SourceMode::kTransparent || parts_.config.proxy.source_mode == SourceMode::kTransparent;
  if (!instance.device.empty() && !asked_for) return SourcePlan::kNoReturnPath;
  const auto plan_to = [&](const IpAddress& address) {
    const bool comes_back = parts_.return_path->fault(way->second, address).empty();
    return comes_back ? SourcePlan::kTransparent : SourcePlan::kNoReturnPath;
  };
  const SourcePlan plan = plan_to(instance.guest_address);
  return {plan, instance.guest_address_v6 ? plan_to(*instance.guest_address_v6) : plan, false};
}

ForwardSource SourcePaths::wanted_source(const Instance& instance, const Forward& forward) const {
  const SourceMode wanted =
      forward.source_mode == SourceMode::kAuto ? parts_.config.proxy.source_mode : forward.source_mode;
  // A Unix socket shows no address, so there is none to ask for.
  if (!forward.target.is_tcp())
    return wanted == SourceMode::kProxyV2 ? SourcePlan::kProxyV2 : SourcePlan::kPlain;
  ForwardSource source = sources_of(instance, forward.source_mode);
  source.required = wanted == SourceMode::kTransparent;
  return source;
}

ForwardSource SourcePaths::source_of(const Instance& instance, const Forward& forward) const {
  const ForwardSource source = wanted_source(instance, forward);
  return without_rule_.contains(forward.id) ? source.without_return_path() : source;
}

Result<void> SourcePaths::check_mode(const Instance& instance, SourceMode wanted) const {
  if (wanted != SourceMode::kTransparent || (leads_back() && may_lead_back(instance))) return {};
  if (leads_back()) {
    return Error{
        ErrorCode::kInvalidRequest,
        fmt::format("The guest cannot be shown its clients' addresses: {}. Leave source_mode out, or "
                    "ask for proxy_v2.",
                    reason(instance)),
        "source_mode"};
  }
  return Error{ErrorCode::kInvalidRequest,
               fmt::format("This node cannot show guests their clients' addresses ({}); leave source_mode "
                           "out, or ask for proxy_v2.",
                           reason().empty() ? fmt::format("its proxy.source_mode is {}",
                                                          to_string(parts_.config.proxy.source_mode))
                                            : reason()),
               "source_mode"};
}

std::string_view SourcePaths::kind() const {
  if (!leads_back()) return "";
  return parts_.return_path->kind() == ReturnPath::Kind::kProgram ? "bpf" : "rules";
}

std::string SourcePaths::reason(const Instance& instance) const {
  if (!leads_back()) return reason();
  const auto way = ways_.find(instance.id);
  const bool has_way = way != ways_.end();
  std::string fault = has_way ? parts_.return_path->fault(way->second) : "";
  if (!fault.empty()) return fault;
  if (instance.device.empty()) return has_way ? "" : reason();
  if (has_way) {
    return fmt::format(
        "it is reached through {}, by which its answers may go to another router; if its default gateway is "
        "the node, ask for source_mode transparent",
        instance.device);
  }
  return instance.device == kByRoute
             ? "it is reached by the node's routes, and its answers come in by no interface of its own"
             : fmt::format("it is reached through {}, and its answers do not come in by its tap",
                           instance.device);
}

std::size_t SourcePaths::instances_without() const {
  if (!leads_back()) return 0;
  return static_cast<std::size_t>(std::ranges::count_if(
      ways_, [this](const auto& entry) { return !parts_.return_path->fault(entry.second).empty(); }));
}

void SourcePaths::enable(const Instance& instance, const NetworkNamespace::Ptr& netns) {
  if (parts_.return_path == nullptr || instance.tap_index == 0 || instance.device == kByRoute) return;
  if (ways_.contains(instance.id)) return;
  const GuestPlace place{.link = instance.tap_index, .netns = netns, .bridge = instance.device};
  if (!place.bridge.empty() && !ReturnPath::is_bridge_port(place)) return;  // a router, say
  ways_.emplace(instance.id, parts_.return_path->add(place, guest_addresses(instance)));
}

/// A device that is named leads back if it is the bridge that the tap is a port of.
bool SourcePaths::may_lead_back(const Instance& instance) const {
  return instance.device.empty() || ways_.contains(instance.id);
}

std::uint32_t SourcePaths::space_of(const Instance& instance) const {
  const auto way = ways_.find(instance.id);
  return way == ways_.end() ? 0 : way->second.space;
}

void SourcePaths::remove_leftovers(const NetworkNamespace::Ptr& netns) {
  if (parts_.return_path == nullptr) return;
  if (auto removed = parts_.return_path->remove_leftovers(netns); !removed) {
    spdlog::warn("routing rules of an earlier run may be left in a guest's network namespace: {}",
                 removed.error().detail);
  }
}

void SourcePaths::report_fault(const Instance& instance) {
  const auto way = ways_.find(instance.id);
  if (way == ways_.end()) return;
  const std::string& fault = parts_.return_path->fault(way->second);
  if (fault.empty()) return;
  if (!leads_back()) {
    spdlog::warn("instance {} has no source guard: {}", instance.id, fault);
    return;
  }
  spdlog::warn("instance {} sees the node's address as its clients': {}", instance.id, fault);
  parts_.on_change(instance, {.plan = plan_of(instance), .reason = fault});
}

void SourcePaths::apply(const Instance& instance) {
  for (const Forward* forward : parts_.registry.forwards(instance.id)) {
    parts_.dataplane.set_source(forward->id, acquire(instance, *forward));
  }
}

void SourcePaths::change_addresses(const Instance& instance) {
  const auto known = ways_.find(instance.id);
  if (known == ways_.end()) return;  // it is still to come
  Way& way = known->second;
  const bool was_faulty = !parts_.return_path->fault(way).empty();
  way = parts_.return_path->change_addresses(way, guest_addresses(instance));
  apply(instance);
  const bool is_faulty = !parts_.return_path->fault(way).empty();
  if (is_faulty) report_fault(instance);
  if (was_faulty && !is_faulty) report_restored(instance);
}

void SourcePaths::retire(const Instance& stopped) {
  const auto way = ways_.extract(stopped.id);
  if (!way.empty()) retired_.push_back({way.mapped(), stopped.session_id, Clock::now()});
}

void SourcePaths::remove(const Uuid& session_id) {
  std::erase_if(retired_, [&](const Retired& old) {
    if (old.session_id != session_id) return false;
    parts_.return_path->remove(old.way);
    return true;
  });
}

ForwardSource SourcePaths::acquire(const Instance& instance, const Forward& forward) {
  const ForwardSource source = wanted_source(instance, forward);
  if (!source.any_transparent() || parts_.return_path->kind() == ReturnPath::Kind::kProgram) {
    without_rule_.erase(forward.id);
    return source;
  }
  const auto way = ways_.find(instance.id);
  if (way == ways_.end()) return source;  // it is still to come, and before it no connection is made
  const Rule rule{.way = way->second, .guest_port = forward.guest_port};
  const auto [begin, end] = rules_.equal_range(forward.id);
  const auto known = std::find_if(begin, end, [&](const auto& entry) {
    return entry.second.way == rule.way && entry.second.guest_port == rule.guest_port;
  });
  if (known != end) {
    known->second.released.reset();
    return source;
  }
  if (auto added = parts_.return_path->add_port(rule.way, rule.guest_port); !added) {
    if (without_rule_.insert(forward.id).second) {
      spdlog::warn("forward {} of instance {} {}: {}", to_string(forward.id), instance.id,
                   source.required ? "turns clients away, since source_mode is transparent"
                                   : "shows its guest the node's address as its clients'",
                   added.error().detail);
    }
    return source.without_return_path();
  }
  without_rule_.erase(forward.id);
  replace_rules(forward.id, rule);
  return source;
}

/// Those of another way went with that. Those of former guest ports stay, but not more than a few.
void SourcePaths::replace_rules(const ForwardId& id, const Rule& rule) {
  std::size_t former = 0;
  const auto [begin, end] = rules_.equal_range(id);
  auto oldest = end;
  for (auto each = begin; each != end;) {
    if (each->second.way != rule.way) {
      each = rules_.erase(each);
      continue;
    }
    if (!each->second.released) each->second.released = Clock::now();
    if (oldest == end || each->second.released < oldest->second.released) oldest = each;
    ++former;
    ++each;
  }
  if (former >= kFormerPortsMax) {
    parts_.return_path->remove_port(oldest->second.way, oldest->second.guest_port);
    rules_.erase(oldest);
  }
  rules_.emplace(id, rule);
}

void SourcePaths::release(const ForwardId& id) {
  without_rule_.erase(id);
  const auto [begin, end] = rules_.equal_range(id);
  std::for_each(begin, end, [](auto& entry) { entry.second.released = Clock::now(); });
}

void SourcePaths::maintain() {
  if (parts_.return_path == nullptr) return;
  remove_unused();
  repair();
  retry_rules();
}

void SourcePaths::remove_unused() {
  const auto now = Clock::now();
  std::erase_if(rules_, [&](const auto& entry) {
    const auto& [id, rule] = entry;
    // Connections may outlive their forward, and a socket that a worker hands over is not counted yet.
    const bool over = rule.released && now - *rule.released >= parts_.kept_for && parts_.dataplane.ended(id);
    if (over) parts_.return_path->remove_port(rule.way, rule.guest_port);
    return over;
  });
  std::erase_if(retired_, [&](const Retired& old) {
    const bool over = now - old.since >= parts_.kept_for;
    if (over) parts_.return_path->remove(old.way);
    return over;
  });
}

void SourcePaths::repair() {
  for (const auto& [way, fault] : parts_.return_path->repair(kLinksAtATime)) {
    const auto found = std::ranges::find(ways_, way, [](const auto& entry) { return entry.second; });
    if (found == ways_.end()) continue;
    const Instance& instance = *parts_.registry.find_instance(found->first);
    apply(instance);
    report_fault(instance);
    if (fault.empty()) report_restored(instance);
  }
}

void SourcePaths::report_restored(const Instance& instance) {
  spdlog::info("instance {} has its {} again", instance.id, leads_back() ? "return path" : "source guard");
  if (leads_back()) parts_.on_change(instance, {.plan = plan_of(instance), .reason = {}});
}

void SourcePaths::retry_rules() {
  const std::vector<ForwardId> ids(without_rule_.begin(), without_rule_.end());
  for (const ForwardId& id : ids) {
    const Forward* forward = parts_.registry.find_forward(id);
    if (forward == nullptr) continue;
    const Instance& instance = *parts_.registry.find_instance(forward->instance_id);
    const ForwardSource source = acquire(instance, *forward);
    if (source.any_transparent()) parts_.dataplane.set_source(id, source);
  }
}

}  // namespace portway
