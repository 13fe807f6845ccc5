// Control after a start: what the store promises is served again, at once or as soon as its port is free.
#include "control/control.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <utility>

#include "base/boot_clock.h"

namespace portway {
namespace {

// How long restore() waits for ports that a process killed a moment ago still holds: listeners armed in an
// io_uring are given back up to 2 s after their process is gone.
constexpr std::chrono::milliseconds kBindAgainFor(3000);
constexpr std::chrono::milliseconds kBindAgainEvery(10);

}  // namespace

Result<void> Control::restore() {
  apply_config();
  auto keys = store_.load_api_keys();
  if (!keys) return keys.error();
  auto instances = store_.load_instances();
  if (!instances) return instances.error();
  auto forwards = store_.load_forwards();
  if (!forwards) return forwards.error();
  auto usage = store_.load_usage();
  if (!usage) return usage.error();
  auto drain = store_.load_drain();
  if (!drain) return drain.error();
  const auto host_addresses = local_addresses();
  if (!host_addresses) return host_addresses.error();

  drain_ = *drain;
  if (is_draining()) {
    spdlog::warn(
        "the node is being drained since {}: it takes no new sessions and forwards (portway undrain)",
        to_rfc3339(*drain_.since));
  }
  usage_.restore(std::move(*usage), *instances, *forwards);
  for (const ApiKey& key : *keys) keys_.add_stored(key);
  keys_.look_at_ends();
  std::map<std::string, SessionEnd, std::less<>> over;  // by instance
  // Those that have an interface come first: no other can take it then.
  std::stable_partition(instances->begin(), instances->end(),
                        [](const Instance& each) { return each.tap_index != 0; });
  for (const Instance& instance : *instances) {
    if (const auto why = take_up(instance)) over.emplace(instance.id, *why);
  }
  std::vector<ForwardId> unbound;
  for (const Forward& forward : *forwards) {
    if (registry_.find_instance(forward.instance_id) == nullptr) continue;
    // A forward may be older than the configured range: it keeps its port, which the pool then does not
    // count.
    (void)ports_.take(forward.host_port);
    registry_.add_forward(forward);
    if (forward.expires_at && *forward.expires_at <= keys_.ring().now()) expired_.insert(forward.id);
    expiries_.set(forward.id, forward.expires_at);
    if (!over.contains(forward.instance_id) && !is_stopped(forward)) unbound.push_back(forward.id);
  }
  for (const auto& [id, why] : over) {
    // What a killed daemon has left there.
    if (const auto netns = watch_.open_netns(*registry_.find_instance(id))) {
      source_paths_.remove_leftovers(*netns);
    }
    end_session(id, why);
  }
  serve_kept(*instances);
  serve_restored(std::move(unbound), *host_addresses);
  spdlog::info("restored {} instances and {} forwards, {} of which failed; {} sessions ended meanwhile",
               registry_.instance_count(), registry_.forward_count(), failures_.size(), over.size());
  return {};
}

/// Knows and watches a session that is on disk like this. Returns why it is over already, or nothing.
std::optional<SessionEnd> Control::take_up(const Instance& stored) {
  Instance instance = stored;
  const bool watched = instance.state == InstanceState::kRunning;
  // An id that could not be read then, or cannot be read now, proves nothing.
  const bool other_boot = !stored.boot_id.empty() && !boot_id().empty() && stored.boot_id != boot_id();
  const bool rebooted = watched && other_boot;
  if (other_boot) {
    // The number is another interface's by now, perhaps the one that this API's callers come by.
    instance.tap_index = 0;
    instance.tap_carrier_downs = {};
    instance.idle_tap = {};
  }
  if (watched && stored.boot_id.empty()) instance.boot_id = boot_id();
  const auto over = rebooted ? SessionEnd::kNodeRebooted : watched ? watch_.watch(instance) : std::nullopt;
  const Instance& known = registry_.put_instance(std::move(instance));
  if (!watched || over) return over;
  log_tap_trouble(known);
  if (known.tap_index != stored.tap_index) {
    unsaved_.change(stored);  // the registry has it as it is now already
    on_armed(known.id, {known.tap_index, known.tap_carrier_downs});
    return std::nullopt;
  }
  enable_path(known);
  source_paths_.report_fault(known);
  const bool more_is_known = known.tap_carrier_downs != stored.tap_carrier_downs ||
                             known.idle_tap != stored.idle_tap || known.boot_id != stored.boot_id;
  if (more_is_known) unsaved_.change(stored);
  return std::nullopt;
}

const std::string& Control::boot_id() {
  if (boot_id_.empty()) boot_id_ = kernel_boot_id();
  return boot_id_;
}

/// All that can be bound comes first, and is served while the rest is tried again.
void Control::serve_restored(std::vector<ForwardId> unbound, std::span<const IpAddress> host_addresses) {
  const auto deadline = std::chrono::steady_clock::now() + kBindAgainFor;
  for (;;) {
    const bool last = std::chrono::steady_clock::now() >= deadline;
    std::erase_if(unbound, [&](const ForwardId& id) {
      const Forward* forward = registry_.find_forward(id);
      if (forward == nullptr) return true;  // its session has ended by now
      const Instance& instance = *registry_.find_instance(forward->instance_id);
      auto port = bind_for(instance, *forward, host_addresses);
      if (!port && port.error().code == ErrorCode::kHostPortTaken && !last) return false;
      if (port) {
        serve(instance, *forward, std::move(*port));
      } else {
        fail(instance, *forward, port.error().detail);
      }
      return true;
    });
    if (unbound.empty()) return;
    watch_.dispatch_within(kBindAgainEvery);  // no event reports a free port
  }
}

/// Forwards that were deleted while they had connections: they have neither a port nor a row in the store.
void Control::serve_kept(std::span<const Instance> stored) {
  for (const KeptForward& kept : dataplane_.kept_forwards()) {
    const auto found = std::ranges::find(stored, kept.session_id, &Instance::session_id);
    const Instance* instance = found == stored.end() ? nullptr : registry_.find_instance(found->id);
    if (instance == nullptr || instance->session_id != kept.session_id ||
        instance->state != InstanceState::kRunning)
      continue;
    Forward forward;
    forward.id = kept.id;
    forward.instance_id = instance->id;
    forward.session_id = kept.session_id;
    forward.guest_port = kept.guest_port;
    forward.limits.max_bytes_per_second = kept.max_bytes_per_second;
    serve(*instance, forward, BoundPort(0, {}));
    dataplane_.close(kept.id, kept.draining ? ClosePolicy::kDrain : ClosePolicy::kKeep, kept.why);
    forget_serving({forward});
  }
}

void Control::fail(const Instance& instance, const Forward& forward, const std::string& why) {
  spdlog::error("forward {} of instance {} is not served: {}", to_string(forward.id), instance.id, why);
  failures_.emplace(forward.id, why);
  publish(instance, event::ForwardFailed{event::of(forward), why});
}

/// The port of a forward that exists. The configuration and the host's addresses may have changed since it
/// was made: what led to a guest then may lead into the node now.
Result<BoundPort> Control::bind_for(const Instance& instance, const Forward& forward,
                                    std::span<const IpAddress> host_addresses) {
  const auto netns = watch_.netns_of(instance);
  if (!netns) return netns.error();
  std::vector<IpAddress> of_netns;
  if (*netns) {
    auto own = local_addresses(**netns);
    if (!own) return own.error();
    of_netns = std::move(*own);
    host_addresses = of_netns;
  }
  for (const IpAddress& address : guest_addresses(instance)) {
    auto checked = check_guest_address(address, config_.guests.networks, host_addresses);
    if (!checked) return checked.error();
  }
  auto below = check_socket_directory(forward.target, config_.guests.socket_directories);
  if (!below) return below.error();
  return dataplane_.bind(forward.host_port);
}

void Control::retry_failed_forwards() {
  const auto host_addresses = local_addresses();
  if (!host_addresses) return;
  std::vector<ForwardId> ids;
  for (const auto& [id, why] : failures_) ids.push_back(id);
  for (const ForwardId& id : ids) {
    const Forward* forward = registry_.find_forward(id);
    if (forward == nullptr) continue;
    const Instance& instance = *registry_.find_instance(forward->instance_id);
    auto port = bind_for(instance, *forward, *host_addresses);
    if (!port) {
      failures_[id] = port.error().detail;
      continue;
    }
    failures_.erase(id);
    serve(instance, *forward, std::move(*port));
    spdlog::info("forward {} of instance {} is served now", to_string(id), instance.id);
    publish(instance, event::ForwardListening{event::of(*forward)});
  }
}

}  // namespace portway
