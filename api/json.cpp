#include "api/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <utility>

#include "api/unique_keys.h"

namespace portway {
namespace {

bool is_json(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  std::string lower(type.substr(0, type.find_last_not_of(" \t") + 1));
  std::ranges::transform(lower, lower.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return lower == "application/json";
}

}  // namespace

JsonFields::JsonFields(const Request& request) {
  if (!is_json(request.header("content-type"))) {
    error_ = Error{ErrorCode::kUnsupportedMediaType,
                   "Send the body as JSON with \"Content-Type: application/json\".", "content-type"};
    return;
  }
  boost::system::error_code parse_error;
  boost::json::value value = boost::json::parse(request.body, parse_error);
  if (parse_error) {
    error_ = Error{ErrorCode::kMalformedJson, "The body is not JSON: " + parse_error.message() + "."};
  } else if (!value.is_object()) {
    error_ = Error{ErrorCode::kMalformedJson, "The body must be a JSON object."};
  } else if (auto twice = duplicate_key(request.body)) {
    error_ = Error{ErrorCode::kMalformedJson, fmt::format("The body names {} twice.", in_quotes(*twice)),
                   std::move(*twice)};
  } else {
    object_ = std::move(value.get_object());
  }
}

std::string JsonFields::string(std::string_view name) {
  const boost::json::value* value = find(name, true);
  if (value == nullptr) return {};
  if (!value->is_string()) {
    fail(ErrorCode::kInvalidRequest, name, fmt::format("{} must be a string.", name));
    return {};
  }
  return std::string(value->get_string());
}

std::string JsonFields::string_or(std::string_view name, std::string_view fallback) {
  return find(name, false) == nullptr ? std::string(fallback) : string(name);
}

std::optional<std::string> JsonFields::string_or_none(std::string_view name) {
  if (find(name, false) == nullptr) return std::nullopt;
  return string(name);
}

std::int64_t JsonFields::integer(std::string_view name, std::int64_t least, std::int64_t most,
                                 ErrorCode code) {
  const boost::json::value* value = find(name, true);
  if (value == nullptr) return 0;
  const std::int64_t* number = value->if_int64();
  if (number == nullptr || *number < least || *number > most) {
    fail(code, name, fmt::format("{} must be a whole number from {} to {}.", name, least, most));
    return 0;
  }
  return *number;
}

std::optional<std::int64_t> JsonFields::integer_or_none(std::string_view name, std::int64_t least,
                                                        std::int64_t most, ErrorCode code) {
  if (find(name, false) == nullptr) return std::nullopt;
  return integer(name, least, most, code);
}

std::vector<Cidr> JsonFields::networks(std::string_view name, std::size_t most) {
  std::vector<Cidr> list;
  const boost::json::value* value = find(name, false);
  if (value == nullptr) return list;
  const boost::json::array* texts = value->if_array();
  if (texts == nullptr || texts->size() > most) {
    fail(ErrorCode::kInvalidRequest, name,
         fmt::format("{} must be a list of at most {} networks, e.g. [\"203.0.113.0/24\"].", name, most));
    return list;
  }
  for (const boost::json::value& text : *texts) {
    const auto network = text.is_string() ? Cidr::parse(std::string_view(text.get_string()))
                                          : Result<Cidr>(Error{.detail = "a network is a string"});
    if (!network) {
      fail(ErrorCode::kInvalidRequest, name,
           fmt::format("{}: {}; write networks as \"203.0.113.0/24\" or \"2001:db8::/32\".", name,
                       network.error().detail));
      return list;
    }
    list.push_back(*network);
  }
  return list;
}

std::vector<IpAddress> JsonFields::addresses(std::string_view name, std::size_t most) {
  std::vector<IpAddress> list;
  const boost::json::value* value = find(name, false);
  if (value == nullptr) return list;
  const boost::json::array* texts = value->if_array();
  if (texts == nullptr || texts->empty() || texts->size() > most) {
    fail(ErrorCode::kInvalidRequest, name,
         fmt::format("{} must be a list of 1 to {} addresses, e.g. [\"198.18.0.2\", \"fd00::2\"].", name,
                     most));
    return list;
  }
  for (const boost::json::value& text : *texts) {
    const auto address = text.is_string() ? parse_address(std::string_view(text.get_string()))
                                          : Result<IpAddress>(Error{.detail = "an address is a string"});
    if (!address) {
      fail(ErrorCode::kInvalidAddress, name, fmt::format("{}: {}.", name, address.error().detail));
      return {};
    }
    list.push_back(*address);
  }
  return list;
}

void JsonFields::each(std::string_view name, std::size_t least, std::size_t most,
                      const std::function<std::optional<Error>(JsonFields fields)>& read) {
  const boost::json::value* value = find(name, true);
  if (value == nullptr) return;
  const boost::json::array* list = value->if_array();
  if (list == nullptr || list->size() < least || list->size() > most) {
    return fail(ErrorCode::kInvalidRequest, name,
                fmt::format("{} must be a list of {} to {} objects.", name, least, most));
  }
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string place = fmt::format("{}[{}]", name, i);
    const boost::json::object* object = (*list)[i].if_object();
    if (object == nullptr) {
      return fail(ErrorCode::kInvalidRequest, place, fmt::format("{} must be an object.", place));
    }
    if (auto error = read(JsonFields(*object, place + "."))) {
      if (!error_) error_ = std::move(error);
      return;
    }
  }
}

std::optional<Error> JsonFields::finish() {
  // First of all: a mistyped name explains the field that is missing.
  for (const auto& [key, value] : object_) {
    if (std::ranges::find(known_, std::string_view(key)) != known_.end()) continue;
    return Error{ErrorCode::kUnknownField,
                 fmt::format("There is no field {}; known are: {}.", in_quotes(key), fmt::join(known_, ", ")),
                 path_ + std::string(key)};
  }
  return error_;
}

const boost::json::value* JsonFields::find(std::string_view name, bool required) {
  if (std::ranges::find(known_, name) == known_.end()) known_.emplace_back(name);
  const boost::json::value* value = object_.if_contains(name);
  if (value != nullptr && value->is_null()) value = nullptr;  // null says "not given"
  if (value == nullptr && required)
    fail(ErrorCode::kInvalidRequest, name, fmt::format("{} is required.", name));
  return value;
}

void JsonFields::fail(ErrorCode code, std::string_view name, std::string detail) {
  if (!error_) error_ = Error{code, std::move(detail), path_ + std::string(name)};
}

namespace {

/// Those that are set.
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
  out["state"] = status.failure.empty() ? "listening" : "failed";
  if (!status.failure.empty()) out["reason"] = status.failure;
  out["bind_address"] = status.bind_addresses.front();
  out["bind_addresses"] = boost::json::array(status.bind_addresses.begin(), status.bind_addresses.end());
  add_source(out, status.source.of_all());
  // Its clients are turned away rather than seen as the node.
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
  out["tap"] = instance.tap;
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

Response json_response(unsigned status, const boost::json::object& body) {
  return {.status = status, .body = boost::json::serialize(body), .headers = {}};
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
