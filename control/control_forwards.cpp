// Control's forwards: made, changed and deleted.
#include "control/control.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <utility>

#include "control/not_found.h"

namespace portway {
namespace {

Error not_running(const Instance& instance) {
  return {ErrorCode::kInstanceNotRunning,
          fmt::format("Instance {} is stopped; start its virtual machine first.", instance.id)};
}

/// The error of the spec `i`: its field says which one of the request's, if that had several.
Error error_of(Error error, std::size_t i, const ForwardSpecs& specs) {
  if (error.field.empty()) return error;
  if (!specs.entries.empty()) {
    error.field = fmt::format("port_forwards[{}].{}", specs.entries[i], error.field);
  } else if (specs.list.size() > 1) {
    error.field = fmt::format("port_forwards[{}].{}", i, error.field);
  }
  return error;
}

constexpr std::chrono::milliseconds kExpireAgainAfter(1000);

/// An id may be written in several ways.
std::string lock_of_forward(std::string_view forward_id) {
  const auto id = parse_uuid(forward_id);
  return id ? "forward/" + to_string(*id) : "forward/";
}

/// Of a spec that was checked.
Forward new_forward(const Principal& caller, const Instance& instance, const ForwardSpec& spec,
                    std::uint16_t host_port) {
  Target target = target_of(spec, instance.target).value();
  const std::uint16_t guest_port = target.is_tcp() ? spec.guest_port : std::uint16_t{0};
  return {.id = make_uuid(),
          .instance_id = instance.id,
          .session_id = instance.session_id,
          .guest_port = guest_port,
          .host_port = host_port,
          .protocol = spec.protocol,
          .label = spec.label,
          .created_at = now(),
          .limits = spec.limits,
          .source_mode = spec.source_mode,
          .admin_limits = caller.role == Role::kAdmin ? set_limits(spec.limits) : LimitSet(),
          .target = std::move(target),
          .metadata = spec.metadata,
          .enabled = spec.enabled,
          .expires_at = spec.expires_at};
}

}  // namespace

/// For a change of the instance's forwards: others may change other ones meanwhile.
Change<std::pair<ChangeLocks::Held, ChangeLocks::Held>> Control::share_instance(std::string id) {
  auto change = co_await begin_change();
  if (!change) co_return change.error();
  auto instance = co_await locks_.share(lock_of_instance(id));
  co_return std::pair(std::move(*change), std::move(instance));
}

boost::asio::awaitable<ChangeLocks::Held> Control::lock_answer(std::string_view scope, std::string_view key) {
  return locks_.own(fmt::format("answer/{}/{}", scope, key));
}

Change<std::vector<ForwardStatus>> Control::create_forwards(Principal caller, std::string instance_id,
                                                            ForwardList list, Remember remember) {
  const auto locks = co_await share_instance(instance_id);
  if (!locks) co_return locks.error();
  if (auto running = check_running(); !running) co_return running.error();
  const auto instance = find_instance(caller, instance_id);
  if (!instance) co_return instance.error();
  if (auto takes = check_takes("port forwards"); !takes) co_return takes.error();
  if (auto checked = check_forwards(caller, **instance, {list.specs, list.entries}); !checked)
    co_return checked.error();
  auto prepared = prepare_forwards(caller, **instance, {list.specs, list.entries});
  if (!prepared) co_return prepared.error();
  std::vector<ForwardStatus> created = prepared->statuses;
  std::optional<IdempotentAnswer> answer;
  if (remember) answer = remember(created);
  const auto place = committing_.insert(committing_.end(), &*prepared);
  auto stored = co_await store_.add_forwards(prepared->forwards, std::move(answer));
  committing_.erase(place);
  if (stored) stored = publish_forwards(*prepared);
  if (!stored) co_return stored.error();
  co_return created;
}

/// Of specs that were checked: binds their host ports.
Result<PreparedForwards> Control::prepare_forwards(const Principal& caller, const Instance& instance,
                                                   const ForwardSpecs& specs) {
  auto leases = lease_ports(specs, instance.owner);
  if (!leases) return leases.error();
  PreparedForwards prepared{
      .instance_id = instance.id, .forwards = {}, .leases = std::move(*leases), .statuses = {}};
  for (std::size_t i = 0; i < specs.list.size(); ++i) {
    prepared.forwards.push_back(new_forward(caller, instance, specs.list[i], prepared.leases[i]->port()));
    prepared.statuses.push_back(status_of(prepared.forwards.back()));
  }
  return prepared;
}

/// The last one: they are on disk.
Result<void> Control::publish_forwards(PreparedForwards& prepared) {
  const Instance& instance = *registry_.find_instance(prepared.instance_id);
  if (instance.state != InstanceState::kRunning) {  // its machine has gone meanwhile
    // The store has them until it learns of that: so long nobody else may have their ports.
    UnsavedSessions::Entry& unsaved = unsaved_.change(instance);
    for (std::size_t i = 0; i < prepared.forwards.size(); ++i) {
      (void)prepared.leases[i]->keep();
      unsaved.forwards.push_back(std::move(prepared.forwards[i]));
    }
    return not_running(instance);
  }
  // From here on they are promised, and nothing can fail.
  for (std::size_t i = 0; i < prepared.forwards.size(); ++i) {
    const Forward& published = registry_.add_forward(std::move(prepared.forwards[i]));
    BoundPort port = prepared.leases[i]->keep();
    if (!is_stopped(published)) serve(instance, published, std::move(port));
    expiries_.set(published.id, published.expires_at);
    publish(instance, event::ForwardCreated{event::of(published)});
    look_at_forward(published.id);
  }
  return {};
}

/// All are checked before the first port is taken: what a caller can correct costs nothing.
Result<void> Control::check_forwards(const Principal& caller, const Instance& instance,
                                     const ForwardSpecs& specs) const {
  if (instance.state != InstanceState::kRunning) return not_running(instance);
  if (const auto netns = watch_.netns_of(instance); !netns) return netns.error();
  if (auto known = check_profile_is_known(instance.profile); !known) return known.error();
  ForwardLimits limits{
      .role = caller.role,
      .profile = profile_of(instance),
      .forwards_now = registry_.forward_count(instance.id) + committing(instance.id) - specs.replaced,
      .host_ports = ports_.range(),
      .socket_directories = config_.guests.socket_directories,
      .target = instance.target,
      .owner = instance.owner,
      .owner_forwards_max = config_.owners.max_forwards};
  if (limits.owner_forwards_max != 0)
    limits.owner_forwards_now = forwards_of_owner(instance.owner) - specs.replaced;
  for (std::size_t i = 0; i < specs.list.size(); ++i, ++limits.forwards_now, ++limits.owner_forwards_now) {
    auto checked = check_forward(specs.list[i], limits);
    if (checked) checked = check_expiry(specs.list[i].expires_at, keys_.ring().now());
    if (checked) checked = source_paths_.check_mode(instance, specs.list[i].source_mode);
    if (!checked) return error_of(checked.error(), i, specs);
  }
  return {};
}

/// Forwards of the instance that wait for the disk.
std::size_t Control::committing(std::string_view instance_id) const {
  std::size_t count = 0;
  for (const PreparedForwards* each : committing_) {
    if (each->instance_id == instance_id) count += each->forwards.size();
  }
  return count;
}

/// With those that wait for the disk.
std::size_t Control::forwards_of_owner(std::string_view owner) const {
  std::size_t count = 0;
  for (const Instance* each : registry_.instances(owner)) count += registry_.forward_count(each->id);
  for (const PreparedForwards* each : committing_) {
    const Instance* instance = registry_.find_instance(each->instance_id);
    if (instance != nullptr && instance->owner == owner) count += each->forwards.size();
  }
  return count;
}

/// One for each spec.
Result<std::vector<std::optional<PortLease>>> Control::lease_ports(const ForwardSpecs& specs,
                                                                   std::string_view owner) {
  std::vector<std::optional<PortLease>> leases(specs.list.size());
  for (const bool requested : {true, false}) {  // or a port drawn at random could be one that is asked for
    for (std::size_t i = 0; i < specs.list.size(); ++i) {
      if (specs.list[i].host_port.has_value() != requested || specs.list[i].follows) continue;
      std::size_t count = 1;
      while (i + count < specs.list.size() && specs.list[i + count].follows) ++count;
      auto ports = requested ? lease_port(*specs.list[i].host_port, owner) : lease_any(count, owner);
      if (!ports) return error_of(ports.error(), i, specs);
      for (std::size_t j = 0; j < count; ++j) leases[i + j].emplace(std::move((*ports)[j]));
    }
  }
  return leases;
}

void Control::count_port_error(ErrorCode code) {
  stats_.count_port_allocation_error(code == ErrorCode::kHostPortTaken ? PortAllocationError::kTaken
                                     : code == ErrorCode::kPortPoolExhausted
                                         ? PortAllocationError::kExhausted
                                         : PortAllocationError::kResources);
}

/// Ports that follow one another.
Result<std::vector<PortLease>> Control::lease_any(std::size_t count, std::string_view owner) {
  ports_.end_rests(PortAllocator::Clock::now());
  const auto bind = [this](std::uint16_t each) { return dataplane_.bind(each); };
  std::vector<PortLease> leases;
  if (count == 1) {
    auto port = ports_.take_random(bind, owner);
    if (port) {
      leases.emplace_back(ports_, std::move(*port));
      return leases;
    }
    count_port_error(port.error().code);
    return port.error();
  }
  auto ports = ports_.take_row(static_cast<std::uint32_t>(count), bind);
  if (!ports) {
    count_port_error(ports.error().code);
    return ports.error();
  }
  for (BoundPort& port : *ports) leases.emplace_back(ports_, std::move(port));
  return leases;
}

Result<std::vector<PortLease>> Control::lease_port(std::uint16_t wanted, std::string_view owner) {
  ports_.end_rests(PortAllocator::Clock::now());
  if (!ports_.take(wanted, owner)) {
    count_port_error(ErrorCode::kHostPortTaken);
    const bool is_used = ports_.is_used(wanted);
    return Error{
        ErrorCode::kHostPortTaken,
        is_used
            ? fmt::format("Host port {} belongs to another forward; choose another or leave host_port out.",
                          wanted)
            : fmt::format("Host port {} was another owner's a moment ago, whose clients may still use it; "
                          "choose another, or try again in {} s (ports.rest_s).",
                          wanted, config_.ports.rest.count()),
        "host_port"};
  }
  auto port = dataplane_.bind(wanted);
  if (port) {
    std::vector<PortLease> leases;
    leases.emplace_back(ports_, std::move(*port));
    return leases;
  }
  ports_.give_back(wanted);
  count_port_error(port.error().code);
  return port.error();
}

/// As it would be.
Result<Forward> Control::changed_forward(const Principal& caller, Forward forward,
                                         const ForwardChange& change) const {
  if (change.label) {
    if (auto checked = check_label(*change.label); !checked) return checked.error();
    forward.label = *change.label;
  }
  if (auto checked = check_limits_given(caller.role, change.given, forward.admin_limits); !checked) {
    return checked.error();
  }
  copy_limits(change.given, change.limits, forward.limits);
  // What an admin takes away is the tenant's again.
  if (caller.role == Role::kAdmin) {
    forward.admin_limits =
        (forward.admin_limits & ~change.given) | (set_limits(forward.limits) & change.given);
  }
  if (change.guest_port && *change.guest_port != forward.guest_port) {
    if (!forward.target.is_tcp()) {
      return Error{ErrorCode::kInvalidPort,
                   "The forward leads to a socket of the node, not to a port of the guest; leave guest_port "
                   "out.",
                   "guest_port"};
    }
    if (auto port = check_guest_port(*change.guest_port, caller.role); !port) return port.error();
    forward.guest_port = *change.guest_port;
  }
  patch(forward.metadata, change.metadata);
  if (auto metadata = check_metadata(forward.metadata); !metadata) return metadata.error();
  forward.enabled = change.enabled.value_or(forward.enabled);
  if (change.expires_at) {
    if (auto end = check_expiry(*change.expires_at, keys_.ring().now()); !end) return end.error();
    forward.expires_at = *change.expires_at;
  }
  if (change.source_mode) {
    if (!forward.target.is_tcp() && caller.role != Role::kAdmin) {
      return Error{ErrorCode::kForbidden,
                   "Only an admin may change the source_mode of a forward to a socket of the node, whose "
                   "service may rely on it; ask the operator.",
                   "source_mode"};
    }
    if (auto fits = check_target_mode(forward.target, *change.source_mode); !fits) return fits.error();
    const Instance& instance = *registry_.find_instance(forward.instance_id);
    if (auto checked = source_paths_.check_mode(instance, *change.source_mode); !checked)
      return checked.error();
    forward.source_mode = *change.source_mode;
  }
  return forward;
}

Change<ForwardStatus> Control::update_forward(Principal caller, std::string instance_id,
                                              std::string forward_id, ForwardChange change,
                                              Precondition<Forward> precondition) {
  const auto locks = co_await share_instance(instance_id);
  if (!locks) co_return locks.error();
  const auto own = co_await locks_.own(lock_of_forward(forward_id));
  const auto found = find_forward(caller, instance_id, forward_id);
  if (!found) co_return found.error();
  if (auto met = require(precondition, &found->forward); !met) co_return met.error();
  if (expired_.contains(found->forward.id)) co_return no_such_forward();
  auto changed = changed_forward(caller, found->forward, change);
  if (!changed) co_return changed.error();
  auto update = prepare_update(std::move(*changed));
  if (!update) co_return update.error();
  if (auto stored = co_await store_.update_forward(update->forward); !stored) co_return stored.error();
  const Forward* updated = publish_update(std::move(*update));
  if (updated == nullptr) co_return no_such_forward();
  co_return status_of(*updated);
}

/// Binds the port of a forward that is enabled again: another program may have it by now.
Result<Control::ForwardUpdate> Control::prepare_update(Forward changed) {
  ForwardUpdate update{.forward = std::move(changed)};
  if (!update.forward.enabled || registry_.find_forward(update.forward.id)->enabled) return update;
  const auto host_addresses = local_addresses();
  if (!host_addresses) return host_addresses.error();
  const Instance& instance = *registry_.find_instance(update.forward.instance_id);
  auto port = bind_for(instance, update.forward, *host_addresses);
  if (!port) return port.error();
  update.port.emplace(std::move(*port));
  return update;
}

/// nullptr: its machine has gone meanwhile, or its time has come, and it with that.
const Forward* Control::publish_update(ForwardUpdate update) {
  const Forward* known = registry_.find_forward(update.forward.id);
  if (known == nullptr || expired_.contains(known->id)) return nullptr;
  const Forward before = *known;
  const Forward& updated = registry_.update_forward(std::move(update.forward));
  const Instance& instance = *registry_.find_instance(updated.instance_id);
  if (updated.expires_at != before.expires_at) expiries_.set(updated.id, updated.expires_at);
  if (update.port) {
    serve(instance, updated, std::move(*update.port));
  } else if (is_stopped(updated)) {
    if (before.enabled) stop_serving(updated, ClosePolicy::kReset, CloseHow::kForwardDisabled);
  } else if (!failures_.contains(updated.id)) {
    if (updated.limits != before.limits) dataplane_.set_limits(updated.id, updated.limits);
    // The way back comes first: no connection to another port is made without it.
    dataplane_.set_source(updated.id, source_paths_.acquire(instance, updated));
    if (updated.guest_port != before.guest_port) dataplane_.set_guest_port(updated.id, updated.guest_port);
  }
  if (updated.guest_port != before.guest_port) health_.forget(updated.id);
  publish(instance, event::ForwardUpdated{event::of(updated)});
  look_at_forward(updated.id);
  return &updated;
}

/// It keeps its port, and serves nobody.
bool Control::is_stopped(const Forward& forward) const {
  return !forward.enabled || expired_.contains(forward.id);
}

void Control::stop_serving(const Forward& forward, ClosePolicy policy, CloseHow why) {
  if (failures_.erase(forward.id) == 0) dataplane_.close(forward.id, policy, why);
  source_paths_.release(forward.id);
}

/// It serves nobody from now on, whatever the disk does.
void Control::on_expired(const ForwardId& id) {
  const Forward* forward = registry_.find_forward(id);
  if (forward == nullptr) return;
  const bool was_stopped = is_stopped(*forward);
  expired_.insert(id);
  if (!was_stopped) stop_serving(*forward, ClosePolicy::kDrain, CloseHow::kForwardExpired);
  boost::asio::co_spawn(context_, delete_expired(id), boost::asio::detached);
}

boost::asio::awaitable<void> Control::delete_expired(ForwardId id) {
  const Forward* forward = registry_.find_forward(id);
  if (forward == nullptr) co_return;
  Result<void> deleted;
  {
    const auto locks = co_await share_instance(forward->instance_id);
    const auto own = co_await locks_.own(lock_of_forward(to_string(id)));
    if (registry_.find_forward(id) == nullptr) co_return;
    if (locks) {
      deleted = co_await store_.delete_forward(id);
    } else {
      deleted = locks.error();
    }
  }
  if (deleted) {
    publish_removal(id, ClosePolicy::kDrain, CloseHow::kForwardExpired);
  } else if (registry_.find_forward(id) != nullptr) {
    expiries_.set(id, keys_.ring().now() + kExpireAgainAfter);
  }
}

Change<void> Control::delete_forward(Principal caller, std::string instance_id, std::string forward_id,
                                     ClosePolicy policy, Precondition<Forward> precondition) {
  const auto locks = co_await share_instance(instance_id);
  if (!locks) co_return locks.error();
  const auto own = co_await locks_.own(lock_of_forward(forward_id));
  const auto found = find_forward(caller, instance_id, forward_id);
  if (!found) co_return found.error();
  if (auto met = require(precondition, &found->forward); !met) co_return met.error();
  const ForwardId id = found->forward.id;
  if (auto stored = co_await store_.delete_forward(id); !stored) co_return stored.error();
  publish_removal(id, policy);
  co_return Result<void>();
}

Change<std::vector<ForwardId>> Control::delete_forwards(Principal caller, std::string instance_id,
                                                        std::function<bool(const Forward&)> which,
                                                        ClosePolicy policy) {
  const auto owned = co_await own_instance(instance_id);
  if (!owned) co_return owned.error();
  const auto instance = find_instance(caller, instance_id);
  if (!instance) co_return instance.error();
  std::vector<ForwardId> ids;
  for (const Forward* each : registry_.forwards(instance_id)) {
    if (which(*each)) ids.push_back(each->id);
  }
  if (ids.empty()) co_return ids;
  if (auto stored = co_await store_.change_forwards({}, {}, ids); !stored) co_return stored.error();
  for (const ForwardId& id : ids) publish_removal(id, policy);
  co_return ids;
}

void Control::publish_removal(const ForwardId& id, ClosePolicy policy, CloseHow why) {
  auto found = registry_.remove_forward(id);
  if (!found) return;  // its machine has gone meanwhile, and it with that
  const std::vector<Forward> removed = {std::move(*found)};
  if (!is_stopped(removed.front())) dataplane_.close(id, policy, why);
  forget_serving(removed);
  const Instance& instance = *registry_.find_instance(removed.front().instance_id);
  give_back_ports(removed, instance.owner);
  publish(instance, event::ForwardDeleted{event::of(removed.front()), why == CloseHow::kForwardExpired});
}

void Control::serve(const Instance& instance, const Forward& forward, BoundPort port) {
  auto netns = watch_.netns_of(instance);
  if (!netns) return fail(instance, forward, netns.error().detail);  // its port is free again
  GuestEndpoints guest{.endpoint = {instance.guest_address, forward.guest_port}};
  if (instance.guest_address_v6) guest.endpoint_v6.emplace(*instance.guest_address_v6, forward.guest_port);
  std::optional<SocketTarget> socket;
  if (!forward.target.is_tcp()) socket = socket_target(forward.target, config_.guests.socket_directories);
  dataplane_.open({.id = forward.id,
                   .session_id = instance.session_id,
                   .guest = guest,
                   .device = dial_device(instance),
                   .netns = std::move(*netns),
                   .space = source_paths_.space_of(instance),
                   .instance_id = instance.id,
                   .owner = instance.owner,
                   .limits = forward.limits,
                   .profile_limits = profile_of(instance).limits,
                   .source = source_paths_.acquire(instance, forward),
                   .socket = std::move(socket),
                   .meter = usage_.meter_of(forward),
                   .instance_meter = usage_.meter_of(instance)},
                  std::move(port));
}

/// A session is over. `forwards` are those that it still had.
void Control::stop_serving(const Uuid& session_id, const std::vector<Forward>& forwards, CloseHow why) {
  dataplane_.end_session(session_id, why);
  forget_serving(forwards);
}

void Control::forget_serving(const std::vector<Forward>& forwards) {
  for (const Forward& forward : forwards) {
    source_paths_.release(forward.id);
    failures_.erase(forward.id);
    expiries_.set(forward.id, std::nullopt);
    expired_.erase(forward.id);
    health_.forget(forward.id);
    known_causes_.erase(forward.id);
    usage_.forget(forward);
  }
}

/// They were promised: no other owner gets them at once.
void Control::give_back_ports(const std::vector<Forward>& forwards, const std::string& owner) {
  const auto until = PortAllocator::Clock::now() + config_.ports.rest;
  for (const Forward& forward : forwards) {
    if (config_.ports.rest.count() > 0) {
      ports_.rest(forward.host_port, owner, until);
    } else {
      ports_.give_back(forward.host_port);
    }
  }
}

}  // namespace portway
