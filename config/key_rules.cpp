#include "config/key_rules.h"

#include <fmt/ranges.h>

#include <array>
#include <cctype>

namespace portway {
namespace {

using boost::asio::ip::address_v4;

constexpr std::size_t kHostnameMaxBytes = 253;  // RFC 1035, section 2.3.4, as text
constexpr std::size_t kPathMaxBytes = 4095;     // PATH_MAX without the terminator
constexpr std::size_t kPublicAddressesMax = 16;
constexpr std::size_t kGuestNetworksMax = 64;
constexpr std::size_t kDirectoriesMax = 16;
// The default of /proc/sys/kernel/overflowuid, "nobody": what every user who is not mapped into this user
// namespace looks like.
constexpr std::int64_t kOverflowUid = 65534;

Error wrong(std::string detail) {
  return {ErrorCode::kInvalidConfig, std::move(detail), ""};
}

template <class Enum, std::size_t N>
Result<Enum> parse_name(std::string_view text, const std::array<std::string_view, N>& names) {
  const auto* found = std::find(names.begin(), names.end(), text);
  if (found != names.end()) return static_cast<Enum>(found - names.begin());
  return wrong(fmt::format("{} is none of \"{}\"", in_quotes(text), fmt::join(names, "\", \"")));
}

constexpr auto kIoBackendNames = std::to_array<std::string_view>({"auto", "uring", "epoll"});
static_assert(kIoBackendNames.size() == static_cast<std::size_t>(IoBackend::kEpoll) + 1);

constexpr auto kLogLevelNames = std::to_array<std::string_view>({"debug", "info", "warning", "error"});
static_assert(kLogLevelNames.size() == static_cast<std::size_t>(LogLevel::kError) + 1);
constexpr auto kLogFormatNames = std::to_array<std::string_view>({"auto", "text", "json", "journal"});
static_assert(kLogFormatNames.size() == static_cast<std::size_t>(LogFormat::kJournal) + 1);

Result<IoBackend> parse_io_backend(std::string_view text) {
  return parse_name<IoBackend>(text, kIoBackendNames);
}

Result<SourceMode> parse_mode(std::string_view text) {
  if (const auto mode = parse_source_mode(text)) return *mode;
  return wrong(in_quotes(text) + " is none of \"auto\", \"transparent\", \"plain\", \"proxy_v2\"");
}

template <class Enum>
std::string show_name(const Enum& value) {
  return std::string(to_string(value));
}

Result<std::string> parse_hostname(std::string_view text) {
  const bool characters = std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '-' || c == '_';
  });
  if (text.size() <= kHostnameMaxBytes && characters) return std::string(text);
  return wrong(in_quotes(text) +
               " is no host name; give the DNS name or the IPv4 address that clients connect to");
}

Result<std::string> parse_path(std::string_view text) {
  if (!text.empty() && text.size() <= kPathMaxBytes && text.find('\0') == std::string_view::npos) {
    return std::string(text);
  }
  return wrong(in_quotes(text) + " is no path of a file; give 1 to 4095 bytes");
}

Result<std::string> parse_optional_path(std::string_view text) {
  if (text.empty()) return std::string();
  return parse_path(text);
}

Result<std::string> parse_directory(std::string_view text) {
  const bool bad = !text.starts_with('/') || text.size() > kPathMaxBytes ||
                   text.find('\0') != std::string_view::npos ||
                   (std::string(text) + '/').find("/../") != std::string::npos;
  if (!bad) return std::string(text);
  return wrong(in_quotes(text) +
               " is no absolute path of a directory without \"..\"; give one such as /run/netns");
}

std::string show_text(const std::string& text) {
  return text;
}

Result<IpAddress> parse_public_address(std::string_view text) {
  Result<IpAddress> address = parse_address(text);
  if (address && (address->is_multicast() || *address == IpAddress(address_v4::broadcast()))) {
    return wrong(in_quotes(text) + " is a multicast or broadcast address; give an address of this machine");
  }
  return address;
}

std::string show_address(const IpAddress& address) {
  return address.to_string();
}

Result<std::optional<ListenAddress>> parse_optional_listen(std::string_view text) {
  std::optional<ListenAddress> listen;
  if (text.empty()) return listen;
  Result<ListenAddress> address = parse_listen_address(text);
  if (!address) return address.error();
  listen = std::move(*address);
  return listen;
}

std::string show_optional_listen(const std::optional<ListenAddress>& address) {
  return address ? to_string(*address) : "";
}

Result<PortRange> parse_host_ports(std::string_view text) {
  Result<PortRange> range = parse_port_range(text);
  if (range && range->first < 1024) {
    return wrong(in_quotes(text) + " reaches below 1024, where system services live; start at 1024 or above");
  }
  return range;
}

constexpr std::size_t kUrlMaxBytes = 300;
constexpr std::size_t kUrlsMax = 16;
constexpr std::size_t kFleetPrefixMaxBytes = 128;
constexpr std::size_t kFleetUserMaxBytes = 128;
constexpr std::size_t kFleetNodeIdMaxBytes = 64;
constexpr std::size_t kGatewaysMax = 16;

/// Whoever uses it looks at the rest of it.
Result<std::string> parse_url(std::string_view text) {
  const bool is_http = text.starts_with("http://") || text.starts_with("https://");
  const bool is_printable =
      std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f && c != ','; });
  if (is_http && is_printable && text.size() <= kUrlMaxBytes) return std::string(text);
  return wrong(in_quotes(text) + " is no URL; write it like https://host.example:2379");
}

Result<std::string> parse_optional_url(std::string_view text) {
  if (text.empty()) return std::string();
  const auto url = parse_url(text);
  if (!url) return wrong(in_quotes(text) + " is no URL; write it like https://10.0.0.7:8443");
  const std::string_view rest = text.substr(text.find("//") + 2);
  if (rest.empty() || rest.find_first_of("/?#@") != std::string_view::npos) {
    return wrong(in_quotes(text) + " must have a host, optionally a port, and nothing else");
  }
  return std::string(text);
}

bool is_id_character(unsigned char c) {
  return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
}

Result<std::string> parse_fleet_user(std::string_view text) {
  if (text.size() <= kFleetUserMaxBytes) return std::string(text);
  return wrong("is longer than 128 bytes");
}

Result<std::string> parse_fleet_prefix(std::string_view text) {
  const bool good =
      text.size() >= 2 && text.size() <= kFleetPrefixMaxBytes && text.starts_with('/') &&
      text.ends_with('/') &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) { return is_id_character(c) || c == '/'; });
  if (good) return std::string(text);
  return wrong(in_quotes(text) +
               " is no prefix; begin and end it with a slash, with letters, digits, \".\", \"_\", \"-\" and "
               "slashes in between, such as /portway/");
}

Result<std::string> parse_fleet_node_id(std::string_view text) {
  if (text.size() <= kFleetNodeIdMaxBytes && std::all_of(text.begin(), text.end(), is_id_character)) {
    return std::string(text);
  }
  return wrong(in_quotes(text) + " is no id; give 1 to 64 letters, digits, \".\", \"_\" and \"-\"");
}

/// Whether it can be one part of a DNS name (RFC 1123, section 2.1; with "_", which certificates have).
bool is_dns_label(std::string_view label) {
  return !label.empty() && label.size() <= 63 && !label.starts_with('-') && !label.ends_with('-') &&
         std::all_of(label.begin(), label.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_'; });
}

/// In lower case: names of certificates are compared with it.
Result<std::string> parse_gateway(std::string_view text) {
  bool good = text.size() <= kHostnameMaxBytes;
  std::string_view last;
  for (std::size_t at = 0; good && at <= text.size();) {
    last = text.substr(at, text.find('.', at) - at);
    good = is_dns_label(last);
    at += last.size() + 1;
  }
  const bool is_address =
      std::all_of(last.begin(), last.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  if (!good || is_address) {
    return wrong(in_quotes(text) +
                 " is no DNS name; give the one in the gateway's client certificate, such as "
                 "gateway.example.com");
  }
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

std::string show_network(const Cidr& network) {
  return network.to_string();
}

}  // namespace

std::string_view to_string(LogLevel level) {
  return kLogLevelNames[static_cast<std::size_t>(level)];
}

std::string_view to_string(LogFormat format) {
  return kLogFormatNames[static_cast<std::size_t>(format)];
}

std::string_view to_string(IoBackend backend) {
  return kIoBackendNames[static_cast<std::size_t>(backend)];
}

Problem Number::check(std::int64_t number) const {
  if (std::ranges::find(excluded, number) != excluded.end()) return fmt::format("{} {}", number, why);
  if (number >= min && number <= max) return std::nullopt;
  return fmt::format("{} is out of range; it must be {} to {}", number, min, max);
}

Problem Uids::set(std::vector<std::uint32_t>& member, const ConfigValue& value) const {
  const auto& numbers = std::get<std::vector<std::int64_t>>(value);
  if (numbers.size() > max) return fmt::format("{} entries; there must be 0 to {}", numbers.size(), max);
  std::vector<std::uint32_t> uids;
  for (const std::int64_t number : numbers) {
    if (number == kOverflowUid) {
      return fmt::format("{} is \"nobody\", and whoever the kernel cannot name; leave it out", number);
    }
    if (number < 0 || number > UINT32_MAX - 1) return fmt::format("{} is no user's id (id -u)", number);
    uids.push_back(static_cast<std::uint32_t>(number));
  }
  member = std::move(uids);
  return std::nullopt;
}

const Text<std::string> kHostname{parse_hostname, show_text};
const Text<std::string> kPath{parse_path, show_text};
const Text<std::string> kOptionalPath{parse_optional_path, show_text};
const Text<ListenAddress> kListen{parse_listen_address, to_string};
const Text<std::optional<ListenAddress>> kOptionalListen{parse_optional_listen, show_optional_listen};
const Text<PortRange> kHostPorts{parse_host_ports, to_string};
const Text<IoBackend> kIoBackend{parse_io_backend, show_name};
const Text<LogLevel> kLogLevel{
    [](std::string_view text) { return parse_name<LogLevel>(text, kLogLevelNames); }, show_name};
const Text<LogFormat> kLogFormat{
    [](std::string_view text) { return parse_name<LogFormat>(text, kLogFormatNames); }, show_name};
const Text<SourceMode> kSourceMode{parse_mode, show_name};
const Text<std::string> kFleetUser{parse_fleet_user, show_text};
const Text<std::string> kFleetPrefix{parse_fleet_prefix, show_text};
const Text<std::string> kFleetNodeId{parse_fleet_node_id, show_text};
const Text<std::string> kOptionalUrl{parse_optional_url, show_text};
const List<std::string> kUrls{0, kUrlsMax, parse_url, show_text};
const List<std::string> kGateways{0, kGatewaysMax, parse_gateway, show_text};
const List<IpAddress> kPublicAddresses{1, kPublicAddressesMax, parse_public_address, show_address};
const List<Cidr> kNetworks{0, kGuestNetworksMax, Cidr::parse, show_network};
const List<std::string> kDirectories{0, kDirectoriesMax, parse_directory, show_text};

}  // namespace portway
