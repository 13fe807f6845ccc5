// Control's instances and their sessions: begun, changed, and ended by the orchestrator or by the world.
#include "control/control.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "control/not_found.h"

namespace portway {
namespace {

/// What the records of a session's connections say.
CloseHow close_how(SessionEnd end) {
  const bool tap_gone = end == SessionEnd::kCarrierLost || end == SessionEnd::kTapDeleted;
  return tap_gone ? CloseHow::kTapGone : CloseHow::kInstanceStopped;
}

/// For the log: what is watched, and where it is.
std::string where(const Instance& instance) {
  const auto in = [](std::string_view netns) {
    return netns.empty() ? std::string() : fmt::format(" in network namespace {}", netns);
  };
  if (instance.tap.empty()) return fmt::format("of process {}{}", *instance.vmm_pid, in(instance.netns));
  return fmt::format("behind {}{}", instance.tap, in(tap_netns_of(instance)));
}

Result<void> check_session(const std::optional<Uuid>& meant, const Instance* known) {
  if (!meant || (known != nullptr && known->session_id == *meant)) return {};
  return Error{ErrorCode::kSessionMismatch,
               known == nullptr
                   ? fmt::format("There is no instance with session {}.", to_string(*meant))
                   : fmt::format("Instance {} has session {} now; the one in session_id is over.", known->id,
                                 to_string(known->session_id)),
               "session_id"};
}

/// Nothing is left to change.
Error session_over(const Instance& instance) {
  return {ErrorCode::kInstanceNotRunning,
          fmt::format("Instance {} is stopped; register its next session with PUT, at the guest's present "
                      "address.",
                      instance.id)};
}

}  // namespace

Result<Control::PutInstance> Control::put_instance(Instance asked, const std::optional<Uuid>& session,
                                                   std::string_view by) {
  if (auto running = check_running(); !running) return running.error();
  std::vector<IpAddress> host_addresses;
  if (asked.netns.empty()) {
    auto of_node = local_addresses();
    if (!of_node) return of_node.error();
    host_addresses = std::move(*of_node);
  }
  InstanceLimits limits{config_.guests.networks, host_addresses, config_.profiles,
                        config_.guests.socket_directories};
  if (auto checked = check_instance(asked, limits); !checked) return checked.error();

  watch_.refresh(asked.id);  // a session whose end has not been noticed yet is not there any more
  if (const Instance* known = registry_.find_instance(asked.id); auto meant = check_session(session, known)) {
    const bool running = known != nullptr && known->state == InstanceState::kRunning;
    if (running && is_machine_of(*known, asked)) return change_in_place(asked, by);
  } else {
    return meant.error();
  }
  const auto namespaces = watch_.identify(asked);
  if (!namespaces) return namespaces.error();
  if (namespaces->guest) {
    const auto own = local_addresses(*namespaces->guest->netns());
    if (!own) return own.error();
    limits.host_addresses = *own;
    if (auto checked = check_guest_addresses(asked, limits); !checked) return checked.error();
  }
  if (auto free = check_tap_is_free(asked); !free) return free.error();
  if (auto free = check_addresses_are_free(asked); !free) return free.error();
  if (std::string fault = watch_.tap_fault(asked); !fault.empty()) {
    return Error{ErrorCode::kInvalidRequest, std::move(fault), asked.device.empty() ? "tap" : "device"};
  }
  const Instance* before = registry_.find_instance(asked.id);
  const bool created = before == nullptr;
  asked.session_id = make_uuid();
  asked.state = InstanceState::kRunning;
  asked.created_at = created ? now() : before->created_at;
  asked.boot_id = boot_id();
  if (auto stored = store_.start_session(asked); !stored) return stored.error();
  if (!created) replace_session(*registry_.find_instance(asked.id), asked);
  const Instance& instance = registry_.put_instance(asked);
  streams_.recheck();
  spdlog::info("instance {}: session {} at {} {}{}, by {}", instance.id, to_string(instance.session_id),
               fmt::join(to_strings(guest_addresses(instance)), " and "), where(instance),
               instance.tap_index != 0 ? ", armed" : "", by);
  publish(instance, event::InstanceStarted());
  if (const auto over = take_up(asked)) end_session(asked.id, *over);
  return PutInstance{instance, created};
}

/// The same machine at the same place: the rest of a registration changes in place. Its tap may have another
/// name by now, and the name that it had may be another tap's.
bool Control::is_machine_of(const Instance& known, const Instance& asked) const {
  if (guest_addresses(known) != guest_addresses(asked) || known.device != asked.device) return false;
  if (known.netns != asked.netns || tap_netns_of(known) != tap_netns_of(asked)) return false;
  const bool is_process = known.tap.empty() || known.netns == kNetnsOfVmm || known.tap_netns == kNetnsOfVmm;
  if (is_process && known.vmm_pid != asked.vmm_pid) return false;
  Instance there = asked;
  there.tap_netns_identity = known.tap_netns_identity;
  const std::int32_t named = watch_.interface_of(there).index;
  return known.tap_index != 0 && named != 0 ? named == known.tap_index : known.tap == asked.tap;
}

/// Another owner, profile, process, target or name of the tap of a session that continues, with its forwards
/// and connections: those beyond a smaller profile's quota stay, and forwards lead where they did.
Result<Control::PutInstance> Control::change_in_place(const Instance& asked, std::string_view by) {
  const auto change = [&asked](Instance instance, std::uint64_t vmm_started) {
    instance.owner = asked.owner;
    instance.profile = asked.profile;
    instance.tap = asked.tap;
    instance.vmm_pid = asked.vmm_pid;
    instance.target = asked.target;
    instance.vmm_started = vmm_started;
    return instance;
  };
  const Instance before = *registry_.find_instance(asked.id);
  std::vector<std::string_view> changed;
  if (before.owner != asked.owner) changed.push_back("owner");
  if (before.profile != asked.profile) changed.push_back("profile");
  if (before.vmm_pid != asked.vmm_pid) changed.push_back("vmm_pid");
  if (before.tap != asked.tap) changed.push_back("tap");
  if (before.target != asked.target) changed.push_back("target");
  if (changed.empty()) return PutInstance{*registry_.find_instance(asked.id), false};
  Instance wanted = change(before, before.vmm_started);
  if (before.vmm_pid != asked.vmm_pid) {
    if (auto identified = SessionWatch::identify_process(wanted); !identified) return identified.error();
  }
  if (auto stored = store_.put_instance(wanted); !stored) return stored.error();
  if (UnsavedSessions::Entry* unsaved = unsaved_.find(asked.id)) unsaved->on_disk = wanted;
  const Instance* known = registry_.find_instance(asked.id);
  if (known->state != InstanceState::kRunning) return put_instance(asked, {}, by);  // it has ended meanwhile
  const Instance& instance = registry_.put_instance(change(*known, wanted.vmm_started));
  streams_.recheck();
  spdlog::info("instance {}: session {} continues with another {}, by {}", instance.id,
               to_string(instance.session_id), fmt::join(changed, ", "), by);
  // The previous owner does not see the instance any more, and learns why from this.
  if (before.owner != instance.owner) {
    dataplane_.change_owner(instance.session_id);
    publish(before, event::InstanceUpdated{{"owner"}});
  }
  publish(instance, event::InstanceUpdated{changed});
  if (before.vmm_pid != instance.vmm_pid) {
    if (const auto over = watch_.set_process(instance)) end_session(asked.id, *over);
  }
  return PutInstance{instance, false};
}

Result<const Instance*> Control::change_guest_addresses(std::string_view id, const GuestAddressChange& change,
                                                        const std::optional<Uuid>& session,
                                                        std::string_view by) {
  if (auto running = check_running(); !running) return running.error();
  if (registry_.find_instance(id) == nullptr) return no_such_instance();
  watch_.refresh(std::string(id));  // a session whose end has not been noticed yet is not there any more
  const Instance before = *registry_.find_instance(id);
  if (auto meant = check_session(session, &before); !meant) return meant.error();
  const auto wanted = check_change(before, change);
  if (!wanted) return wanted.error();
  std::vector<std::string_view> changed;
  if (wanted->guest_address != before.guest_address) changed.push_back("guest_address");
  if (wanted->guest_address_v6 != before.guest_address_v6) changed.push_back("guest_address_v6");
  if (changed.empty()) return registry_.find_instance(id);
  if (auto stored = store_.put_instance(*wanted); !stored) return stored.error();
  if (UnsavedSessions::Entry* unsaved = unsaved_.find(id)) unsaved->on_disk = *wanted;
  Instance moved = *registry_.find_instance(id);
  if (moved.state != InstanceState::kRunning) return session_over(moved);  // it has ended meanwhile
  moved.guest_address = wanted->guest_address;
  moved.guest_address_v6 = wanted->guest_address_v6;
  const Instance& instance = registry_.put_instance(std::move(moved));
  streams_.recheck();
  // The path comes first: no connection to a new address is made without it.
  source_paths_.change_addresses(instance);
  dataplane_.set_guest(instance.session_id, instance.guest_address, instance.guest_address_v6);
  spdlog::info("instance {}: session {} continues at {} instead of {}, by {}", instance.id,
               to_string(instance.session_id), fmt::join(to_strings(guest_addresses(instance)), " and "),
               fmt::join(to_strings(guest_addresses(before)), " and "), by);
  publish(instance, event::InstanceUpdated{changed});
  if (!failures_.empty()) retry_failed_forwards();  // perhaps because of its address
  return &instance;
}

/// The instance as it would be.
Result<Instance> Control::check_change(const Instance& known, const GuestAddressChange& change) const {
  if (known.state != InstanceState::kRunning) return session_over(known);
  Instance wanted = known;
  if (auto changed = portway::change_guest_addresses(wanted, change); !changed) return changed.error();
  const auto netns = watch_.netns_of(known);
  if (!netns) return netns.error();
  const auto host_addresses = *netns ? local_addresses(**netns) : local_addresses();
  if (!host_addresses) return host_addresses.error();
  const InstanceLimits limits{config_.guests.networks, *host_addresses, config_.profiles};
  if (auto checked = check_guest_addresses(wanted, limits); !checked) return checked.error();
  if (auto free = check_addresses_are_free(wanted); !free) return free.error();
  return wanted;
}

/// The disk has the new session, and nothing of the old one any more.
void Control::replace_session(const Instance& old, const Instance& replacement) {
  on_saved(old.id, unsaved_.take(old.id));
  if (old.state != InstanceState::kRunning) return;
  Instance replaced = old;
  replaced.state = InstanceState::kStopped;
  replaced.ended = SessionEnd::kReplaced;
  const std::vector<Forward> ended = end_in_memory(replaced);
  give_back_ports(ended);
  spdlog::info("instance {}: session {} replaced by {}, ended with {} forwards", replaced.id,
               to_string(replaced.session_id), to_string(replacement.session_id), ended.size());
  publish_stopped(replaced, ended.size());
}

/// Two running instances behind one interface would let the clients of one reach the other's machine. Names
/// do not show that: an interface may have had another one when its session began.
Result<void> Control::check_tap_is_free(const Instance& asked) const {
  if (asked.tap.empty()) return {};
  const std::int32_t wanted = watch_.interface_of(asked).index;
  for (const Instance* other : registry_.instances()) {
    if (other->id == asked.id || other->state != InstanceState::kRunning || other->tap.empty()) continue;
    if (other->tap_netns_identity != asked.tap_netns_identity) continue;
    const std::int32_t taken = watch_.interface_of(*other).index;
    const bool both_missing = wanted == 0 && taken == 0;
    if (both_missing ? other->tap != asked.tap : taken != wanted) continue;
    return Error{ErrorCode::kTapInUse,
                 fmt::format("tap {} belongs to the running instance {}; stop that one first, or give this "
                             "machine's own tap.",
                             in_quotes(asked.tap), other->id),
                 "tap"};
  }
  return {};
}

/// Two guests with one address behind one device would get each other's clients. Behind two devices they may
/// have the same address: each connection is bound to its device. The node's routes may lead to any of them.
/// Names do not show what is one device: an interface may have had another one when its session began.
Result<void> Control::check_addresses_are_free(const Instance& asked) const {
  const std::vector<IpAddress> wanted = guest_addresses(asked);
  for (const Instance* other : registry_.instances()) {
    if (other->id == asked.id || other->state != InstanceState::kRunning) continue;
    if (other->netns_identity != asked.netns_identity) continue;
    if (asked.device.empty() && other->device.empty()) continue;  // each has a tap of its own
    const bool routed = asked.device == kByRoute || other->device == kByRoute;
    const auto index_of = [this](const Instance& each) {
      return (each.device.empty() ? watch_.interface_of(each) : watch_.device_of(each)).index;
    };
    const bool one_device = device_of(*other) == device_of(asked) ||
                            (index_of(asked) != 0 && index_of(asked) == index_of(*other));
    if (!routed && !one_device) continue;
    for (const IpAddress& taken : guest_addresses(*other)) {
      if (std::ranges::find(wanted, taken) == wanted.end()) continue;
      return Error{
          ErrorCode::kGuestAddressInUse,
          fmt::format("{} behind {} belongs to the running instance {}; stop that one first, or give "
                      "this machine an address of its own.",
                      taken.to_string(),
                      asked.device == kByRoute ? "the routes" : in_quotes(device_of(asked)), other->id),
          "guest_address"};
    }
  }
  return {};
}

void Control::on_armed(const std::string& instance_id, const TapIdentity& tap) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  unsaved_.change(*known);
  Instance instance = *known;
  instance.tap_index = tap.index;
  instance.tap_carrier_downs = tap.carrier_downs;
  instance.idle_tap = {};
  const Instance& armed = registry_.put_instance(std::move(instance));
  streams_.recheck();
  enable_path(armed);
  source_paths_.apply(armed);
  // Afterwards: until it has a device, no connection to the guest is made.
  dataplane_.set_device(armed.session_id, dial_device(armed), source_paths_.space_of(armed));
  spdlog::info("instance {}: session {} armed, its tap {} (interface {}) has a carrier", armed.id,
               to_string(armed.session_id), armed.tap, armed.tap_index);
  publish(armed, event::InstanceTapUp());
  source_paths_.report_fault(armed);
}

/// Unless it has one, or its namespace is not open: then on_device() comes later.
void Control::enable_path(const Instance& instance) {
  if (const auto netns = watch_.netns_of(instance)) source_paths_.enable(instance, *netns);
}

void Control::on_idle_tap(const std::string& instance_id, const TapIdentity& tap) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  unsaved_.change(*known);
  Instance instance = *known;
  instance.idle_tap = tap;
  registry_.put_instance(std::move(instance));
}

/// It is the same interface, so it is the same machine. `tap` stays as registered, so that registering the
/// instance again stays idempotent.
void Control::on_tap_renamed(const std::string& instance_id, const std::string& name) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  spdlog::info("instance {}: its tap {} is called {} now", instance_id, known->tap, name);
  publish(*known, event::InstanceTapRenamed{.tap = known->tap, .name = name});
}

void Control::on_device(const std::string& instance_id) {
  const Instance* known = registry_.find_instance(instance_id);
  if (known == nullptr) return;
  enable_path(*known);  // its namespace may have been opened only now
  const int device = dial_device(*known);
  dataplane_.set_device(known->session_id, device, source_paths_.space_of(*known));
  spdlog::info("instance {}: the device {} to its guest {}", known->id, known->device,
               device == kNoDevice ? "is not there" : fmt::format("is interface {} now", device));
}

/// What connections to the guest are bound to; kNoDevice before its tap, if it has one, has had a carrier.
int Control::dial_device(const Instance& instance) const {
  if (instance.tap_index == 0 && !instance.tap.empty()) return kNoDevice;
  if (instance.device.empty()) return instance.tap_index;
  if (instance.device == kByRoute) return kAnyDevice;
  const std::int32_t index = watch_.device_of(instance).index;
  return index != 0 ? index : kNoDevice;
}

Result<Control::CapturePlace> Control::capture_place(const Instance& instance) const {
  const bool at_tap = !instance.tap.empty();
  if (!at_tap && instance.device == kByRoute) {
    return Error{
        ErrorCode::kInvalidRequest,
        "The instance has no tap, and its guest is reached by route: there is no interface to capture "
        "on. Register it with a tap or a device.",
        "tap"};
  }
  auto netns = at_tap ? watch_.netns_of_tap(instance) : watch_.netns_of(instance);
  if (!netns) return netns.error();
  const LinkId link = at_tap ? watch_.interface_of(instance) : watch_.device_of(instance);
  return CapturePlace{at_tap ? instance.tap : instance.device, link.index, std::move(*netns)};
}

Result<void> Control::stop_instance(std::string_view id, const std::optional<Uuid>& session,
                                    std::string_view by) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) return no_such_instance();
  if (auto meant = check_session(session, known); !meant) return meant;
  const auto stopped_now = [](Instance instance) {
    if (instance.state == InstanceState::kRunning) instance.ended = SessionEnd::kStopped;
    instance.state = InstanceState::kStopped;
    return instance;
  };
  UnsavedSessions::Entry* unsaved = unsaved_.find(id);
  const std::uint64_t change = unsaved == nullptr ? 0 : unsaved->change;
  if (known->state == InstanceState::kStopped && unsaved == nullptr) return {};
  if (auto stored = store_.end_session(stopped_now(*known)); !stored) return stored.error();
  known = registry_.find_instance(id);
  unsaved = unsaved_.find(id);
  const bool changed = unsaved != nullptr && unsaved->change != change;
  if (known->state == InstanceState::kStopped && changed) {
    // Its machine has gone meanwhile: that is the reason to save. That the session is over is on disk.
    unsaved->on_disk = stopped_now(unsaved->on_disk);
    report_end(known->id, *unsaved);
    return {};
  }
  on_saved(known->id, unsaved_.take(id));
  if (known->state == InstanceState::kStopped) return {};
  const Instance stopped = stopped_now(*known);
  const std::vector<Forward> ended = end_in_memory(stopped);
  give_back_ports(ended);
  report_stopped(stopped, ended.size(), by);
  return {};
}

Result<void> Control::delete_instance(std::string_view id, const std::optional<Uuid>& session,
                                      std::string_view by) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) return no_such_instance();
  if (auto meant = check_session(session, known); !meant) return meant;
  if (auto stored = store_.delete_instance(id); !stored) return stored.error();
  const Instance deleted = *registry_.find_instance(id);
  give_back_ports(unsaved_.take(id).forwards);
  const auto netns = watch_.netns_of(deleted);
  const int link = std::max(0, dial_device(deleted));
  watch_.forget(id);
  source_paths_.retire(deleted);
  const std::vector<Forward> forwards = registry_.remove_instance(id);
  streams_.recheck();
  stop_serving(deleted.session_id, forwards, CloseHow::kInstanceStopped);
  if (deleted.state == InstanceState::kRunning && netns && *netns) remains_.add(deleted, *netns, link);
  give_back_ports(forwards);
  spdlog::info("instance {}: deleted with session {} and {} forwards, by {}", deleted.id,
               to_string(deleted.session_id), forwards.size(), by);
  publish(deleted, event::InstanceDeleted());
  return {};
}

void Control::end_session(std::string_view id, SessionEnd why) {
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr || known->state == InstanceState::kStopped) return;
  UnsavedSessions::Entry& unsaved = unsaved_.change(*known);
  Instance stopped = *known;
  stopped.state = InstanceState::kStopped;
  stopped.ended = why;
  unsaved.end_reported = false;
  std::ranges::move(end_in_memory(stopped), std::back_inserter(unsaved.forwards));
  report_end(stopped.id, unsaved);
}

/// Unless a restart would not find out again that the session is over.
void Control::report_end(const std::string& instance_id, UnsavedSessions::Entry& unsaved) {
  if (unsaved.end_reported) return;
  const Instance& stopped = *registry_.find_instance(instance_id);
  unsaved.end_reported = unsaved.on_disk.state == InstanceState::kStopped ||
                         stopped.ended == SessionEnd::kNodeRebooted || watch_.stays_over(unsaved.on_disk);
  if (unsaved.end_reported) report_stopped(stopped, unsaved.forwards.size());
}

/// Its forwards are not served any more; their ports are still taken.
std::vector<Forward> Control::end_in_memory(const Instance& stopped) {
  const auto netns = watch_.netns_of(stopped);
  const int link = std::max(0, dial_device(stopped));
  watch_.forget(stopped.id);
  source_paths_.retire(stopped);
  std::vector<Forward> forwards = registry_.remove_forwards(stopped.id);
  stop_serving(stopped.session_id, forwards, close_how(*stopped.ended));
  if (netns && *netns) remains_.add(stopped, *netns, link);
  if (committing_ != nullptr && committing_->instance_id_ == stopped.id) {
    for (auto& lease : committing_->leases_) lease->close();
  }
  registry_.put_instance(stopped);
  streams_.recheck();
  return forwards;
}

void Control::report_stopped(const Instance& stopped, std::size_t forwards, std::string_view by) {
  spdlog::info("instance {}: session {} ended with {} forwards: {}{}{}", stopped.id,
               to_string(stopped.session_id), forwards, to_string(*stopped.ended), by.empty() ? "" : ", by ",
               by);
  publish_stopped(stopped, forwards);
}

void Control::publish_stopped(const Instance& stopped, std::size_t forwards) {
  publish(stopped, event::InstanceStopped{.reason = *stopped.ended, .port_forwards = forwards});
}

/// The disk has the instance as it is, and nothing of its sessions that are over.
void Control::on_saved(const std::string& instance_id, const UnsavedSessions::Entry& saved) {
  give_back_ports(saved.forwards);
  if (!saved.end_reported) report_stopped(*registry_.find_instance(instance_id), saved.forwards.size());
}

bool Control::is_ending(const Instance& instance) const {
  const UnsavedSessions::Entry* unsaved = unsaved_.find(instance.id);
  return unsaved != nullptr && !unsaved->end_reported;
}

}  // namespace portway
