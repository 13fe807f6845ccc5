#include "api/json.h"

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <string_view>
#include <utility>

namespace portway {
namespace {

/// Each limit that a profile can have, with where it comes from; nothing if there is none.
boost::json::object limits_in_effect(const ForwardStatus& status) {
  const TrafficLimits& own = status.forward.limits;
  const TrafficLimits limits = stricter(own, status.profile_limits);
  const LimitSet of_profile = limits_of_profile(own, status.profile_limits);
  boost::json::object out;
  const auto add = [&](Limit limit, std::uint64_t value) {
    const bool is_profiles = of_profile[static_cast<std::size_t>(limit)];
    if (value != 0) out[to_string(limit)] = {{"value", value}, {"from", is_profiles ? "profile" : "forward"}};
  };
  add(Limit::kMaxConnections, limits.max_connections);
  add(Limit::kMaxConnectionsPerSource, limits.max_connections_per_source);
  add(Limit::kMaxNewConnectionsPerSecond, limits.max_new_connections_per_second);
  add(Limit::kMaxBytesPerSecond, limits.max_bytes_per_second);
  const TrafficLimits node{.allowed_cidrs = {}, .idle_timeout = status.node_idle_timeout};
  const auto idle_s = stricter(node, limits).idle_timeout.count();
  const bool is_nodes = idle_s == status.node_idle_timeout.count();
  if (idle_s != 0) out["idle_timeout_s"] = {{"value", idle_s}, {"from", is_nodes ? "node" : "profile"}};
  return out;
}

boost::json::object to_json(const Metadata& metadata) {
  boost::json::object out;
  for (const auto& [key, value] : metadata) out[key] = value;
  return out;
}

void add_usage(boost::json::object& out, const UsageStatus& usage) {
  const UsageTotals& totals = usage.reading.totals;
  out["connections_active"] = usage.reading.connections_now;
  out["connections_total"] = totals.connections;
  out["received_bytes"] = totals.received_bytes;
  out["sent_bytes"] = totals.sent_bytes;
  const std::uint64_t connection_ms = totals.connection_us / 1000;
  out["connection_seconds"] = static_cast<double>(connection_ms) / 1000;
  const auto add_time = [&out](std::string_view name, std::int64_t unix_ms) {
    if (unix_ms != 0) out[name] = to_rfc3339(Timestamp(std::chrono::milliseconds(unix_ms)));
  };
  add_time("last_connection_at", totals.last_connection_at_ms);
  add_time("last_byte_at", totals.last_byte_at_ms);
  out["usage_since"] = to_rfc3339(usage.since);
}

void add_source(boost::json::object& out, SourcePlan source) {
  out["source_mode"] = source_mode(source);
  if (const auto why = source_fallback(source); !why.empty()) out["source_fallback"] = why;
}

boost::json::object to_json(const Target& target) {
  boost::json::object out{{"kind", to_string(target.kind)}, {"socket", target.socket}};
  if (target.port != 0) out["port"] = target.port;
  return out;
}

/// Where the guest is, and what is watched.
void add_place(boost::json::object& out, const Instance& instance) {
  out["guest_address"] = instance.guest_address.to_string();
  boost::json::array addresses;
  for (const IpAddress& address : guest_addresses(instance)) addresses.emplace_back(address.to_string());
  out["guest_addresses"] = std::move(addresses);
  if (!instance.tap.empty()) out["tap"] = instance.tap;
  if (!instance.device.empty()) out["device"] = instance.device;
  if (!instance.netns.empty()) out["netns"] = instance.netns;
  if (!instance.tap_netns.empty()) out["tap_netns"] = instance.tap_netns;
}

}  // namespace

void add_limits(boost::json::object& out, const TrafficLimits& limits) {
  if (!limits.allowed_cidrs.empty()) {
    boost::json::array networks;
    for (const Cidr& network : limits.allowed_cidrs) networks.emplace_back(network.to_string());
    out["allowed_cidrs"] = std::move(networks);
  }
  const auto add = [&out](std::string_view name, std::uint64_t value) {
    if (value != 0) out[name] = value;
  };
  add("max_connections", limits.max_connections);
  add("max_connections_per_source", limits.max_connections_per_source);
  add("max_new_connections_per_second", limits.max_new_connections_per_second);
  add("max_bytes_per_second", limits.max_bytes_per_second);
  if (limits.idle_timeout.count() != 0) out["idle_timeout_s"] = limits.idle_timeout.count();
}

boost::json::object profile_json(std::string_view name, const Profile& profile, bool is_fleets) {
  boost::json::object out{{"name", name},
                          {"max_forwarded_ports", profile.max_forwarded_ports},
                          {"allow_host_port", profile.allow_host_port}};
  add_limits(out, profile.limits);
  if (is_fleets) out["fleet"] = true;
  return out;
}

boost::json::object settings_of(const Forward& forward) {
  boost::json::object out;
  out["id"] = to_string(forward.id);
  out["guest_port"] = forward.guest_port;
  out["host_port"] = forward.host_port;
  out["label"] = forward.label;
  out["target"] = to_json(forward.target);
  out["source_mode"] = to_string(forward.source_mode);
  add_limits(out, forward.limits);
  out["admin_limits"] = forward.admin_limits.to_ulong();
  out["metadata"] = to_json(forward.metadata);
  out["enabled"] = forward.enabled;
  if (forward.expires_at) out["expires_at"] = to_rfc3339(*forward.expires_at);
  return out;
}

boost::json::object settings_of(const Instance& instance) {
  boost::json::object out;
  add_place(out, instance);
  out["target"] = to_json(instance.target);
  out["owner"] = instance.owner;
  out["profile"] = instance.profile;
  out["metadata"] = to_json(instance.metadata);
  if (instance.vmm_pid) out["vmm_pid"] = *instance.vmm_pid;
  return out;
}

boost::json::object lasting_json(const ForwardStatus& status) {
  const Forward& forward = status.forward;
  boost::json::object out;
  out["id"] = to_string(forward.id);
  out["instance_id"] = forward.instance_id;
  out["guest_port"] = forward.guest_port;
  out["host_port"] = forward.host_port;
  out["protocol"] = forward.protocol;
  out["label"] = forward.label;
  if (!forward.target.is_tcp()) out["target"] = to_json(forward.target);
  if (!forward.metadata.empty()) out["metadata"] = to_json(forward.metadata);
  out["state"] = to_string(status.state);
  if (status.cause != ForwardCause::kNone) out["cause"] = to_string(status.cause);
  if (!status.reason.empty()) out["reason"] = status.reason;
  out["bind_address"] = status.bind_addresses.front();
  out["bind_addresses"] = boost::json::array(status.bind_addresses.begin(), status.bind_addresses.end());
  add_source(out, status.source.of_all());
  // Clients are rejected rather than shown with the node's address.
  if (status.source.required) out["source_mode"] = source_mode(SourcePlan::kTransparent);
  out["created_at"] = to_rfc3339(forward.created_at);
  if (forward.expires_at) out["expires_at"] = to_rfc3339(*forward.expires_at);
  add_limits(out, forward.limits);
  if (auto limits = limits_in_effect(status); !limits.empty()) out["limits_in_effect"] = std::move(limits);
  if (forward.admin_limits.any()) {
    boost::json::array names;
    for (const std::string_view name : names_of(forward.admin_limits)) names.emplace_back(name);
    out["admin_limits"] = std::move(names);
  }
  return out;
}

boost::json::object to_json(const ForwardStatus& status) {
  boost::json::object out = lasting_json(status);
  add_usage(out, status.usage);
  return out;
}

boost::json::object lasting_json(const InstanceStatus& status) {
  const Instance& instance = status.instance;
  boost::json::object out;
  out["id"] = instance.id;
  add_place(out, instance);
  if (!instance.target.is_tcp()) out["target"] = to_json(instance.target);
  out["owner"] = instance.owner;
  out["profile"] = instance.profile;
  if (!instance.metadata.empty()) out["metadata"] = to_json(instance.metadata);
  if (instance.vmm_pid) out["vmm_pid"] = *instance.vmm_pid;
  out["session_id"] = to_string(instance.session_id);
  out["state"] = status.ending ? "ending" : to_string(instance.state);
  if (instance.ended) out["reason"] = to_string(*instance.ended);
  out["tap_state"] = status.tap_state;
  if (!status.tap_fault.empty()) out["tap_fault"] = status.tap_fault;
  add_source(out, status.source);
  if (status.source == SourcePlan::kNoReturnPath && !status.source_reason.empty())
    out["source_mode_reason"] = status.source_reason;
  out["port_forwards"] = {{"limit", status.forwards_max}};
  out["created_at"] = to_rfc3339(instance.created_at);
  return out;
}

boost::json::object to_json(const InstanceStatus& status) {
  boost::json::object out = lasting_json(status);
  const auto left = status.forwards_max - std::min<std::size_t>(status.forwards_max, status.forwards_now);
  boost::json::object& forwards = out["port_forwards"].get_object();
  forwards["current"] = status.forwards_now;
  forwards["available"] = left;
  return out;
}

boost::json::object activity_json(const Instance& instance, bool ending, const UsageStatus& usage) {
  boost::json::object out{{"instance_id", instance.id},
                          {"session_id", to_string(instance.session_id)},
                          {"owner", instance.owner},
                          {"state", ending ? "ending" : to_string(instance.state)}};
  add_usage(out, usage);
  return out;
}

boost::json::object to_json(const KeyStatus& status) {
  const ApiKey& key = status.key;
  boost::json::object out;
  out["id"] = to_string(key.id);
  out["role"] = to_string(key.role);
  out["owner"] = key.owner;
  out["created_at"] = to_rfc3339(key.created_at);
  out["description"] = key.description;
  out["scope"] = to_string(key.scope);
  if (!key.instance_id.empty()) out["instance_id"] = key.instance_id;
  out["state"] = status.expired ? "expired" : "active";
  if (key.expires_at) out["expires_at"] = to_rfc3339(*key.expires_at);
  if (key.last_used_at) out["last_used_at"] = to_rfc3339(*key.last_used_at);
  if (status.old_secret_valid_until)
    out["old_secret_valid_until"] = to_rfc3339(*status.old_secret_valid_until);
  if (status.home == KeyHome::kFleet) out["fleet"] = true;
  return out;
}

boost::json::object to_json(const LiveConnection& connection) {
  const auto seconds = [](Nanos span) { return std::chrono::duration<double>(span).count(); };
  const TcpSummary& client = connection.tcp[0];
  const TcpSummary& guest = connection.tcp[1];
  const double age_s = std::max(seconds(connection.age), 1e-3);
  boost::json::object out{
      {"id", connection.id},
      {"client", to_string(connection.client)},
      {"state", to_string(connection.state)},
      {"age_s", seconds(connection.age)},
      {"idle_s", seconds(connection.idle)},
      {"received_bytes", connection.received_bytes},
      {"sent_bytes", connection.sent_bytes},
      {"received_queued_bytes", connection.received_queued_bytes},
      {"sent_queued_bytes", connection.sent_queued_bytes},
      {"received_bytes_per_second", static_cast<double>(connection.received_bytes) / age_s},
      {"sent_bytes_per_second", static_cast<double>(connection.sent_bytes) / age_s},
      {"worker", connection.worker},
      {"client_rtt_us", client.rtt_us},
      {"client_retransmits", client.retransmits},
      {"guest_rtt_us", guest.rtt_us},
      {"guest_retransmits", guest.retransmits}};
  add_source(out, connection.source);
  return out;
}

}  // namespace portway
