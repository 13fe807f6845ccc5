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

std::vector<std::string_view> names_of_changes(const Instance& before, const Instance& wanted) {
  std::vector<std::string_view> changed;
  if (before.owner != wanted.owner) changed.push_back("owner");
  if (before.profile != wanted.profile) changed.push_back("profile");
  if (before.metadata != wanted.metadata) changed.push_back("metadata");
  if (before.vmm_pid != wanted.vmm_pid) changed.push_back("vmm_pid");
  if (before.tap != wanted.tap) changed.push_back("tap");
  if (before.target != wanted.target) changed.push_back("target");
  if (before.guest_address != wanted.guest_address) changed.push_back("guest_address");
  if (before.guest_address_v6 != wanted.guest_address_v6) changed.push_back("guest_address_v6");
  return changed;
}

/// `known`, of which the world may have changed the rest meanwhile.
Instance with_settings(Instance known, const Instance& wanted) {
  known.owner = wanted.owner;
  known.profile = wanted.profile;
  known.metadata = wanted.metadata;
  known.vmm_pid = wanted.vmm_pid;
  known.vmm_started = wanted.vmm_started;
  known.tap = wanted.tap;
  known.target = wanted.target;
  known.guest_address = wanted.guest_address;
  known.guest_address_v6 = wanted.guest_address_v6;
  return known;
}

/// Nothing is left to change.
Error session_over(const Instance& instance) {
  return {ErrorCode::kInstanceNotRunning,
          fmt::format("Instance {} is stopped; register its next session with PUT, at the guest's present "
                      "address.",
                      instance.id)};
}

}  // namespace

Change<std::unique_ptr<OwnedInstance>> Control::own_instance(std::string id) {
  auto change = co_await begin_change();
  if (!change) co_return change.error();
  auto instance = co_await locks_.own(lock_of_instance(id));
  co_return std::make_unique<OwnedInstance>(unsaved_, std::move(id), std::move(*change), std::move(instance));
}

Change<Control::PutInstance> Control::put_instance(Instance asked, Precondition<Instance> precondition,
                                                   Actor by) {
  const auto owned = co_await own_instance(asked.id);
  if (!owned) co_return owned.error();
  co_return co_await put_owned_instance(std::move(asked), std::move(precondition), std::move(by));
}

Change<Control::PutInstance> Control::put_owned_instance(Instance asked, Precondition<Instance> precondition,
                                                         Actor by) {
  if (auto running = check_running(); !running) co_return running.error();
  std::vector<IpAddress> host_addresses;
  if (asked.netns.empty()) {
    auto of_node = local_addresses();
    if (!of_node) co_return of_node.error();
    host_addresses = std::move(*of_node);
  }
  InstanceLimits limits{config_.guests.networks, host_addresses, profiles_,
                        config_.guests.socket_directories};
  if (auto known = check_profile_is_known(asked.profile); !known) co_return known.error();
  if (auto checked = check_instance(asked, limits); !checked) co_return checked.error();

  watch_.refresh(asked.id);  // a session whose end has not been noticed yet is not there any more
  const Instance* known = registry_.find_instance(asked.id);
  if (auto met = require(precondition, known); !met) co_return met.error();
  const bool running = known != nullptr && known->state == InstanceState::kRunning;
  if (running && is_machine_of(*known, asked)) {
    co_return co_await change_in_place(std::move(asked), std::move(by));
  }
  if (auto takes = check_takes("sessions"); !takes) co_return takes.error();
  if (auto checked = check_new_session(asked, limits); !checked) co_return checked.error();
  co_return co_await begin_session(std::move(asked), std::move(by));
}

/// Identifies the places in `asked`, and checks what they allow.
Result<void> Control::check_new_session(Instance& asked, InstanceLimits& limits) {
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
  return {};
}

Change<Control::PutInstance> Control::begin_session(Instance asked, Actor by) {
  const Instance* before = registry_.find_instance(asked.id);
  const bool created = before == nullptr;
  asked.session_id = make_uuid();
  asked.state = InstanceState::kRunning;
  asked.created_at = created ? now() : before->created_at;
  asked.boot_id = boot_id();
  const auto place = beginning_.insert(beginning_.end(), &asked);
  const auto stored = co_await store_.start_session(asked);
  beginning_.erase(place);
  if (!stored) co_return stored.error();
  std::optional<Instance> lost;  // as its former owner saw it last
  if (!created) {
    replace_session(*registry_.find_instance(asked.id), asked);
    const Instance& replaced = *registry_.find_instance(asked.id);
    if (replaced.owner != asked.owner) lost = replaced;
  }
  const Instance instance = registry_.put_instance(asked);
  streams_.recheck();
  const LogFields fields = by.fields();
  spdlog::info("instance {}: session {} at {} {}{}, by {}", instance.id, to_string(instance.session_id),
               fmt::join(to_strings(guest_addresses(instance)), " and "), where(instance),
               instance.tap_index != 0 ? ", armed" : "", by.name);
  if (lost) publish_lost(*lost);
  const auto started = std::make_shared<InstanceStatus>(status_of(instance));
  events_.publish({.time = now(),
                   .instance_id = instance.id,
                   .session_id = instance.session_id,
                   .owner = instance.owner,
                   .kind = event::InstanceStarted(),
                   .instance = started});
  if (const auto over = take_up(asked)) {
    end_session(asked.id, *over);
  } else {
    // What is found out about it at once is no event. Nobody has read this one yet.
    *started = status_of(*registry_.find_instance(asked.id));
  }
  co_return PutInstance{*registry_.find_instance(asked.id), created};
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
Change<Control::PutInstance> Control::change_in_place(Instance asked, Actor by) {
  const Instance before = *registry_.find_instance(asked.id);
  Instance wanted = before;
  wanted.owner = asked.owner;
  wanted.profile = asked.profile;
  wanted.metadata = asked.metadata;
  wanted.tap = asked.tap;
  wanted.vmm_pid = asked.vmm_pid;
  wanted.target = asked.target;
  const auto changed = co_await change_session(before, std::move(wanted), by);
  if (!changed) co_return changed.error();
  if (!*changed) {  // it has ended meanwhile
    co_return co_await put_owned_instance(std::move(asked), nullptr, std::move(by));
  }
  co_return PutInstance{**changed, false};
}

Change<Instance> Control::change_instance(std::string id, InstanceChange change,
                                          Precondition<Instance> precondition, Actor by) {
  const auto owned = co_await own_instance(id);
  if (!owned) co_return owned.error();
  if (auto running = check_running(); !running) co_return running.error();
  if (registry_.find_instance(id) == nullptr) co_return no_such_instance();
  watch_.refresh(id);  // a session whose end has not been noticed yet is not there any more
  const Instance before = *registry_.find_instance(id);
  if (auto met = require(precondition, &before); !met) co_return met.error();
  const auto wanted = changed_instance(before, change);
  if (!wanted) co_return wanted.error();
  const auto changed = co_await change_session(before, *wanted, std::move(by));
  if (!changed) co_return changed.error();
  if (!*changed) co_return session_over(*registry_.find_instance(id));  // it has ended meanwhile
  co_return **changed;
}

/// The instance as it would be.
Result<Instance> Control::changed_instance(const Instance& known, const InstanceChange& change) const {
  if (known.state != InstanceState::kRunning) return session_over(known);
  Instance wanted = known;
  wanted.owner = change.owner.value_or(known.owner);
  wanted.profile = change.profile.value_or(known.profile);
  patch(wanted.metadata, change.metadata);
  wanted.vmm_pid = change.vmm_pid.value_or(known.vmm_pid);
  const bool is_process = known.tap.empty() || known.netns == kNetnsOfVmm || known.tap_netns == kNetnsOfVmm;
  if (is_process && wanted.vmm_pid != known.vmm_pid) {
    return Error{ErrorCode::kInvalidRequest,
                 "The process is what this instance is known by: another one is another machine. Register it "
                 "with PUT.",
                 "vmm_pid"};
  }
  if (auto changed = change_guest_addresses(wanted, change.addresses); !changed) return changed.error();
  const auto netns = watch_.netns_of(known);
  if (!netns) return netns.error();
  const auto host_addresses = *netns ? local_addresses(**netns) : local_addresses();
  if (!host_addresses) return host_addresses.error();
  const InstanceLimits limits{config_.guests.networks, *host_addresses, profiles_,
                              config_.guests.socket_directories};
  if (auto profile = check_profile_is_known(wanted.profile); !profile) return profile.error();
  if (auto checked = check_instance(wanted, limits); !checked) return checked.error();
  if (guest_addresses(wanted) == guest_addresses(known)) return wanted;
  if (auto free = check_addresses_are_free(wanted); !free) return free.error();
  return wanted;
}

/// The running session `before` continues with the settings of `wanted`; nullopt if it has ended meanwhile.
Change<std::optional<Instance>> Control::change_session(Instance before, Instance wanted, Actor by) {
  const std::vector<std::string_view> changed = names_of_changes(before, wanted);
  if (changed.empty()) co_return before;
  if (before.vmm_pid != wanted.vmm_pid) {
    if (auto identified = SessionWatch::identify_process(wanted); !identified) co_return identified.error();
  }
  const auto place = beginning_.insert(beginning_.end(), &wanted);
  const auto stored = co_await store_.put_instance(wanted);
  beginning_.erase(place);
  if (!stored) co_return stored.error();
  if (UnsavedSessions::Entry* unsaved = unsaved_.find(wanted.id)) unsaved->on_disk = wanted;
  const Instance* known = registry_.find_instance(wanted.id);
  if (known->state != InstanceState::kRunning) co_return std::optional<Instance>();
  const Instance instance = registry_.put_instance(with_settings(*known, wanted));
  streams_.recheck();
  const LogFields fields = by.fields();
  spdlog::info("instance {}: session {} continues with another {}, by {}", instance.id,
               to_string(instance.session_id), fmt::join(changed, ", "), by.name);
  if (guest_addresses(before) != guest_addresses(instance)) {
    // The path comes first: no connection to a new address is made without it.
    source_paths_.change_addresses(instance);
    dataplane_.set_guest(instance.session_id, instance.guest_address, instance.guest_address_v6);
  }
  dataplane_.set_profile_limits(instance.session_id, profile_of(instance).limits);
  // The previous owner does not see the instance any more, and learns why from this.
  if (before.owner != instance.owner) {
    dataplane_.change_owner(instance.session_id, instance.owner);
    publish_lost(before);
  }
  publish(instance, event::InstanceUpdated{changed});
  if (before.owner != instance.owner) {
    // Its new owner has not seen them yet.
    for (const Forward* each : registry_.forwards(instance.id)) {
      publish(instance, event::ForwardUpdated{event::of(*each)});
    }
  }
  if (!failures_.empty()) retry_failed_forwards();  // perhaps because of its address
  if (before.vmm_pid != instance.vmm_pid) {
    if (const auto over = watch_.set_process(instance)) end_session(instance.id, *over);
  }
  co_return *registry_.find_instance(wanted.id);
}

/// The disk has the new session, and nothing of the old one any more.
void Control::replace_session(const Instance& old, const Instance& replacement) {
  on_saved(old.id, unsaved_.take(old.id));
  if (old.state != InstanceState::kRunning) return;
  Instance replaced = old;
  replaced.state = InstanceState::kStopped;
  replaced.ended = SessionEnd::kReplaced;
  const std::vector<Forward> ended = end_in_memory(replaced);
  give_back_ports(ended, replaced.owner);
  spdlog::info("instance {}: session {} replaced by {}, ended with {} forwards", replaced.id,
               to_string(replaced.session_id), to_string(replacement.session_id), ended.size());
  publish_stopped(replaced, ended.size());
}

/// And those whose session is on its way to the disk.
std::vector<const Instance*> Control::running_instances() const {
  std::vector<const Instance*> running = registry_.instances();
  std::erase_if(running, [](const Instance* each) { return each->state != InstanceState::kRunning; });
  running.insert(running.end(), beginning_.begin(), beginning_.end());
  return running;
}

/// Two running instances behind one interface would let the clients of one reach the other's machine. Names
/// do not show that: an interface may have had another one when its session began.
Result<void> Control::check_tap_is_free(const Instance& asked) const {
  if (asked.tap.empty()) return {};
  const std::int32_t wanted = watch_.interface_of(asked).index;
  for (const Instance* other : running_instances()) {
    if (other->id == asked.id || other->tap.empty()) continue;
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
  for (const Instance* other : running_instances()) {
    if (other->id == asked.id) continue;
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
  look_at_forwards_of(instance_id);
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
  look_at_forwards_of(instance_id);
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

Change<void> Control::stop_instance(std::string id, Precondition<Instance> precondition, Actor by) {
  const auto owned = co_await own_instance(id);
  if (!owned) co_return owned.error();
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) co_return no_such_instance();
  if (auto met = require(precondition, known); !met) co_return met;
  const auto stopped_now = [](Instance instance) {
    if (instance.state == InstanceState::kRunning) instance.ended = SessionEnd::kStopped;
    instance.state = InstanceState::kStopped;
    return instance;
  };
  UnsavedSessions::Entry* unsaved = unsaved_.find(id);
  const std::uint64_t change = unsaved == nullptr ? 0 : unsaved->change;
  if (known->state == InstanceState::kStopped && unsaved == nullptr) co_return Result<void>();
  if (auto stored = co_await store_.end_session(stopped_now(*known)); !stored) co_return stored.error();
  known = registry_.find_instance(id);
  unsaved = unsaved_.find(id);
  const bool changed = unsaved != nullptr && unsaved->change != change;
  if (known->state == InstanceState::kStopped && changed) {
    // Its machine has gone meanwhile: that is the reason to save. That the session is over is on disk.
    unsaved->on_disk = stopped_now(unsaved->on_disk);
    report_end(known->id, *unsaved);
    co_return Result<void>();
  }
  on_saved(known->id, unsaved_.take(id));
  if (known->state == InstanceState::kStopped) co_return Result<void>();
  const Instance stopped = stopped_now(*known);
  const std::vector<Forward> ended = end_in_memory(stopped);
  give_back_ports(ended, stopped.owner);
  report_stopped(stopped, ended.size(), &by);
  co_return Result<void>();
}

Change<void> Control::delete_instance(std::string id, Precondition<Instance> precondition, Actor by) {
  const auto owned = co_await own_instance(id);
  if (!owned) co_return owned.error();
  const Instance* known = registry_.find_instance(id);
  if (known == nullptr) co_return no_such_instance();
  if (auto met = require(precondition, known); !met) co_return met;
  if (auto stored = co_await store_.delete_instance(id); !stored) co_return stored.error();
  const Instance deleted = *registry_.find_instance(id);
  give_back_ports(unsaved_.take(id).forwards, deleted.owner);
  const auto netns = watch_.netns_of(deleted);
  const int link = std::max(0, dial_device(deleted));
  watch_.forget(id);
  source_paths_.retire(deleted);
  const std::vector<Forward> forwards = registry_.remove_instance(id);
  streams_.recheck();
  stop_serving(deleted.session_id, forwards, CloseHow::kInstanceStopped);
  usage_.forget(deleted);
  if (deleted.state == InstanceState::kRunning && netns && *netns) remains_.add(deleted, *netns, link);
  give_back_ports(forwards, deleted.owner);
  const LogFields fields = by.fields();
  spdlog::info("instance {}: deleted with session {} and {} forwards, by {}", deleted.id,
               to_string(deleted.session_id), forwards.size(), by.name);
  publish(deleted, event::InstanceDeleted());
  co_return Result<void>();
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
  for (PreparedForwards* each : committing_) {
    if (each->instance_id != stopped.id) continue;
    for (auto& lease : each->leases) lease->close();
  }
  registry_.put_instance(stopped);
  streams_.recheck();
  return forwards;
}

void Control::report_stopped(const Instance& stopped, std::size_t forwards, const Actor* by) {
  const LogFields fields = by == nullptr ? LogFields({}) : by->fields();
  spdlog::info("instance {}: session {} ended with {} forwards: {}{}", stopped.id,
               to_string(stopped.session_id), forwards, to_string(*stopped.ended),
               by == nullptr ? "" : ", by " + by->name);
  publish_stopped(stopped, forwards);
}

/// Its owner does not see it any more.
void Control::publish_lost(const Instance& before) {
  events_.publish({.time = now(),
                   .instance_id = before.id,
                   .session_id = before.session_id,
                   .owner = before.owner,
                   .kind = event::InstanceUpdated{.changed = {"owner"}, .lost = true}});
}

void Control::publish_stopped(const Instance& stopped, std::size_t forwards) {
  publish(stopped, event::InstanceStopped{.reason = *stopped.ended, .port_forwards = forwards});
}

/// The disk has the instance as it is, and nothing of its sessions that are over.
void Control::on_saved(const std::string& instance_id, const UnsavedSessions::Entry& saved) {
  const Instance& instance = *registry_.find_instance(instance_id);
  give_back_ports(saved.forwards, instance.owner);
  if (!saved.end_reported) report_stopped(instance, saved.forwards.size());
}

bool Control::is_ending(const Instance& instance) const {
  const UnsavedSessions::Entry* unsaved = unsaved_.find(instance.id);
  return unsaved != nullptr && !unsaved->end_reported;
}

}  // namespace portway
