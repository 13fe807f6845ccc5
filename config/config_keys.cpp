#include "config/config_keys.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <initializer_list>
#include <set>
#include <utility>

namespace portway {
namespace {

using boost::asio::ip::address_v4;

constexpr std::size_t kHostnameMaxBytes = 253;  // RFC 1035, section 2.3.4, as text
constexpr std::size_t kPathMaxBytes = 4095;     // PATH_MAX without the terminator
constexpr std::size_t kProfileNameMaxBytes = 64;
constexpr std::size_t kPublicAddressesMax = 16;
constexpr std::size_t kGuestNetworksMax = 64;
constexpr std::size_t kAdminUidsMax = 64;
// /proc/sys/kernel/overflowuid's default, "nobody": what every user looks like who is not mapped into this
// user namespace.
constexpr std::int64_t kOverflowUid = 65534;

Error wrong(std::string detail) {
  return {ErrorCode::kInvalidConfig, std::move(detail), ""};
}

// --- Kinds of keys.

template <class T>
using Field = T& (*)(ConfigTarget);

/// A field of `unit`s of a number, or of a duration, whose unit is its type's.
template <class T>
ConfigKey number_key(std::string_view name, std::int64_t min, std::int64_t max, Field<T> field,
                     std::string_view help, std::int64_t unit = 1) {
  return {name, fmt::format("{} ({} to {})", help, min, max),
          [=](ConfigTarget target) {
            if constexpr (std::is_integral_v<T>)
              return ConfigValue(std::int64_t{field(target)} / unit);
            else
              return ConfigValue(std::int64_t{field(target).count()});
          },
          [=](ConfigTarget target, const ConfigValue& value) -> std::optional<std::string> {
            const auto number = std::get<std::int64_t>(value);
            if (number < min || number > max) {
              return fmt::format("{} is out of range; it must be {} to {}", number, min, max);
            }
            field(target) = static_cast<T>(number * unit);
            return std::nullopt;
          }};
}

/// A number key whose range has some that cannot be.
ConfigKey without(std::initializer_list<std::int64_t> refused, std::string_view why, ConfigKey key) {
  key.set = [refused = std::vector(refused), why, in_range = std::move(key.set)](
                ConfigTarget target, const ConfigValue& value) -> std::optional<std::string> {
    const auto number = std::get<std::int64_t>(value);
    if (std::ranges::find(refused, number) != refused.end()) return fmt::format("{} {}", number, why);
    return in_range(target, value);
  };
  return key;
}

ConfigKey bool_key(std::string_view name, Field<bool> field, std::string_view help) {
  return {name, std::string(help), [field](ConfigTarget target) { return ConfigValue(field(target)); },
          [field](ConfigTarget target, const ConfigValue& value) -> std::optional<std::string> {
            field(target) = std::get<bool>(value);
            return std::nullopt;
          }};
}

template <class T>
ConfigKey text_key(std::string_view name, Field<T> field, Result<T> (*parse)(std::string_view),
                   std::string (*show)(const T&), std::string_view help) {
  return {name, std::string(help), [=](ConfigTarget target) { return ConfigValue(show(field(target))); },
          [=](ConfigTarget target, const ConfigValue& value) -> std::optional<std::string> {
            Result<T> parsed = parse(std::get<std::string>(value));
            if (!parsed) return parsed.error().detail;
            field(target) = std::move(*parsed);
            return std::nullopt;
          }};
}

template <class T>
ConfigKey list_key(std::string_view name, std::size_t min, std::size_t max, Field<std::vector<T>> field,
                   Result<T> (*parse)(std::string_view), std::string (*show)(const T&),
                   std::string_view help) {
  const auto get = [=](ConfigTarget target) {
    std::vector<std::string> texts;
    for (const T& item : field(target)) texts.push_back(show(item));
    return ConfigValue(std::move(texts));
  };
  const auto set = [=](ConfigTarget target, const ConfigValue& value) -> std::optional<std::string> {
    const auto& texts = std::get<std::vector<std::string>>(value);
    if (texts.size() < min || texts.size() > max) {
      return fmt::format("{} entries; there must be {} to {}", texts.size(), min, max);
    }
    std::vector<T> items;
    for (const std::string& text : texts) {
      Result<T> parsed = parse(text);
      if (!parsed) return parsed.error().detail;
      if (std::find(items.begin(), items.end(), *parsed) != items.end()) {
        return fmt::format("{} is there twice; leave one out", in_quotes(text));
      }
      items.push_back(std::move(*parsed));
    }
    field(target) = std::move(items);
    return std::nullopt;
  };
  return {name, fmt::format("{} ({} to {} entries)", help, min, max), get, set};
}

template <class Enum, std::size_t N>
Result<Enum> parse_name(std::string_view text, const std::array<std::string_view, N>& names) {
  const auto* found = std::find(names.begin(), names.end(), text);
  if (found != names.end()) return static_cast<Enum>(found - names.begin());
  return wrong(fmt::format("{} is none of \"{}\"", in_quotes(text), fmt::join(names, "\", \"")));
}

// --- Parsers and printers of values.

constexpr auto kIoBackendNames = std::to_array<std::string_view>({"auto", "uring", "epoll"});
static_assert(kIoBackendNames.size() == static_cast<std::size_t>(IoBackend::kEpoll) + 1);

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
  if (text.empty()) return std::optional<ListenAddress>();
  Result<ListenAddress> address = parse_listen_address(text);
  if (!address) return address.error();
  return std::optional<ListenAddress>(std::move(*address));
}

std::string show_optional_listen(const std::optional<ListenAddress>& address) {
  return address ? to_string(*address) : "";
}

ConfigKey uids_key(std::string_view name, Field<std::vector<std::uint32_t>> field, std::string_view help) {
  const auto get = [=](ConfigTarget target) {
    return ConfigValue(std::vector<std::int64_t>(field(target).begin(), field(target).end()));
  };
  const auto set = [=](ConfigTarget target, const ConfigValue& value) -> std::optional<std::string> {
    const auto& numbers = std::get<std::vector<std::int64_t>>(value);
    if (numbers.size() > kAdminUidsMax) {
      return fmt::format("{} entries; there must be 0 to {}", numbers.size(), kAdminUidsMax);
    }
    std::vector<std::uint32_t> uids;
    for (const std::int64_t number : numbers) {
      if (number == kOverflowUid) {
        return fmt::format("{} is \"nobody\", and whoever the kernel cannot name; leave it out", number);
      }
      if (number < 0 || number > UINT32_MAX - 1) return fmt::format("{} is no user's id (id -u)", number);
      uids.push_back(static_cast<std::uint32_t>(number));
    }
    field(target) = std::move(uids);
    return std::nullopt;
  };
  return {name, fmt::format("{} (0 to {} entries)", help, kAdminUidsMax), get, set};
}

Result<PortRange> parse_host_ports(std::string_view text) {
  Result<PortRange> range = parse_port_range(text);
  if (range && range->first < 1024) {
    return wrong(in_quotes(text) + " reaches below 1024, where system services live; start at 1024 or above");
  }
  return range;
}

std::string show_network(const Cidr& network) {
  return network.to_string();
}

// --- The table.

std::vector<ConfigKey> make_keys() {
  using T = ConfigTarget;
  return {
      text_key<std::string>(
          "node.public_hostname", [](T t) -> auto& { return t.config.node.public_hostname; }, parse_hostname,
          show_text,
          "The name clients connect to: the \"hostname\" of the API's answers. Empty: this machine's own "
          "name."),
      list_key<IpAddress>(
          "node.public_addresses", 1, kPublicAddressesMax,
          [](T t) -> auto& { return t.config.node.public_addresses; }, parse_public_address, show_address,
          "The addresses on which host ports are bound, IPv4 or IPv6. Naming the public ones is better "
          "than 0.0.0.0: the ports then stay closed on the node's other addresses."),
      text_key<ListenAddress>(
          "api.listen", [](T t) -> auto& { return t.config.api.listen; }, parse_listen_address, to_string,
          "Where the REST API listens: ip:port, where port 0 is any free one, or unix:/path. Beyond "
          "loopback set api.tls_certificate: keys would travel in clear text. A Unix socket has mode 0660 "
          "and the daemon's group, or that of its directory where that is setgid."),
      text_key<std::string>(
          "api.admin_key_file", [](T t) -> auto& { return t.config.api.admin_key_file; }, parse_path,
          show_text,
          "The file with the first admin key. Made at start, mode 0600, with a random key, when missing."),
      uids_key(
          "api.admin_uids", [](T t) -> auto& { return t.config.api.admin_uids; },
          "Users (numeric ids) who are admin without a key when they call over the Unix socket, e.g. [0] "
          "for root. Empty: everybody needs a key."),
      text_key<std::string>(
          "api.tls_certificate", [](T t) -> auto& { return t.config.api.tls_certificate; },
          parse_optional_path, show_text,
          "The PEM file with the API's certificate, followed by those of its authorities: then api.listen "
          "speaks HTTPS only (TLS 1.2 or 1.3). Empty: plain HTTP. metrics.listen stays plain HTTP."),
      text_key<std::string>(
          "api.tls_private_key", [](T t) -> auto& { return t.config.api.tls_private_key; },
          parse_optional_path, show_text,
          "The PEM file with the certificate's private key, without a passphrase. Goes with "
          "api.tls_certificate."),
      text_key<std::string>(
          "api.client_ca", [](T t) -> auto& { return t.config.api.client_ca; }, parse_optional_path,
          show_text,
          "The PEM file with the authorities of clients' certificates: then only who has one can connect, "
          "and needs a key as well. Empty: clients are asked for none."),
      bool_key(
          "api.allow_guests", [](T t) -> auto& { return t.config.api.allow_guests; },
          "Whether guests may connect to api.listen and metrics.listen: clients from guests.networks, with a "
          "link-local address, or over the tap of an instance. They are closed at once unless this is "
          "true: a guest has no business there."),
      number_key<std::uint32_t>(
          "api.rate_limit_per_second", 0, 1'000'000,
          [](T t) -> auto& { return t.config.api.rate_limit_per_second; },
          "Requests a second that one key may make; more are answered 429. 0: no limit."),
      number_key<std::uint32_t>(
          "api.body_max_bytes", 1024, 16'777'216, [](T t) -> auto& { return t.config.api.body_max_bytes; },
          "The largest body of a request, in bytes; a larger one is answered 413."),
      text_key<std::optional<ListenAddress>>(
          "metrics.listen", [](T t) -> auto& { return t.config.metrics.listen; }, parse_optional_listen,
          show_optional_listen,
          "A listener of its own for /metrics, ip:port or unix:/path, which asks for no key. Empty: /metrics "
          "is on the API's listener and needs a key."),
      text_key<PortRange>(
          "ports.range", [](T t) -> auto& { return t.config.ports.range; }, parse_host_ports, to_string,
          "The host ports given to forwards, first-last, within 1024-65535. Keep them apart from the "
          "kernel's net.ipv4.ip_local_port_range. Where they overlap they can be reserved with "
          "net.ipv4.ip_local_reserved_ports, if that leaves the node enough ports (8192 or more) for its own "
          "outgoing connections; the log and portway doctor name values that fit."),
      list_key<Cidr>(
          "guests.networks", 0, kGuestNetworksMax, [](T t) -> auto& { return t.config.guests.networks; },
          Cidr::parse, show_network,
          "The networks the guests live in, e.g. [\"198.18.0.0/15\", \"fd00::/8\"]: a guest's address must "
          "lie in one of them. Empty: no instance can be registered."),
      number_key<std::uint32_t>(
          "profiles.*.max_forwarded_ports", 0, 65535,
          [](T t) -> auto& { return t.profile.max_forwarded_ports; },
          "How many port forwards an instance of this profile may have. More profiles are tables beside "
          "this one, e.g. [profiles.large]; a key that they leave out is as shown here."),
      bool_key(
          "profiles.*.allow_host_port", [](T t) -> auto& { return t.profile.allow_host_port; },
          "Whether tenants may ask for a certain host port; admins always may."),
      text_key<std::string>(
          "store.path", [](T t) -> auto& { return t.config.store.path; }, parse_path, show_text,
          "The database file. SQLite puts files beside it, so its directory must be writable."),
      number_key<std::uint32_t>(
          "proxy.workers", 0, 64, [](T t) -> auto& { return t.config.proxy.workers; },
          "Threads that move bytes. 0: one for each core."),
      text_key<IoBackend>(
          "proxy.io_backend", [](T t) -> auto& { return t.config.proxy.io_backend; }, parse_io_backend,
          show_name, "\"uring\" or \"epoll\"; \"auto\" is io_uring where the kernel allows it, else epoll."),
      text_key<SourceMode>(
          "proxy.source_mode", [](T t) -> auto& { return t.config.proxy.source_mode; }, parse_mode, show_name,
          "The client's address as guests see it, where a forward asks for nothing else: \"transparent\" is "
          "the client's own (Portway does not start where the node cannot, which takes CAP_NET_ADMIN and "
          "better CAP_BPF too), \"plain\" is the node's, \"proxy_v2\" is the node's with a PROXY protocol "
          "header before the client's bytes, \"auto\" is transparent where that is possible, else plain."),
      without(
          {1}, "leaves no preference for the rule before it, which is taken too; it must be 0, or 2 or more",
          number_key<std::uint32_t>(
              "proxy.source_rule_preference", 0, 32'765,
              [](T t) -> auto& { return t.config.proxy.source_rule_preference; },
              "The preference of Portway's routing rule in `ip rule`, where guests see their clients' own "
              "addresses; the one before it is taken too. Rules of other programs that come earlier can keep "
              "guests' answers away. 0: chosen at start, before everybody else's rules, 5109 at most.")),
      without(
          {253, 254, 255}, "is a routing table of the system's (default, main, local); give another one",
          number_key<std::uint32_t>(
              "proxy.source_route_table", 1, UINT32_MAX,
              [](T t) -> auto& { return t.config.proxy.source_route_table; },
              "The routing table of that rule, with one route that no other program may have there: local "
              "default dev lo. Not 253 to 255, which are the system's.")),
      number_key<std::uint32_t>(
          "proxy.source_mark_bit", 0, 31, [](T t) -> auto& { return t.config.proxy.source_mark_bit; },
          "The bit of the packet mark that is Portway's alone: it marks guests' answers for that rule, and "
          "it is cleared from whatever else a guest sends. Kubernetes uses bits 14 and 15, Cilium 8 to 11, "
          "Tailscale 16 to 23, Calico by default 16 to 31. Clients' addresses are not shown where another "
          "program's routing rule has the bit."),
      number_key<std::uint32_t>(
          "proxy.connections_max", 1, 1'000'000, [](T t) -> auto& { return t.config.proxy.connections_max; },
          "Connections of the whole node at a time; more are reset and counted."),
      number_key<std::uint32_t>(
          "proxy.instance_share_percent", 1, 100,
          [](T t) -> auto& { return t.config.proxy.instance_share_percent; },
          "Percentage of proxy.connections_max that one instance can have; the rest is kept for others. A "
          "forward can have the same percentage of its instance's, and a client address (IPv6: a /64) of its "
          "forward's. All clients behind a NAT gateway or load balancer in front of the node are one "
          "address: when the node runs short of connections, that share caps them together. Where "
          "connections run short, half-closed ones end sooner, silent ones first. 100: no shares."),
      number_key<std::chrono::milliseconds>(
          "proxy.connect_timeout_ms", 1, 600'000, [](T t) -> auto& { return t.config.proxy.connect_timeout; },
          "Milliseconds a guest has to answer a connection."),
      number_key<std::chrono::seconds>(
          "proxy.half_close_timeout_s", 0, 604'800,
          [](T t) -> auto& { return t.config.proxy.half_close_timeout; },
          "Seconds of silence after which a connection is ended when one side has finished sending. 0: "
          "never."),
      number_key<std::chrono::seconds>(
          "proxy.user_timeout_s", 0, 86'400, [](T t) -> auto& { return t.config.proxy.user_timeout; },
          "Seconds after which a guest that was sent something and answers nothing at all is given up. One "
          "that keeps its window closed, and answers when it is asked, is not. 0: the kernel's "
          "net.ipv4.tcp_retries2, about 15 minutes."),
      number_key<std::uint32_t>(
          "proxy.guest_receive_buffer_kib", 0, 65'536,
          [](T t) -> auto& { return t.config.proxy.guest_receive_buffer; },
          "Receive buffer of a connection's socket towards its guest, KiB; it grows for clients that are "
          "fast. Data that a slow client has not taken yet waits here and in the guest: a small buffer "
          "keeps it fresh. 0: the kernel's choice (net.ipv4.tcp_rmem).",
          1024),
      number_key<std::uint32_t>(
          "proxy.client_receive_buffer_kib", 0, 65'536,
          [](T t) -> auto& { return t.config.proxy.client_receive_buffer; },
          "The same for the socket towards the client; it grows for guests that are fast and for paths that "
          "are long. Needs CAP_NET_ADMIN. 0, or without it: the kernel's choice.",
          1024),
      number_key<std::uint32_t>(
          "proxy.unsent_max_kib", 0, 65'536, [](T t) -> auto& { return t.config.proxy.unsent_max; },
          "How much of a connection may wait unsent in a socket, KiB (TCP_NOTSENT_LOWAT). What is in "
          "flight does not count, so that long paths are filled. 0: as much as net.ipv4.tcp_wmem allows.",
          1024),
      bool_key(
          "proxy.copy_dscp", [](T t) -> auto& { return t.config.proxy.copy_dscp; },
          "Whether the DSCP of a client's SYN is that of what its connection sends to the guest."),
      number_key<std::chrono::milliseconds>(
          "proxy.refused_probe_ms", 0, 10'000, [](T t) -> auto& { return t.config.proxy.refused_probe; },
          "After a guest refused a client, the node refuses it too, as under DNAT, until the guest's port is "
          "open to it again. Portway probes the port while clients come, with SYNs that become no "
          "connection, at intervals that grow with the time that it has been closed. This is the longest "
          "interval, in milliseconds. Where guests do not see their clients' addresses, all of a forward's "
          "clients are refused. 0: clients are accepted and reset."),
      number_key<std::chrono::microseconds>(
          "proxy.busy_poll_us", 0, 1'000, [](T t) -> auto& { return t.config.proxy.busy_poll; },
          "Microseconds that a worker looks for further events before it sleeps, while they come at such "
          "distances: answers of single connections take half as long. Other threads run in between. 0: "
          "workers sleep at once."),
      number_key<std::chrono::seconds>(
          "proxy.keepalive_s", 0, 32'767, [](T t) -> auto& { return t.config.proxy.keepalive; },
          "Seconds of silence after which TCP asks whether a side is still there. A client that does not "
          "answer is given up; a guest is only where it says that it does not know the connection, since a "
          "paused machine answers nothing. 0: never."),
      number_key<std::chrono::seconds>(
          "proxy.idle_timeout_s", 0, 2'592'000, [](T t) -> auto& { return t.config.proxy.idle_timeout; },
          "Seconds of silence both ways after which a connection is ended. 0: never."),
      number_key<std::chrono::seconds>(
          "proxy.drain_timeout_s", 0, 86'400, [](T t) -> auto& { return t.config.proxy.drain_timeout; },
          "Seconds that connections get to end by themselves when the daemon stops or their forward is "
          "drained. 0: they are reset at once."),
      number_key<std::uint32_t>(
          "proxy.pipes_max", 1, 1'000'000, [](T t) -> auto& { return t.config.proxy.pipes_max; },
          "Pipes of the whole node at a time, each of 256 KiB of kernel memory at most and held only while "
          "bytes are in flight."),
      text_key<std::string>(
          "log.access", [](T t) -> auto& { return t.config.log.access; }, parse_optional_path, show_text,
          "A file that gets a line of JSON for each connection that has ended: who ended it, how, and what "
          "it carried. SIGUSR1 begins a new one where the old one was moved away. Empty: none."),
      number_key<std::uint32_t>(
          "log.recent_connections", 0, 100'000, [](T t) -> auto& { return t.config.log.recent_connections; },
          "How many of the last connections that have ended are remembered, for the API to tell why."),
  };
}

/// Those that can change while the daemon runs, besides the profiles'.
constexpr auto kLiveKeys =
    std::to_array<std::string_view>({"node.public_hostname", "api.rate_limit_per_second", "guests.networks"});

/// "api" of "api.listen", "profiles.default" of "profiles.default.max_forwarded_ports".
std::string_view table_of(std::string_view name) {
  return name.substr(0, std::min(name.rfind('.'), name.size()));
}

std::string_view last_part(std::string_view name) {
  return name.substr(name.rfind('.') + 1);
}

/// The key's name with a certain profile for the '*'.
std::string name_for(const ConfigKey& key, std::string_view profile) {
  std::string name(key.name);
  if (const std::size_t star = name.find('*'); star != std::string::npos) name.replace(star, 1, profile);
  return name;
}

}  // namespace

std::string_view to_string(IoBackend backend) {
  return kIoBackendNames[static_cast<std::size_t>(backend)];
}
const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = [] {
    std::vector<ConfigKey> all = make_keys();
    for (ConfigKey& key : all) {
      key.live = profile_in(key.name) == "*" ||
                 std::find(kLiveKeys.begin(), kLiveKeys.end(), key.name) != kLiveKeys.end();
      if (key.live) key.help += " SIGHUP takes a change over.";
    }
    return all;
  }();
  return keys;
}

const ConfigKey* find_config_key(std::string_view name) {
  const std::string_view profile = profile_in(name);
  for (const ConfigKey& key : config_keys()) {
    if (key.name == name || (!profile.empty() && name_for(key, profile) == name)) return &key;
  }
  return nullptr;
}

std::string_view profile_in(std::string_view name) {
  constexpr std::string_view kPrefix = "profiles.";
  if (!name.starts_with(kPrefix)) return {};
  name.remove_prefix(kPrefix.size());
  return name.substr(0, name.find('.'));
}

bool is_profile_name(std::string_view name) {
  return !name.empty() && name.size() <= kProfileNameMaxBytes &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; });
}

bool is_config_table(std::string_view name) {
  if (name == "profiles" || (table_of(name) == "profiles" && !profile_in(name).empty())) return true;
  return std::any_of(config_keys().begin(), config_keys().end(),
                     [&](const ConfigKey& key) { return table_of(key.name) == name; });
}

std::string config_key_remedy(std::string_view name) {
  const std::string_view profile = is_profile_name(profile_in(name)) ? profile_in(name) : "default";
  std::set<std::string> names;  // of keys and of tables
  std::set<std::string> siblings;
  std::string namesake;  // of another table
  for (const ConfigKey& key : config_keys()) {
    const std::string known = name_for(key, profile);
    names.insert(known);
    names.emplace(table_of(known));
    if (table_of(known) == table_of(name)) siblings.emplace(last_part(known));
    if (last_part(known) == last_part(name)) namesake = known;
  }
  const auto closest = std::min_element(names.begin(), names.end(), [&](const auto& a, const auto& b) {
    return edit_distance(a, name) < edit_distance(b, name);
  });
  if (edit_distance(*closest, name) <= 1 + name.size() / 5) return "did you mean " + *closest + "?";
  if (!namesake.empty()) return "did you mean " + namesake + "?";
  if (!siblings.empty())
    return fmt::format("the keys of [{}] are {}", table_of(name), fmt::join(siblings, ", "));
  std::erase_if(names, [](const std::string& known) { return !is_config_table(known); });
  return fmt::format("the tables are {}", fmt::join(names, ", "));
}

std::string default_name(const ConfigKey& key) {
  return name_for(key, "default");
}

std::string environment_name(const ConfigKey& key) {
  std::string name = "PORTWAY_" + default_name(key);
  for (char& c : name) c = c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  constexpr std::size_t kLongest = 128;  // longer than any key, so a longer name is near none
  if (a.size() > kLongest || b.size() > kLongest) return std::max(a.size(), b.size());
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = std::exchange(row[j + 1], std::min({replaced, row[j] + 1, row[j + 1] + 1}));
    }
  }
  return row[b.size()];
}

namespace {

std::optional<ConfigConflict> find_tls_conflict(const Config::Api& api) {
  if (!api.tls_certificate.empty() && api.tls_private_key.empty()) {
    return ConfigConflict{"api.tls_certificate", "needs its private key; set api.tls_private_key too"};
  }
  if (api.tls_certificate.empty() && !api.tls_private_key.empty()) {
    return ConfigConflict{"api.tls_private_key", "needs its certificate; set api.tls_certificate too"};
  }
  if (api.tls_certificate.empty() && !api.client_ca.empty()) {
    return ConfigConflict{"api.client_ca", "needs TLS; set api.tls_certificate and api.tls_private_key too"};
  }
  if (!api.tls_certificate.empty() && std::holds_alternative<UnixPath>(api.listen)) {
    return ConfigConflict{"api.tls_certificate",
                          "api.listen is a Unix socket, which never leaves this machine; leave the "
                          "certificate out, or listen on ip:port"};
  }
  return std::nullopt;
}

}  // namespace

std::optional<ConfigConflict> find_conflict(const Config& config) {
  const auto& addresses = config.node.public_addresses;
  for (const IpAddress& any : addresses) {
    const bool covers =
        any.is_unspecified() && std::any_of(addresses.begin(), addresses.end(), [&](const auto& other) {
          return other != any && other.is_v4() == any.is_v4();
        });
    if (!covers) continue;
    return ConfigConflict{"node.public_addresses",
                          fmt::format("{} covers the other addresses of its kind, which could "
                                      "not be bound beside it; leave it or them out",
                                      any.to_string())};
  }
  const auto* endpoint = std::get_if<Endpoint>(&config.api.listen);
  if (config.metrics.listen == config.api.listen && (endpoint == nullptr || endpoint->port() != 0)) {
    return ConfigConflict{"metrics.listen",
                          fmt::format("{} is where the API listens; give it another port, or leave it "
                                      "empty to have /metrics on the API's listener",
                                      to_string(config.api.listen))};
  }
  return find_tls_conflict(config.api);
}

}  // namespace portway
