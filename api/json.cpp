#include "api/json.h"

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <string_view>
#include <utility>

namespace portway {
namespace {

/// The limits that are set.
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

}  // namespace

boost::json::object to_json(const ForwardStatus& status) {
  const Forward& forward = status.forward;
  boost::json::object out;
  out["id"] = to_string(forward.id);
  out["instance_id"] = forward.instance_id;
  out["guest_port"] = forward.guest_port;
  out["host_port"] = forward.host_port;
  out["protocol"] = forward.protocol;
  out["label"] = forward.label;
  if (!forward.target.is_tcp()) out["target"] = to_json(forward.target);
  out["state"] = status.failure.empty() ? "listening" : "failed";
  if (!status.failure.empty()) out["reason"] = status.failure;
  out["bind_address"] = status.bind_addresses.front();
  out["bind_addresses"] = boost::json::array(status.bind_addresses.begin(), status.bind_addresses.end());
  add_source(out, status.source.of_all());
  // Clients are rejected rather than shown with the node's address.
  if (status.source.required) out["source_mode"] = source_mode(SourcePlan::kTransparent);
  out["created_at"] = to_rfc3339(forward.created_at);
  add_limits(out, forward.limits);
  if (forward.admin_limits.any()) {
    boost::json::array names;
    for (const std::string_view name : names_of(forward.admin_limits)) names.emplace_back(name);
    out["admin_limits"] = std::move(names);
  }
  if (status.stats) {
    out["connections_active"] = status.stats->connections_active;
    out["connections_total"] = status.stats->connections_accepted;
    out["received_bytes"] = status.stats->received_bytes;
    out["sent_bytes"] = status.stats->sent_bytes;
  }
  return out;
}

boost::json::object to_json(const InstanceStatus& status) {
  const Instance& instance = status.instance;
  boost::json::object out;
  out["id"] = instance.id;
  out["guest_address"] = instance.guest_address.to_string();
  boost::json::array addresses;
  for (const IpAddress& address : guest_addresses(instance)) addresses.emplace_back(address.to_string());
  out["guest_addresses"] = std::move(addresses);
  if (!instance.tap.empty()) out["tap"] = instance.tap;
  if (!instance.device.empty()) out["device"] = instance.device;
  if (!instance.netns.empty()) out["netns"] = instance.netns;
  if (!instance.tap_netns.empty()) out["tap_netns"] = instance.tap_netns;
  if (!instance.target.is_tcp()) out["target"] = to_json(instance.target);
  out["owner"] = instance.owner;
  out["profile"] = instance.profile;
  if (instance.vmm_pid) out["vmm_pid"] = *instance.vmm_pid;
  out["session_id"] = to_string(instance.session_id);
  out["state"] = status.ending ? "ending" : to_string(instance.state);
  if (instance.ended) out["reason"] = to_string(*instance.ended);
  out["tap_state"] = status.tap_state;
  if (!status.tap_fault.empty()) out["tap_fault"] = status.tap_fault;
  add_source(out, status.source);
  if (status.source == SourcePlan::kNoReturnPath && !status.source_reason.empty())
    out["source_mode_reason"] = status.source_reason;
  const auto left = status.forwards_max - std::min<std::size_t>(status.forwards_max, status.forwards_now);
  out["port_forwards"] = {
      {"limit", status.forwards_max}, {"current", status.forwards_now}, {"available", left}};
  out["created_at"] = to_rfc3339(instance.created_at);
  return out;
}

boost::json::object to_json(const ApiKey& key) {
  boost::json::object out;
  out["id"] = to_string(key.id);
  out["role"] = to_string(key.role);
  out["owner"] = key.owner;
  out["created_at"] = to_rfc3339(key.created_at);
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
