#include "control/store_rows.h"

#include <algorithm>
#include <limits>

#include "control/policy.h"
#include "control/store_schema.h"
#include "network/open_beneath.h"

namespace portway::rows {

// One bind() for each type of our columns.
void bind(SQLite::Statement& statement, int index, const std::string& value) {
  statement.bind(index, value);
}
void bind(SQLite::Statement& statement, int index, std::string_view value) {
  statement.bind(index, std::string(value));
}
void bind(SQLite::Statement& statement, int index, std::uint16_t value) {
  statement.bind(index, std::int32_t{value});
}
void bind(SQLite::Statement& statement, int index, std::optional<std::int32_t> value) {
  value ? statement.bind(index, *value) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, std::optional<std::uint32_t> value) {
  value ? statement.bind(index, std::int64_t{*value}) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, std::int32_t value) {
  statement.bind(index, value);
}
void bind(SQLite::Statement& statement, int index, std::int64_t value) {
  statement.bind(index, value);
}
void bind(SQLite::Statement& statement, int index, std::uint64_t value) {
  statement.bind(index, static_cast<std::int64_t>(value));
}
void bind(SQLite::Statement& statement, int index, std::uint32_t value) {
  statement.bind(index, std::int64_t{value});
}
void bind(SQLite::Statement& statement, int index, const std::vector<Cidr>& networks) {
  std::string text;
  for (const Cidr& network : networks) text += (text.empty() ? "" : ",") + network.to_string();
  statement.bind(index, text);
}
void bind(SQLite::Statement& statement, int index, const LimitSet& limits) {
  std::string text;
  for (const std::string_view name : names_of(limits)) text.append(text.empty() ? "" : ",").append(name);
  statement.bind(index, text);
}
void bind(SQLite::Statement& statement, int index, const Metadata& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata) {
    text.append(text.empty() ? "" : "\n").append(key).append("=").append(value);
  }
  statement.bind(index, text);
}
void bind(SQLite::Statement& statement, int index, const std::optional<SessionEnd>& value) {
  value ? statement.bind(index, std::string(to_string(*value))) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, const std::optional<IpAddress>& value) {
  value ? statement.bind(index, value->to_string()) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, const Uuid& value) {
  statement.bind(index, to_string(value));
}
void bind(SQLite::Statement& statement, int index, Timestamp value) {
  statement.bind(index, std::int64_t{value.time_since_epoch().count()});
}
void bind(SQLite::Statement& statement, int index, std::optional<Timestamp> value) {
  value ? bind(statement, index, *value) : statement.bind(index);
}
void bind(SQLite::Statement& statement, int index, const std::array<std::uint8_t, 32>& value) {
  statement.bind(index, value.data(), static_cast<int>(value.size()));
}
void bind(SQLite::Statement& statement, int index, const std::optional<std::array<std::uint8_t, 32>>& value) {
  value ? bind(statement, index, *value) : statement.bind(index);
}

void RowReader::reject(const char* column, const std::string& why) {
  if (problem_.empty()) problem_ = std::string(column) + " " + in_quotes(text(column)) + " " + why;
}
void RowReader::require(const Result<void>& check) {
  if (check || !problem_.empty()) return;
  problem_ = check.error().detail;
  if (problem_.ends_with('.')) problem_.pop_back();
}

std::string RowReader::text(const char* column) {
  return query_.getColumn(column).getString();
}

std::int64_t RowReader::number(const char* column, std::int64_t least, std::int64_t most) {
  const std::int64_t value = query_.getColumn(column).getInt64();
  if (least <= value && value <= most) return value;
  reject(column, "is not " + std::to_string(least) + " to " + std::to_string(most));
  return least;
}

std::uint16_t RowReader::port(const char* column) {
  return static_cast<std::uint16_t>(number(column, 1, std::numeric_limits<std::uint16_t>::max()));
}

Timestamp RowReader::time(const char* column) {
  return Timestamp(std::chrono::milliseconds(number(column, 0, kEndOfYear9999Ms)));
}

std::optional<Timestamp> RowReader::time_or_none(const char* column) {
  if (query_.isColumnNull(column)) return std::nullopt;
  return time(column);
}

std::optional<std::int32_t> RowReader::process_id(const char* column) {
  if (query_.isColumnNull(column)) return std::nullopt;
  return static_cast<std::int32_t>(number(column, 2, std::numeric_limits<std::int32_t>::max()));
}

std::uint32_t RowReader::number32(const char* column) {
  return static_cast<std::uint32_t>(number(column, 0, std::numeric_limits<std::uint32_t>::max()));
}

std::optional<std::uint32_t> RowReader::number32_or_none(const char* column) {
  if (query_.isColumnNull(column)) return std::nullopt;
  return number32(column);
}

std::int32_t RowReader::interface_index(const char* column) {
  return static_cast<std::int32_t>(number(column, 0, std::numeric_limits<std::int32_t>::max()));
}

std::vector<Cidr> RowReader::networks(const char* column) {
  std::vector<Cidr> list;
  const std::string all = text(column);
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t end = std::min(all.find(',', at), all.size());
    const auto network = Cidr::parse(std::string_view(all).substr(at, end - at));
    if (!network) {
      reject(column, "is no list of networks");
      break;
    }
    list.push_back(*network);
    at = end + 1;
  }
  return list;
}

LimitSet RowReader::limits(const char* column) {
  LimitSet set;
  const std::string all = text(column);
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t end = std::min(all.find(',', at), all.size());
    const auto limit = parse_limit(std::string_view(all).substr(at, end - at));
    if (!limit) {
      reject(column, "is no list of limits");
      break;
    }
    set.set(static_cast<std::size_t>(*limit));
    at = end + 1;
  }
  return set;
}

Metadata RowReader::metadata(const char* column) {
  Metadata metadata;
  const std::string all = text(column);
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t end = std::min(all.find('\n', at), all.size());
    const std::string line = all.substr(at, end - at);
    const std::size_t equals = line.find('=');
    if (equals == std::string::npos) {
      reject(column, "is no list of KEY=VALUE");
      break;
    }
    metadata.emplace(line.substr(0, equals), line.substr(equals + 1));
    at = end + 1;
  }
  require(check_metadata(metadata));
  return metadata;
}

std::optional<SessionEnd> RowReader::session_end(const char* column) {
  if (query_.isColumnNull(column)) return std::nullopt;
  const auto value = parse_session_end(text(column));
  if (!value) reject(column, "is no reason for a session's end");
  return value;
}

Uuid RowReader::uuid(const char* column) {
  const auto value = parse_uuid(text(column));
  if (!value) reject(column, "is not a UUID");
  return value.value_or(Uuid{});
}

IpAddress RowReader::address(const char* column) {
  const auto value = parse_address(text(column));
  if (!value) reject(column, "is not an IP address");
  return value ? *value : IpAddress{};
}

std::optional<IpAddress> RowReader::second_address(const char* column, const IpAddress& first) {
  if (query_.isColumnNull(column)) return std::nullopt;
  const IpAddress value = address(column);
  if (first.is_v6() || value.is_v4()) reject(column, "is not an IPv6 address beside an IPv4 one");
  return value;
}

NamespaceIdentity RowReader::namespace_identity(const char* column) {
  const auto value = parse_namespace_identity(text(column));
  if (!value) reject(column, "does not say which network namespace it is: COOKIE:DEVICE:INODE");
  return value.value_or(NamespaceIdentity{});
}

std::array<std::uint8_t, 32> RowReader::sha256(const char* column) {
  std::array<std::uint8_t, 32> hash{};
  const SQLite::Column value = query_.getColumn(column);
  if (value.getBytes() == static_cast<int>(hash.size())) {
    const auto* bytes = static_cast<const std::uint8_t*>(value.getBlob());
    std::copy_n(bytes, hash.size(), hash.begin());
  } else {
    reject(column, "is not a SHA-256, which has 32 bytes");
  }
  return hash;
}

namespace {

/// `check` is check_target() or check_default_target().
Target read_target(RowReader& row, Result<void> (*check)(const Target&)) {
  Target target;
  const auto kind = parse_target_kind(row.text("target_kind"));
  if (!kind) row.reject("target_kind", "is none of tcp, unix, firecracker_vsock");
  target.kind = kind.value_or(TargetKind::kTcp);
  target.socket = row.text("target_socket");
  target.port = row.number32("target_port");
  row.require(check(target));
  return target;
}

}  // namespace

Instance read_instance(RowReader& row) {
  Instance instance;
  instance.id = row.text("id");
  instance.guest_address = row.address("guest_address");
  instance.guest_address_v6 = row.second_address("guest_address_v6", instance.guest_address);
  instance.tap = row.text("tap");
  instance.device = row.text("device");
  instance.netns = normal_path(row.text("netns"));
  instance.tap_netns = normal_path(row.text("tap_netns"));
  instance.target = read_target(row, check_default_target);
  instance.owner = row.text("owner");
  instance.profile = row.text("profile");
  instance.metadata = row.metadata("metadata");
  instance.vmm_pid = row.process_id("vmm_pid");
  instance.session_id = row.uuid("session_id");
  const std::string state = row.text("state");
  if (state == to_string(InstanceState::kStopped)) {
    instance.state = InstanceState::kStopped;
  } else if (state != to_string(InstanceState::kRunning)) {
    row.reject("state", "is neither running nor stopped");
  }
  instance.created_at = row.time("created_at");
  instance.ended = row.session_end("ended");
  instance.tap_index = row.interface_index("tap_index");
  instance.tap_carrier_downs = row.number32_or_none("tap_carrier_downs");
  instance.idle_tap = {.index = row.interface_index("idle_tap_index"),
                       .carrier_downs = row.number32_or_none("idle_tap_carrier_downs")};
  instance.vmm_started =
      static_cast<std::uint64_t>(row.number("vmm_started", 0, std::numeric_limits<std::int64_t>::max()));
  instance.boot_id = row.text("boot_id");
  instance.netns_identity = row.namespace_identity("netns_identity");
  instance.tap_netns_identity = row.namespace_identity("tap_netns_identity");
  row.require(check_instance_id(instance.id));
  row.require(check_place(instance));
  row.require(check_owner(instance.owner));
  return instance;
}

Forward read_forward(RowReader& row) {
  Forward forward;
  forward.id = row.uuid("id");
  forward.instance_id = row.text("instance_id");
  forward.session_id = row.uuid("session_id");
  forward.target = read_target(row, check_target);
  if (forward.target.is_tcp()) forward.guest_port = row.port("guest_port");
  forward.host_port = row.port("host_port");
  forward.protocol = row.text("protocol");
  if (forward.protocol != "tcp") row.reject("protocol", "is not tcp");
  forward.label = row.text("label");
  row.require(check_label(forward.label));
  forward.created_at = row.time("created_at");
  forward.limits = {.allowed_cidrs = row.networks("allowed_cidrs"),
                    .max_connections = row.number32("max_connections"),
                    .max_connections_per_source = row.number32("max_connections_per_source"),
                    .max_new_connections_per_second = row.number32("max_new_connections_per_second"),
                    .max_bytes_per_second = static_cast<std::uint64_t>(
                        row.number("max_bytes_per_second", 0, std::numeric_limits<std::int64_t>::max()))};
  const auto source_mode = parse_source_mode(row.text("source_mode"));
  if (!source_mode) row.reject("source_mode", "is none of auto, transparent, plain, proxy_v2");
  forward.source_mode = source_mode.value_or(SourceMode::kAuto);
  forward.admin_limits = row.limits("admin_limits");
  forward.metadata = row.metadata("metadata");
  forward.enabled = row.number("enabled", 0, 1) == 1;
  forward.expires_at = row.time_or_none("expires_at");
  // A shell does not enforce foreign keys by default.
  if (row.number("instance_exists", 0, 1) == 0) row.reject("instance_id", "is no instance");
  return forward;
}

ApiKey read_api_key(RowReader& row) {
  ApiKey key;
  key.id = row.uuid("id");
  const auto role = parse_role(row.text("role"));
  if (!role) row.reject("role", "is neither admin nor tenant");
  key.role = role.value_or(Role::kTenant);
  key.owner = row.text("owner");
  row.require(check_owner(key.owner));
  key.secret_sha256 = row.sha256("secret_sha256");
  key.created_at = row.time("created_at");
  key.description = row.text("description");
  row.require(check_description(key.description));
  const auto scope = parse_key_scope(row.text("scope"));
  if (!scope) row.reject("scope", "is none of full, read, metrics");
  key.scope = scope.value_or(KeyScope::kRead);
  key.instance_id = row.text("instance_id");
  row.require(check_key_reach(key.role, key.scope, key.instance_id));
  key.expires_at = row.time_or_none("expires_at");
  key.last_used_at = row.time_or_none("last_used_at");
  if (!row.is_null("old_secret_sha256")) {
    key.old_secret = {.sha256 = row.sha256("old_secret_sha256"), .valid_until = row.time("old_secret_until")};
  }
  return key;
}

namespace {

StoredUsage read_usage(RowReader& row, StoredUsage::Kind kind) {
  const auto count = [&row](const char* column, std::int64_t most) {
    return static_cast<std::uint64_t>(row.number(column, 0, most));
  };
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  StoredUsage usage;
  usage.kind = kind;
  usage.id = row.text("id");
  usage.since = row.time("since");
  usage.totals = {.connections = count("connections", kMost),
                  .received_bytes = count("received_bytes", kMost),
                  .sent_bytes = count("sent_bytes", kMost),
                  .connection_us = 1000 * count("connection_ms", kMost / 1000),
                  .last_byte_at_ms = row.number("last_byte_at", 0, kMost),
                  .last_connection_at_ms = row.number("last_connection_at", 0, kMost)};
  return usage;
}

}  // namespace

NodeDrain read_drain(RowReader& row) {
  return {.since = row.time_or_none("draining_since")};
}

StoredUsage read_instance_usage(RowReader& row) {
  return read_usage(row, StoredUsage::Kind::kInstance);
}

StoredUsage read_forward_usage(RowReader& row) {
  return read_usage(row, StoredUsage::Kind::kForward);
}

}  // namespace portway::rows
