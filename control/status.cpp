// What Control reports: instances, forwards and the node as they are now.
#include "control/control.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>
#include <utility>

#include "control/not_found.h"

namespace portway {
Result<const Instance*> Control::find_instance(const Principal& caller, std::string_view id) const {
  const Instance* instance = registry_.find_instance(id);
  if (instance == nullptr || !caller.sees(*instance)) return no_such_instance();
  return instance;
}

Result<ForwardStatus> Control::find_forward(const Principal& caller, std::string_view instance_id,
                                            std::string_view forward_id) const {
  const auto instance = find_instance(caller, instance_id);
  if (!instance) return instance.error();
  const auto id = parse_uuid(forward_id);
  const Forward* forward = id ? registry_.find_forward(*id) : nullptr;
  if (forward == nullptr || forward->instance_id != instance_id) return no_such_forward();
  return status_of(*forward);
}

ForwardStatus Control::status_of(const Forward& forward) const {
  const ForwardCause cause = cause_of(forward);
  const Instance& instance = *registry_.find_instance(forward.instance_id);
  return {.forward = forward,
          .state = portway::state_of(cause),
          .cause = cause,
          .reason = reason_of(forward, cause),
          .bind_addresses = to_strings(config_.node.public_addresses),
          .lost_addresses = lost_addresses_,
          .usage = usage_.of(forward),
          .source = source_paths_.source_of(instance, forward),
          .profile_limits = profile_of(instance).limits,
          .node_idle_timeout = config_.proxy.idle_timeout};
}

InstanceStatus Control::status_of(const Instance& instance) const {
  return {.instance = instance,
          .ending = is_ending(instance),
          .tap_state = to_string(watch_.tap_state(instance)),
          .tap_fault = watch_.tap_fault(instance),
          .forwards_max = profile_of(instance).max_forwarded_ports,
          .forwards_now = registry_.forward_count(instance.id),
          .source = source_paths_.plan_of(instance),
          .source_reason = source_paths_.reason(instance)};
}

void Control::apply_config() {
  profiles_ = fleet_profiles_;
  profiles_.insert(config_.profiles.begin(), config_.profiles.end());
  dataplane_.set_owner_connections_max(config_.owners.max_connections);
  streams_.set_tenant_share(config_.owners.max_streams);
  keys_.ring().set_gateways(config_.fleet.gateways);
  streams_.recheck();  // those of a gateway that is none any more
  for (const Instance* each : registry_.instances()) {
    if (each->state == InstanceState::kRunning)
      dataplane_.set_profile_limits(each->session_id, profile_of(*each).limits);
  }
}

NodeInfo Control::info() const {
  NodeStats node = dataplane_.node_stats();
  return {.hostname = config_.node.public_hostname,
          .io_backend = std::move(node.io_backend),
          .io_backend_reason = std::move(node.io_backend_reason),
          .workers = node.workers.size(),
          .source = source_paths_.node_plan(),
          .source_reason = source_paths_.reason(),
          .return_path = source_paths_.kind(),
          .has_source_guard = source_paths_.has_guard(),
          .instances = registry_.instance_count(),
          .forwards = registry_.forward_count(),
          .ports = ports_.range(),
          .ports_used = ports_.used(),
          .ports_free = ports_.free()};
}

std::vector<const Instance*> Control::list_instances(
    const Principal& caller, std::string_view after, std::size_t limit,
    const std::function<bool(const Instance&)>& admits) const {
  if (!caller.instance_id.empty()) {
    const auto only = find_instance(caller, caller.instance_id);
    if (!only || limit == 0 || (*only)->id <= after || !admits(**only)) return {};
    return {*only};
  }
  const auto owner =
      caller.role == Role::kAdmin ? std::nullopt : std::optional<std::string_view>(caller.owner);
  return registry_.instances(owner, after, limit, admits);
}

bool Control::has_forward(const Instance& instance, const ForwardId& id) const {
  const Forward* forward = registry_.find_forward(id);
  return forward != nullptr && forward->instance_id == instance.id &&
         forward->session_id == instance.session_id;
}

Result<ConnectionPage> Control::connections(const ForwardId& id, ConnectionId after,
                                            std::size_t limit) const {
  return dataplane_.connections(id, after, limit);
}

Result<std::size_t> Control::end_connections(const ForwardId& id, ConnectionId connection) {
  return dataplane_.end_connections(id, connection);
}

std::string Control::lost_text() const {
  return fmt::format(
      "The node does not have {} now: add the address to an interface, or correct node.public_addresses",
      fmt::join(to_strings(lost_addresses_), ", "));
}

const Profile& Control::profile_of(const Instance& instance) const {
  const auto found = profiles_.find(instance.profile);
  // A profile that there is no more: the default's limits.
  return found != profiles_.end() ? found->second : profiles_.find("default")->second;
}

}  // namespace portway
