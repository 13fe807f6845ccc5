#include "api/forward_fields.h"

#include <fmt/format.h>

#include <iterator>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "api/json_fields.h"

namespace portway {
namespace {

constexpr std::size_t kBatchMax = 1000;
constexpr std::int64_t kConnectionsLimitMax = 1'000'000;
constexpr std::int64_t kBytesLimitMax = 1'000'000'000'000;  // 8 Tbit/s
constexpr std::int64_t kRowMax = 100;
constexpr std::int64_t kPortMax = 65535;

/// Replaces the limits that are given, and returns which these are; null removes one.
LimitSet read_limits(JsonFields& fields, TrafficLimits& limits) {
  LimitSet given;
  const auto is_given = [&](Limit limit) {
    return given[static_cast<std::size_t>(limit)] = fields.given(to_string(limit));
  };
  if (is_given(Limit::kAllowedCidrs)) {
    limits.allowed_cidrs = fields.networks(to_string(Limit::kAllowedCidrs), kAllowedCidrsMax);
  }
  const auto read = [&](Limit name, std::int64_t most, auto& limit) {
    if (!is_given(name)) return;
    limit = static_cast<std::remove_reference_t<decltype(limit)>>(
        fields.integer_or_none(to_string(name), 1, most).value_or(0));
  };
  read(Limit::kMaxConnections, kConnectionsLimitMax, limits.max_connections);
  read(Limit::kMaxConnectionsPerSource, kConnectionsLimitMax, limits.max_connections_per_source);
  read(Limit::kMaxNewConnectionsPerSecond, kConnectionsLimitMax, limits.max_new_connections_per_second);
  read(Limit::kMaxBytesPerSecond, kBytesLimitMax, limits.max_bytes_per_second);
  return given;
}

SourceMode read_source_mode(JsonFields& fields) {
  const std::string text = fields.string_or("source_mode", "auto");
  if (const auto mode = parse_source_mode(text)) return *mode;
  fields.refuse("source_mode", "source_mode must be auto, transparent, plain or proxy_v2.");
  return SourceMode::kAuto;
}

/// 0 if it is not given: whether it has to be depends on the target, which may be the instance's.
std::uint16_t read_guest_port(JsonFields& fields, const std::optional<Target>& target) {
  constexpr auto kCode = ErrorCode::kInvalidPort;
  const bool required = target && target->is_tcp();
  if (required) return static_cast<std::uint16_t>(fields.integer("guest_port", 1, 65535, kCode));
  return static_cast<std::uint16_t>(fields.integer_or_none("guest_port", 1, 65535, kCode).value_or(0));
}

/// The fields of every forward.
ForwardSpec read_spec(JsonFields& fields, Timestamp now) {
  ForwardSpec spec;
  (void)fields.given("guest_port");  // comes first in the list of known fields
  spec.target = fields.target("target", true);
  spec.guest_port = read_guest_port(fields, spec.target);
  spec.protocol = fields.string_or("protocol", "tcp");
  spec.label = fields.string_or("label", "");
  if (const auto port = fields.integer_or_none("host_port", 1, 65535, ErrorCode::kInvalidPort)) {
    spec.host_port = static_cast<std::uint16_t>(*port);
  }
  read_limits(fields, spec.limits);
  spec.source_mode = read_source_mode(fields);
  patch(spec.metadata, fields.strings("metadata", false));
  spec.enabled = fields.boolean_or("enabled", true);
  spec.expires_at = fields.expiry(now);
  return spec;
}

/// Of an entry with `host_ports`: as many specs.
std::vector<ForwardSpec> read_row(JsonFields& fields, Timestamp now) {
  const ForwardSpec first = read_spec(fields, now);
  const auto count = fields.integer_or_none("host_ports", 1, kRowMax).value_or(1);
  if (count > 1 && (first.guest_port == 0 || first.guest_port + count - 1 > kPortMax)) {
    fields.refuse("host_ports",
                  fmt::format("host_ports {} needs as many guest ports; there are none behind {}.", count,
                              first.guest_port));
    return {first};
  }
  if (first.host_port && *first.host_port + count - 1 > kPortMax) {
    fields.refuse("host_ports",
                  fmt::format("There are no {} host ports from {} on.", count, *first.host_port));
    return {first};
  }
  std::vector<ForwardSpec> row(static_cast<std::size_t>(count), first);
  for (std::size_t i = 1; i < row.size(); ++i) {
    row[i].guest_port = static_cast<std::uint16_t>(first.guest_port + i);
    if (first.host_port) row[i].host_port = static_cast<std::uint16_t>(*first.host_port + i);
    row[i].follows = !first.host_port;
  }
  return row;
}

}  // namespace

Result<ForwardSpec> read_forward(const Request& request, Timestamp now) {
  JsonFields fields(request);
  ForwardSpec spec = read_spec(fields, now);
  if (auto error = fields.finish()) return *error;
  return spec;
}

Result<ForwardList> read_forwards(const Request& request, std::size_t least, Timestamp now) {
  ForwardList list;
  JsonFields fields(request);
  std::size_t entry = 0;
  fields.each("port_forwards", least, kBatchMax, [&](JsonFields each) {
    std::vector<ForwardSpec> row = read_row(each, now);
    list.entries.insert(list.entries.end(), row.size(), entry++);
    list.specs.insert(list.specs.end(), std::move_iterator(row.begin()), std::move_iterator(row.end()));
    return each.finish();
  });
  if (list.specs.size() > kBatchMax) {
    fields.refuse("port_forwards",
                  fmt::format("port_forwards has {} forwards, host_ports included; {} can be "
                              "made at once.",
                              list.specs.size(), kBatchMax));
  }
  if (auto error = fields.finish()) return *error;
  return list;
}

Result<ForwardChange> read_forward_change(const Request& request, Timestamp now) {
  JsonFields fields(request);
  ForwardChange change;
  if (fields.given("label")) change.label = fields.string_or("label", "");
  change.given = read_limits(fields, change.limits);
  if (fields.given("source_mode")) change.source_mode = read_source_mode(fields);
  if (fields.given("guest_port")) {
    change.guest_port =
        static_cast<std::uint16_t>(fields.integer("guest_port", 1, 65535, ErrorCode::kInvalidPort));
  }
  change.metadata = fields.strings("metadata", true);
  if (fields.given("enabled")) change.enabled = fields.boolean_or("enabled", true);
  const bool has_end = fields.given("expires_at");
  const bool has_ttl = fields.given("ttl_seconds");
  if (has_end || has_ttl) change.expires_at = fields.expiry(now);
  if (auto error = fields.finish()) return *error;
  return change;
}

}  // namespace portway
