#include "base/forward.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <mutex>
#include <span>

#include "base/random.h"

namespace portway {
namespace {

/// The time and counter of the last UUID: RFC 9562, section 6.2, method 1 (a fixed-length counter in rand_a).
struct UuidClock {
  std::mutex mutex;
  std::uint64_t time_ms = 0;
  std::uint32_t counter = 0;  // 12 bits
};

constexpr std::uint32_t kCounterMax = 0xfff;

/// The next (time, counter), greater than all earlier ones even if the clock was set back.
std::pair<std::uint64_t, std::uint32_t> tick(std::uint32_t seed) {
  static UuidClock clock;
  const auto time_ms = static_cast<std::uint64_t>(now().time_since_epoch().count());
  const std::lock_guard lock(clock.mutex);
  if (time_ms > clock.time_ms) {
    clock.time_ms = time_ms;
    clock.counter = seed & (kCounterMax >> 1);  // the upper half is left for counting up
  } else if (clock.counter < kCounterMax) {
    ++clock.counter;
  } else {
    ++clock.time_ms;
    clock.counter = seed & (kCounterMax >> 1);
  }
  return {clock.time_ms, clock.counter};
}

constexpr auto kLimitNames =
    std::to_array<std::string_view>({"allowed_cidrs", "max_connections", "max_connections_per_source",
                                     "max_new_connections_per_second", "max_bytes_per_second"});
static_assert(kLimitNames.size() == kLimits &&
              kLimits == static_cast<std::size_t>(Limit::kMaxBytesPerSecond) + 1);

constexpr auto kTargetKindNames = std::to_array<std::string_view>({"tcp", "unix", "firecracker_vsock"});
static_assert(kTargetKindNames.size() == static_cast<std::size_t>(TargetKind::kFirecrackerVsock) + 1);

constexpr auto kSourceModeNames =
    std::to_array<std::string_view>({"auto", "transparent", "plain", "proxy_v2"});
static_assert(kSourceModeNames.size() == static_cast<std::size_t>(SourceMode::kProxyV2) + 1);

constexpr auto kSessionEndNames =
    std::to_array<std::string_view>({"stopped", "replaced", "deleted", "carrier_lost", "tap_deleted",
                                     "vmm_exited", "node_rebooted", "netns_gone", "moved"});
static_assert(kSessionEndNames.size() == static_cast<std::size_t>(SessionEnd::kMoved) + 1);

constexpr std::array<std::size_t, 4> kDashes = {8, 13, 18, 23};

}  // namespace

Uuid make_uuid() {
  Uuid id;
  fill_random(std::as_writable_bytes(std::span(id.data)));
  const auto [time_ms, counter] = tick(static_cast<std::uint32_t>(id.data[6]) << 8 | id.data[7]);
  for (std::size_t i = 0; i < 6; ++i) id.data[i] = static_cast<std::uint8_t>(time_ms >> (8 * (5 - i)));
  id.data[6] = static_cast<std::uint8_t>(0x70 | counter >> 8);  // version 7
  id.data[7] = static_cast<std::uint8_t>(counter);
  id.data[8] = static_cast<std::uint8_t>(0x80 | (id.data[8] & 0x3f));  // variant 10
  return id;
}

Timestamp time_of(const Uuid& id) {
  std::int64_t time_ms = 0;
  for (std::size_t i = 0; i < 6; ++i) time_ms = time_ms << 8 | id.data[i];
  return Timestamp(std::chrono::milliseconds(time_ms));
}

std::string to_string(const Uuid& id) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string text;
  text.reserve(36);
  for (const std::uint8_t byte : id.data) {
    if (std::find(kDashes.begin(), kDashes.end(), text.size()) != kDashes.end()) text += '-';
    text += kHex[byte >> 4];
    text += kHex[byte & 0xf];
  }
  return text;
}

std::optional<Uuid> parse_uuid(std::string_view text) {
  if (text.size() != 36) return std::nullopt;
  Uuid id;
  std::size_t at = 0;
  for (std::uint8_t& byte : id.data) {
    if (std::find(kDashes.begin(), kDashes.end(), at) != kDashes.end() && text[at++] != '-')
      return std::nullopt;
    const char* digits = text.data() + at;
    const auto [rest, error] = std::from_chars(digits, digits + 2, byte, 16);
    if (error != std::errc{} || rest != digits + 2) return std::nullopt;
    at += 2;
  }
  return id;
}

std::string_view device_of(const Instance& instance) {
  return instance.device.empty() ? instance.tap : instance.device;
}

std::string_view tap_netns_of(const Instance& instance) {
  if (instance.tap_netns == kNetnsOfNode) return "";
  return instance.tap_netns.empty() ? instance.netns : instance.tap_netns;
}

std::vector<IpAddress> guest_addresses(const Instance& instance) {
  std::vector<IpAddress> addresses = {instance.guest_address};
  if (instance.guest_address_v6) addresses.push_back(*instance.guest_address_v6);
  return addresses;
}

Timestamp now() {
  return std::chrono::floor<std::chrono::milliseconds>(std::chrono::system_clock::now());
}

std::string to_rfc3339(Timestamp time) {
  const auto day = std::chrono::floor<std::chrono::days>(time);
  const std::chrono::year_month_day date(day);
  const std::chrono::hh_mm_ss clock(time - day);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", static_cast<int>(date.year()),
                     static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
                     clock.hours().count(), clock.minutes().count(), clock.seconds().count(),
                     clock.subseconds().count());
}

namespace {

/// Takes `digits` digits and, if it is not 0, the character after them off the front of `text`.
std::optional<int> take_number(std::string_view& text, std::size_t digits, char after) {
  if (text.size() < digits + (after != 0 ? 1 : 0)) return std::nullopt;
  int value = 0;
  for (const char c : text.substr(0, digits)) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  if (after != 0 && (text[digits] & ~(after >= 'A' ? 0x20 : 0)) != after) return std::nullopt;
  text.remove_prefix(digits + (after != 0 ? 1 : 0));
  return value;
}

/// ".123", which may be missing.
std::optional<std::chrono::milliseconds> take_fraction(std::string_view& text) {
  if (!text.starts_with('.')) return std::chrono::milliseconds(0);
  text.remove_prefix(1);
  const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  if (digits == 0) return std::nullopt;
  std::string three(text.substr(0, std::min<std::size_t>(digits, 3)));
  three.resize(3, '0');
  text.remove_prefix(digits);
  return std::chrono::milliseconds(std::stoi(three));
}

/// "Z" or "+01:00": how far that zone is ahead of UTC.
std::optional<std::chrono::minutes> take_zone(std::string_view& text) {
  if (text == "Z" || text == "z") return std::chrono::minutes(0);
  if (text.size() != 6 || (text[0] != '+' && text[0] != '-')) return std::nullopt;
  const int sign = text[0] == '-' ? -1 : 1;
  text.remove_prefix(1);
  const auto hours = take_number(text, 2, ':');
  const auto minutes = hours ? take_number(text, 2, 0) : std::nullopt;
  if (!minutes || *hours > 23 || *minutes > 59) return std::nullopt;
  return std::chrono::minutes(sign * (*hours * 60 + *minutes));
}

}  // namespace

std::optional<Timestamp> parse_rfc3339(std::string_view text) {
  std::array<int, 6> parts{};  // year to second
  constexpr std::array<char, 6> kAfter = {'-', '-', 'T', ':', ':', 0};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto part = take_number(text, i == 0 ? 4 : 2, kAfter[i]);
    if (!part) return std::nullopt;
    parts[i] = *part;
  }
  const auto fraction = take_fraction(text);
  const auto zone = fraction ? take_zone(text) : std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(parts[0]),
                                         std::chrono::month(static_cast<unsigned>(parts[1])),
                                         std::chrono::day(static_cast<unsigned>(parts[2]))};
  if (!zone || !date.ok() || parts[3] > 23 || parts[4] > 59 || parts[5] > 59) return std::nullopt;
  const Timestamp time = std::chrono::sys_days(date) + std::chrono::hours(parts[3]) +
                         std::chrono::minutes(parts[4]) + std::chrono::seconds(parts[5]) + *fraction - *zone;
  constexpr Timestamp kEnd = std::chrono::sys_days(std::chrono::year(10000) / 1 / 1);
  if (time < Timestamp() || time >= kEnd) return std::nullopt;
  return time;
}

std::string_view to_string(InstanceState state) {
  return state == InstanceState::kRunning ? "running" : "stopped";
}

std::string_view to_string(SourceMode mode) {
  return kSourceModeNames[static_cast<std::size_t>(mode)];
}

std::optional<SourceMode> parse_source_mode(std::string_view text) {
  const auto* found = std::find(kSourceModeNames.begin(), kSourceModeNames.end(), text);
  if (found == kSourceModeNames.end()) return std::nullopt;
  return static_cast<SourceMode>(found - kSourceModeNames.begin());
}

std::string_view to_string(TargetKind kind) {
  return kTargetKindNames[static_cast<std::size_t>(kind)];
}

std::optional<TargetKind> parse_target_kind(std::string_view text) {
  const auto* found = std::find(kTargetKindNames.begin(), kTargetKindNames.end(), text);
  if (found == kTargetKindNames.end()) return std::nullopt;
  return static_cast<TargetKind>(found - kTargetKindNames.begin());
}

std::string_view to_string(Limit limit) {
  return kLimitNames[static_cast<std::size_t>(limit)];
}

std::optional<Limit> parse_limit(std::string_view text) {
  const auto* found = std::find(kLimitNames.begin(), kLimitNames.end(), text);
  if (found == kLimitNames.end()) return std::nullopt;
  return static_cast<Limit>(found - kLimitNames.begin());
}

std::vector<std::string_view> names_of(const LimitSet& limits) {
  std::vector<std::string_view> names;
  for (std::size_t i = 0; i < kLimits; ++i) {
    if (limits[i]) names.push_back(kLimitNames[i]);
  }
  return names;
}

LimitSet set_limits(const TrafficLimits& limits) {
  LimitSet set;
  const auto add = [&set](Limit limit, bool is_set) { set[static_cast<std::size_t>(limit)] = is_set; };
  add(Limit::kAllowedCidrs, !limits.allowed_cidrs.empty());
  add(Limit::kMaxConnections, limits.max_connections != 0);
  add(Limit::kMaxConnectionsPerSource, limits.max_connections_per_source != 0);
  add(Limit::kMaxNewConnectionsPerSecond, limits.max_new_connections_per_second != 0);
  add(Limit::kMaxBytesPerSecond, limits.max_bytes_per_second != 0);
  return set;
}

void copy_limits(const LimitSet& which, const TrafficLimits& from, TrafficLimits& to) {
  const auto copy = [&](Limit limit, auto TrafficLimits::*field) {
    if (which[static_cast<std::size_t>(limit)]) to.*field = from.*field;
  };
  copy(Limit::kAllowedCidrs, &TrafficLimits::allowed_cidrs);
  copy(Limit::kMaxConnections, &TrafficLimits::max_connections);
  copy(Limit::kMaxConnectionsPerSource, &TrafficLimits::max_connections_per_source);
  copy(Limit::kMaxNewConnectionsPerSecond, &TrafficLimits::max_new_connections_per_second);
  copy(Limit::kMaxBytesPerSecond, &TrafficLimits::max_bytes_per_second);
}

namespace {

/// Calls visit(limit, field) for those that a forward and a profile both can have.
template <class Visit>
void visit_numbers(Visit visit) {
  visit(Limit::kMaxConnections, &TrafficLimits::max_connections);
  visit(Limit::kMaxConnectionsPerSource, &TrafficLimits::max_connections_per_source);
  visit(Limit::kMaxNewConnectionsPerSecond, &TrafficLimits::max_new_connections_per_second);
  visit(Limit::kMaxBytesPerSecond, &TrafficLimits::max_bytes_per_second);
}

}  // namespace

TrafficLimits stricter(const TrafficLimits& own, const TrafficLimits& of_profile) {
  TrafficLimits limits = own;
  copy_limits(limits_of_profile(own, of_profile), of_profile, limits);
  const bool shorter = own.idle_timeout.count() == 0 || of_profile.idle_timeout < own.idle_timeout;
  if (of_profile.idle_timeout.count() != 0 && shorter) limits.idle_timeout = of_profile.idle_timeout;
  return limits;
}

LimitSet limits_of_profile(const TrafficLimits& own, const TrafficLimits& of_profile) {
  LimitSet which;
  visit_numbers([&](Limit limit, auto TrafficLimits::*field) {
    const bool is_stricter = of_profile.*field != 0 && (own.*field == 0 || of_profile.*field < own.*field);
    which[static_cast<std::size_t>(limit)] = is_stricter;
  });
  return which;
}

std::string_view to_string(SessionEnd end) {
  return kSessionEndNames[static_cast<std::size_t>(end)];
}

std::optional<SessionEnd> parse_session_end(std::string_view text) {
  const auto* found = std::find(kSessionEndNames.begin(), kSessionEndNames.end(), text);
  if (found == kSessionEndNames.end()) return std::nullopt;
  return static_cast<SessionEnd>(found - kSessionEndNames.begin());
}

}  // namespace portway
