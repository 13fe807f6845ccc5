// Control's forwards: made, changed and deleted.
#include "control/control.h"

#include <fmt/format.h>

#include <utility>

#include "control/not_found.h"

namespace portway {
namespace {

Error not_running(const Instance& instance) {
  return {ErrorCode::kInstanceNotRunning,
          fmt::format("Instance {} is stopped; start its virtual machine first.", instance.id)};
}

/// The error of the spec `i` of `specs`: if there are several, its field says which one.
Error error_of(Error error, std::size_t i, std::size_t specs) {
  if (specs > 1 && !error.field.empty()) error.field = fmt::format("port_forwards[{}].{}", i, error.field);
  return error;
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
          .target = std::move(target)};
}

}  // namespace

Result<PreparedForwards> Control::prepare_forwards(const Principal& caller, std::string_view instance_id,
                                                   std::span<const ForwardSpec> specs) {
  if (auto running = check_running(); !running) return running.error();
  const auto found = find_instance(caller, instance_id);
  if (!found) return found.error();
  const Instance& instance = **found;
  if (instance.state != InstanceState::kRunning) return not_running(instance);
  if (auto checked = check_forwards(caller, instance, specs); !checked) return checked.error();
  auto leases = lease_ports(specs);
  if (!leases) return leases.error();
  PreparedForwards prepared(instance.id);
  prepared.leases_ = std::move(*leases);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    prepared.forwards_.push_back(new_forward(caller, instance, specs[i], prepared.leases_[i]->port()));
    prepared.statuses_.push_back(status_of(prepared.forwards_.back()));
    prepared.statuses_.back().stats = ForwardStats{.id = prepared.forwards_.back().id};
  }
  return prepared;
}

Result<void> Control::commit_forwards(PreparedForwards prepared, const IdempotentAnswer* answer) {
  auto& [instance_id, forwards, leases, statuses] = prepared;
  committing_ = &prepared;
  auto stored = store_.add_forwards(forwards, answer);
  committing_ = nullptr;
  if (!stored) return stored.error();
  const Instance& instance = *registry_.find_instance(instance_id);
  if (instance.state != InstanceState::kRunning) {  // its machine has gone meanwhile
    // The store has them until it learns of that: so long nobody else may have their ports.
    UnsavedSessions::Entry& unsaved = unsaved_.change(instance);
    for (std::size_t i = 0; i < forwards.size(); ++i) {
      (void)leases[i]->keep();
      unsaved.forwards.push_back(std::move(forwards[i]));
    }
    return not_running(instance);
  }
  // From here on they are promised, and nothing can fail.
  for (std::size_t i = 0; i < forwards.size(); ++i) {
    const Forward& published = registry_.add_forward(std::move(forwards[i]));
    serve(instance, published, leases[i]->keep());
    publish(instance, event::ForwardCreated{event::of(published)});
  }
  return {};
}

/// All are checked before the first port is taken: what a caller can correct costs nothing.
Result<void> Control::check_forwards(const Principal& caller, const Instance& instance,
                                     std::span<const ForwardSpec> specs) const {
  if (const auto netns = watch_.netns_of(instance); !netns) return netns.error();
  ForwardLimits limits{.role = caller.role,
                       .profile = profile_of(instance),
                       .forwards_now = registry_.forward_count(instance.id),
                       .host_ports = ports_.range(),
                       .socket_directories = config_.guests.socket_directories,
                       .target = instance.target};
  for (std::size_t i = 0; i < specs.size(); ++i, ++limits.forwards_now) {
    auto checked = check_forward(specs[i], limits);
    if (checked) checked = source_paths_.check_mode(instance, specs[i].source_mode);
    if (!checked) return error_of(checked.error(), i, specs.size());
  }
  return {};
}

/// One for each spec.
Result<std::vector<std::optional<PortLease>>> Control::lease_ports(std::span<const ForwardSpec> specs) {
  std::vector<std::optional<PortLease>> leases(specs.size());
  for (const bool requested : {true, false}) {  // or a port drawn at random could be one that is asked for
    for (std::size_t i = 0; i < specs.size(); ++i) {
      if (specs[i].host_port.has_value() != requested) continue;
      auto lease = lease_port(specs[i].host_port);
      if (!lease) return error_of(lease.error(), i, specs.size());
      leases[i].emplace(std::move(*lease));
    }
  }
  return leases;
}

Result<PortLease> Control::lease_port(std::optional<std::uint16_t> requested) {
  const auto count = [this](ErrorCode code) {
    stats_.count_port_allocation_error(code == ErrorCode::kHostPortTaken ? PortAllocationError::kTaken
                                       : code == ErrorCode::kPortPoolExhausted
                                           ? PortAllocationError::kExhausted
                                           : PortAllocationError::kResources);
  };
  if (!requested) {
    auto port = ports_.take_random([this](std::uint16_t each) { return dataplane_.bind(each); });
    if (port) return PortLease(ports_, std::move(*port));
    count(port.error().code);
    return port.error();
  }
  if (!ports_.take(*requested)) {
    count(ErrorCode::kHostPortTaken);
    return Error{
        ErrorCode::kHostPortTaken,
        fmt::format("Host port {} belongs to another forward; choose another or leave host_port out.",
                    *requested),
        "host_port"};
  }
  auto port = dataplane_.bind(*requested);
  if (port) return PortLease(ports_, std::move(*port));
  ports_.give_back(*requested);
  count(port.error().code);
  return port.error();
}

Result<ForwardStatus> Control::update_forward(const Principal& caller, std::string_view instance_id,
                                              std::string_view forward_id, const ForwardChange& change) {
  auto found = find_forward(caller, instance_id, forward_id);
  if (!found) return found.error();
  Forward forward = std::move(found->forward);
  const TrafficLimits limits_before = forward.limits;
  if (change.label) {
    if (auto checked = check_label(*change.label); !checked) return checked.error();
    forward.label = *change.label;
  }
  if (change.limits) {
    if (auto checked = check_limits_given(caller.role, change.given, forward.admin_limits); !checked) {
      return checked.error();
    }
    forward.limits = *change.limits;
    // What an admin takes away is the tenant's again.
    if (caller.role == Role::kAdmin) {
      forward.admin_limits =
          (forward.admin_limits & ~change.given) | (set_limits(forward.limits) & change.given);
    }
  }
  if (change.source_mode) {
    if (!forward.target.is_tcp() && caller.role != Role::kAdmin) {
      return Error{ErrorCode::kForbidden,
                   "Only an admin may change the source_mode of a forward to a socket of the node, whose "
                   "service may rely on it; ask the operator.",
                   "source_mode"};
    }
    if (auto fits = check_target_mode(forward.target, *change.source_mode); !fits) return fits.error();
    if (auto checked = source_paths_.check_mode(*registry_.find_instance(instance_id), *change.source_mode);
        !checked)
      return checked.error();
    forward.source_mode = *change.source_mode;
  }
  if (auto stored = store_.update_forward(forward); !stored) return stored.error();
  // Its machine may have gone meanwhile, and it with that.
  if (registry_.find_forward(forward.id) == nullptr) return no_such_forward();
  const Forward& updated = registry_.update_forward(std::move(forward));
  const Instance& instance = *registry_.find_instance(instance_id);
  if (!failures_.contains(updated.id)) {
    if (updated.limits != limits_before) dataplane_.set_limits(updated.id, updated.limits);
    dataplane_.set_source(updated.id, source_paths_.acquire(instance, updated));
  }
  publish(instance, event::ForwardUpdated{event::of(updated)});
  return status_of(updated);
}

Result<void> Control::delete_forward(const Principal& caller, std::string_view instance_id,
                                     std::string_view forward_id, ClosePolicy policy) {
  const auto found = find_forward(caller, instance_id, forward_id);
  if (!found) return found.error();
  const ForwardId id = found->forward.id;
  if (auto stored = store_.delete_forward(id); !stored) return stored.error();
  auto found_again = registry_.remove_forward(id);
  if (!found_again) return {};  // its machine has gone meanwhile, and it with that
  const std::vector<Forward> removed = {std::move(*found_again)};
  dataplane_.close(id, policy, CloseHow::kForwardDeleted);
  forget_serving(removed);
  give_back_ports(removed);
  publish(*registry_.find_instance(instance_id), event::ForwardDeleted{event::of(removed.front())});
  return {};
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
                   .limits = forward.limits,
                   .source = source_paths_.acquire(instance, forward),
                   .socket = std::move(socket)},
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
  }
}

void Control::give_back_ports(const std::vector<Forward>& forwards) {
  for (const Forward& forward : forwards) ports_.give_back(forward.host_port);
}

}  // namespace portway
