// Whether a client of a forward would be served now, and why not. Some of it is asked for when it is needed,
// some is what clients have found out (control/forward_health.h). Each change is an event: a few forwards are
// looked at with every call of look_at_forwards(), so that all are within kLookAtAll.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "control/control.h"

namespace portway {
namespace {

constexpr std::chrono::milliseconds kLookAtAll(500);

constexpr auto kForwardStateNames =
    std::to_array<std::string_view>({"listening", "failed", "disabled", "expired", "unavailable"});
static_assert(kForwardStateNames.size() == static_cast<std::size_t>(ForwardState::kUnavailable) + 1);

constexpr auto kForwardCauseNames = std::to_array<std::string_view>(
    {"", "not_bound", "address_lost", "disabled", "expired", "tap_down", "device_down", "no_return_path",
     "guest_refusing", "guest_unreachable", "limit_reached", "node_resources"});
static_assert(kForwardCauseNames.size() == kForwardCauses);

bool is_reached(std::uint32_t max_connections, const std::optional<ForwardStats>& stats) {
  return max_connections != 0 && stats && stats->connections_active >= max_connections;
}

bool has_own_device(const Instance& instance) {
  return !instance.device.empty() && instance.device != kByRoute;
}

}  // namespace

std::string_view to_string(ForwardState state) {
  return kForwardStateNames[static_cast<std::size_t>(state)];
}

std::string_view to_string(ForwardCause cause) {
  return kForwardCauseNames[static_cast<std::size_t>(cause)];
}

ForwardState state_of(ForwardCause cause) {
  switch (cause) {
    case ForwardCause::kNone:
      return ForwardState::kListening;
    case ForwardCause::kNotBound:
    case ForwardCause::kAddressLost:
      return ForwardState::kFailed;
    case ForwardCause::kDisabled:
      return ForwardState::kDisabled;
    case ForwardCause::kExpired:
      return ForwardState::kExpired;
    default:
      return ForwardState::kUnavailable;
  }
}

std::string tap_trouble(const Instance& instance, TapState state, const std::string& fault) {
  if (!fault.empty() && instance.device.empty()) return fault;
  if (state == TapState::kNoCarrier) {
    return fmt::format("{} has no carrier: no virtual machine has it open. Start the machine.", instance.tap);
  }
  if (state == TapState::kMissing) {
    return fmt::format(
        "There is no network device {}. Create the tap, or register the instance with the tap that its "
        "machine uses.",
        instance.tap);
  }
  return "";
}

void Control::log_tap_trouble(const Instance& instance) const {
  const std::string trouble = tap_trouble(instance, watch_.tap_state(instance), watch_.tap_fault(instance));
  if (!trouble.empty()) spdlog::info("instance {} waits for its machine: {}", instance.id, trouble);
}

ForwardState Control::state_of(const Forward& forward) const {
  return portway::state_of(cause_of(forward));
}

/// The first reason that holds, in the order of a client's way.
ForwardCause Control::cause_of(const Forward& forward) const {
  if (expired_.contains(forward.id)) return ForwardCause::kExpired;
  if (!forward.enabled) return ForwardCause::kDisabled;
  if (failures_.contains(forward.id)) return ForwardCause::kNotBound;
  if (lost_addresses_.size() == config_.node.public_addresses.size()) return ForwardCause::kAddressLost;
  if (forward.target.is_tcp()) {
    const Instance& instance = *registry_.find_instance(forward.instance_id);
    const std::string fault = watch_.tap_fault(instance);
    if (!tap_trouble(instance, watch_.tap_state(instance), fault).empty()) return ForwardCause::kTapDown;
    if (has_own_device(instance) && !fault.empty()) return ForwardCause::kDeviceDown;
    const ForwardSource source = source_paths_.source_of(instance, forward);
    if (source.required && source.of_all() == SourcePlan::kNoReturnPath) return ForwardCause::kNoReturnPath;
  }
  if (dataplane_.refuses(forward.id, std::nullopt)) return ForwardCause::kGuestRefusing;
  if (const ForwardCause found = health_.cause(forward.id); found != ForwardCause::kNone) return found;
  const std::uint32_t max = max_connections_of(forward);
  return max != 0 && is_reached(max, dataplane_.forward_stats(forward.id)) ? ForwardCause::kLimitReached
                                                                           : ForwardCause::kNone;
}

/// Its own, or its instance's profile's; 0: none.
std::uint32_t Control::max_connections_of(const Forward& forward) const {
  const Instance& instance = *registry_.find_instance(forward.instance_id);
  return stricter(forward.limits, profile_of(instance).limits).max_connections;
}

/// In words, with the remedy; empty where the cause says it all.
std::string Control::reason_of(const Forward& forward, ForwardCause cause) const {
  const Instance& instance = *registry_.find_instance(forward.instance_id);
  switch (cause) {
    case ForwardCause::kNone:
    case ForwardCause::kDisabled:
    case ForwardCause::kExpired:
      return "";
    case ForwardCause::kNotBound:
      return failures_.find(forward.id)->second;
    case ForwardCause::kAddressLost:
      return lost_text() + ".";
    case ForwardCause::kTapDown:
      return tap_trouble(instance, watch_.tap_state(instance), watch_.tap_fault(instance));
    case ForwardCause::kDeviceDown:
      if (std::string fault = watch_.tap_fault(instance); !fault.empty()) return fault;
      return "What leads to the guest is not there. A check of the forward looks for it.";
    case ForwardCause::kNoReturnPath:
      return "source_mode is transparent, but there is no return path for the guest's answers: its clients "
             "are reset. GET /v1/info or the instance has the reason. Or choose another source_mode.";
    case ForwardCause::kGuestRefusing:
      return forward.target.is_tcp()
                 ? fmt::format(
                       "The guest refuses connections to port {}: nothing listens there, or its own "
                       "firewall refuses clients. Start the service.",
                       forward.guest_port)
                 : "Nobody listens at the target's socket. Start the service.";
    case ForwardCause::kGuestUnreachable:
      return "The guest does not answer. Is it still booting or paused, has it no route back to clients, or "
             "does its own firewall drop packets? A check of the forward says more.";
    case ForwardCause::kLimitReached:
      if (const std::uint32_t max = max_connections_of(forward);
          is_reached(max, dataplane_.forward_stats(forward.id))) {
        return fmt::format("There are max_connections ({}) connections: further clients are reset.", max);
      }
      return "A limit turns clients away: of new connections a second, of the owner's connections, or the "
             "forward's or the instance's share of a full node. The forward's recently closed connections "
             "have each one's.";
    case ForwardCause::kNodeResources:
      return "The node is short of descriptors, memory or source ports; its operator's log says of which.";
  }
  return "";
}

void Control::look_at_forwards(std::chrono::milliseconds since_last) {
  const std::size_t count = registry_.forward_count();
  if (count == 0) return;
  std::size_t left = 1 + count * static_cast<std::size_t>(since_last.count()) / kLookAtAll.count();
  std::vector<ForwardId> looked;
  registry_.forwards_after(looked_at_, [&](const Forward& forward) {
    looked_at_ = {.instance_id = forward.instance_id, .id = forward.id};
    looked.push_back(forward.id);
    return --left > 0;
  });
  if (left > 0) looked_at_ = {};  // from the beginning, next time
  for (const ForwardId& id : looked) look_at_forward(id);
}

void Control::look_at_forwards_of(std::string_view instance_id) {
  std::vector<ForwardId> ids;
  for (const Forward* forward : registry_.forwards(instance_id)) ids.push_back(forward->id);
  for (const ForwardId& id : ids) look_at_forward(id);
}

/// Publishes that it has another cause than at the last look.
void Control::look_at_forward(const ForwardId& id) {
  const Forward* forward = registry_.find_forward(id);
  if (forward == nullptr) return;
  const ForwardCause cause = cause_of(*forward);
  const auto [known, is_new] = known_causes_.try_emplace(id, cause);
  if (is_new || std::exchange(known->second, cause) == cause) return;
  publish(*registry_.find_instance(forward->instance_id),
          event::ForwardStateChanged{.forward = event::of(*forward),
                                     .state = portway::state_of(cause),
                                     .cause = cause,
                                     .reason = reason_of(*forward, cause)});
}

/// For ForwardHealth: as a client that stands for any other.
int Control::ask_guest(const ForwardId& id, const Endpoint& guest, SynProbe& probe) const {
  const Forward* forward = registry_.find_forward(id);
  if (forward == nullptr || !forward->target.is_tcp()) return -EPERM;
  const Instance& instance = *registry_.find_instance(forward->instance_id);
  const auto netns = watch_.netns_of(instance);
  const int device = dial_device(instance);
  if (!netns || device == kNoDevice) return -ENODEV;
  const ForwardSource source = source_paths_.source_of(instance, *forward);
  const bool to_v6 = instance.guest_address_v6 == guest.address();
  SynProbeTarget target{.guest = guest, .device = std::max(device, 0), .netns = netns->get()};
  if (is_transparent(to_v6 ? source.plan_v6 : source.plan))
    target.source = any_client(guest.address().is_v6());
  return SynProbe::open(target, probe);
}

}  // namespace portway
