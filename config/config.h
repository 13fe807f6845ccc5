// What the operator decided: one struct, every key, its unit and its default.
//
// Loaded by main at start, from a TOML file, environment variables and flags. There is one live Config: the
// control thread's, which everything on that thread reads at the time that it needs a value. SIGHUP changes
// its live keys (take_live_keys); the workers have their own copy of Proxy, which has none. Keys are strict:
// an unknown one is an error that names the place and a remedy. config/portway.toml is the reference for
// operators; it is printed from the same keys that the loader uses (config/config_keys.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/forward.h"
#include "base/listen_address.h"
#include "base/tls_files.h"

namespace portway {

enum class IoBackend : std::uint8_t {
  kAuto,  // io_uring if the kernel allows it, else epoll
  kUring,
  kEpoll,
};
std::string_view to_string(IoBackend backend);

/// Lines of the daemon's log below it are left out.
enum class LogLevel : std::uint8_t { kDebug, kInfo, kWarning, kError };
std::string_view to_string(LogLevel level);

enum class LogFormat : std::uint8_t {
  kAuto,     // kJournal if standard error leads to the journal, else kText
  kText,     // a line of text
  kJson,     // a JSON object in a line
  kJournal,  // systemd-journald's own protocol, with a field for each of an entry's
};
std::string_view to_string(LogFormat format);

/// One of the API's listeners. What it leaves out is as the key of the same name in [api] says.
struct ApiListener {
  // Port 0: any free one.
  ListenAddress address = Endpoint();
  std::optional<std::string> tls_certificate = std::nullopt;
  std::optional<std::string> tls_private_key = std::nullopt;
  std::optional<std::string> client_ca = std::nullopt;
  std::optional<bool> allow_guests = std::nullopt;
  std::optional<std::vector<std::uint32_t>> admin_uids = std::nullopt;

  friend bool operator==(const ApiListener&, const ApiListener&) = default;
};

/// A field is named as its key, without the unit that its type has; sizes are in bytes. The loader checks the
/// ranges. A default of "" in the file stands for what the field's comment says.
struct Config {
  struct Node {
    // The "hostname" of the API's answers; this machine's name unless set.
    std::string public_hostname = {};
    // Host ports are bound here; 1-16.
    std::vector<IpAddress> public_addresses = {boost::asio::ip::address_v4::any()};

    friend bool operator==(const Node&, const Node&) = default;
  };

  struct Api {
    // 1-16, at different addresses.
    std::vector<ApiListener> listen = {{.address = Endpoint(boost::asio::ip::address_v4::loopback(), 8080)}};
    // Made with a random key if it is missing.
    std::string admin_key_file = "/etc/portway/admin.key";
    // Who is admin without a key, over a Unix socket; 0-64. This and the next four are also the defaults of
    // api.listen's entries.
    std::vector<std::uint32_t> admin_uids = {};
    // PEM file with the whole chain; "": plain HTTP.
    std::string tls_certificate = {};
    // PEM file; set together with tls_certificate.
    std::string tls_private_key = {};
    // PEM file: who signs the certificates of clients; "": clients need none.
    std::string client_ca = {};
    // Whether guests.networks may connect to the daemon's listeners. Also for metrics.listen.
    bool allow_guests = false;
    // Units of one owner; an admin key has ten times as many; 0: no limit.
    std::uint32_t rate_limit_per_second = 200;
    // At once; 1 or more.
    std::uint32_t rate_limit_burst = 1000;
    // Of one source; 0: no limit.
    std::uint32_t wrong_keys_per_minute = 60;
    // Of a request; 1,024-16,777,216.
    std::uint32_t body_max_bytes = 65536;

    friend bool operator==(const Api&, const Api&) = default;
  };

  struct Metrics {
    // A listener without keys for /metrics; none: on the API's listener, with a key.
    std::optional<ListenAddress> listen = std::nullopt;

    friend bool operator==(const Metrics&, const Metrics&) = default;
  };

  struct Ports {
    // Host ports; within 1024-65535.
    PortRange range{20000, 32767};
    // From the end of a forward until another owner may get its port.
    std::chrono::seconds rest{60};

    friend bool operator==(const Ports&, const Ports&) = default;
  };

  struct Guests {
    // A guest's address lies in one of these; empty: no instance can be registered; 0-64.
    std::vector<Cidr> networks = {};
    // Where the network namespaces of guests are mounted that lie in one of their own; absolute; 0-16.
    std::vector<std::string> netns_directories = {"/run/netns"};
    // A Unix socket that a forward leads to lies below one of these, absolute; empty: there are none; 0-16.
    std::vector<std::string> socket_directories = {};

    friend bool operator==(const Guests&, const Guests&) = default;
  };

  // Of one owner, over all of its instances.
  struct Owners {
    // 0: no limit.
    std::uint32_t max_forwards = 0;
    // At a time; 0: no limit.
    std::uint32_t max_connections = 0;
    // Of its tenant keys; 1-48.
    std::uint32_t max_streams = 8;

    friend bool operator==(const Owners&, const Owners&) = default;
  };

  struct Store {
    std::string path = "/var/lib/portway/portway.db";

    friend bool operator==(const Store&, const Store&) = default;
  };

  struct Proxy {
    // Threads; 0: one a core; at most 64.
    std::uint32_t workers = 0;
    IoBackend io_backend = IoBackend::kAuto;
    SourceMode source_mode = SourceMode::kAuto;
    // 0: chosen at start; 2-32,765.
    std::uint32_t source_rule_preference = 0;
    // Not 0, 253 to 255.
    std::uint32_t source_route_table = 5210;
    // Of the packet mark; at most 31.
    std::uint32_t source_mark_bit = 29;
    // Of the whole node; 1-1,000,000.
    std::uint32_t connections_max = 65536;
    // Of connections_max, for one instance (proxy/fair_share.h); 100: no share; 1-100.
    std::uint32_t instance_share_percent = 75;
    // For a guest to answer the SYN; 1 ms to 10 minutes.
    std::chrono::milliseconds connect_timeout{5000};
    // Without a byte moved, once one direction has ended; 0: never; at most a week.
    std::chrono::seconds half_close_timeout{3600};
    // Of silence before the first TCP keepalive probe; 0: none; at most 32,767 s.
    std::chrono::seconds keepalive{300};
    // Without a byte moved in either direction; 0: never, as under DNAT; at most 30 days.
    std::chrono::seconds idle_timeout{0};
    // For connections to end by themselves; 0: none; at most a day.
    std::chrono::seconds drain_timeout{30};
    std::chrono::seconds handover_timeout{30};
    // For a guest to answer what was sent; 0: the kernel's; at most a day.
    std::chrono::seconds user_timeout{900};
    // SO_RCVBUF towards guests, bytes (proxy/buffer_fit.h); 0: the kernel's; at most 64 MiB.
    std::uint32_t guest_receive_buffer = 96 * 1024;
    // The same towards clients.
    std::uint32_t client_receive_buffer = 256 * 1024;
    // TCP_NOTSENT_LOWAT of both sides, bytes; 0: no limit; at most 64 MiB.
    std::uint32_t unsent_max = 64 * 1024;
    // Whether the DSCP of a client's SYN is set on what is sent to the guest.
    bool copy_dscp = true;
    // The longest interval between probes of a guest's closed port (proxy/refusal_gates.h); 0: nobody is
    // refused; at most 10 s.
    std::chrono::milliseconds refused_probe{1000};
    // That a worker looks for events before it sleeps (proxy/busy_poll.h); 0: none; at most 1 ms.
    std::chrono::microseconds busy_poll{50};
    // Of the whole node, each of 256 KiB at most; 1-1,000,000.
    std::uint32_t pipes_max = 16384;

    friend bool operator==(const Proxy&, const Proxy&) = default;
  };

  struct Log {
    LogLevel level = LogLevel::kInfo;
    LogFormat format = LogFormat::kAuto;
    // A line for each change that somebody has asked for; "": no log.
    std::string audit = {};
    // Of log.audit, bytes; then it is rotated; at most 4 GiB.
    std::uint64_t audit_max = std::uint64_t{16} << 20;
    // Of log.audit, with those that are rotated; 1-100.
    std::uint32_t audit_files = 8;
    // A line for each connection that ended; "": no log.
    std::string access = {};
    // Of those, kept in memory; 0-100,000.
    std::uint32_t recent_connections = 1000;

    friend bool operator==(const Log&, const Log&) = default;
  };

  // What the node tells etcd of itself (fleet/publisher.h).
  struct Fleet {
    // URLs of the members of one cluster; empty: the node is in no fleet; 0-16.
    std::vector<std::string> etcd = {};
    // PEM files; "": the system's authorities; no certificate of our own.
    std::string etcd_tls_ca = {};
    std::string etcd_tls_certificate = {};
    std::string etcd_tls_private_key = {};
    // "": none.
    std::string etcd_user = {};
    // Set together with etcd_user.
    std::string etcd_password_file = {};
    // Of all keys; begins and ends with a slash.
    std::string prefix = "/portway/";
    // "": node.public_hostname.
    std::string node_id = {};
    // URL of the node's API; "": made from api.listen and node.public_hostname.
    std::string address = {};
    // 5-60.
    std::chrono::seconds lease_ttl{12};
    // DNS names in lower case, of client certificates; 0-16.
    std::vector<std::string> gateways = {};

    friend bool operator==(const Fleet&, const Fleet&) = default;
  };

  // What only portway-gateway reads.
  struct Gateway {
    // PEM files towards nodes; "": the system's authorities; no certificate of our own.
    std::string node_tls_ca = {};
    std::string node_tls_certificate = {};
    std::string node_tls_private_key = {};

    friend bool operator==(const Gateway&, const Gateway&) = default;
  };

  struct Process {
    // Whether threads that handle what strangers send are confined to what they need.
    bool sandbox = true;

    friend bool operator==(const Process&, const Process&) = default;
  };

  Node node = {};
  Api api = {};
  Metrics metrics = {};
  Ports ports = {};
  Guests guests = {};
  // "default" always exists.
  Profiles profiles = {{"default", Profile{}}};
  Owners owners = {};
  Store store = {};
  Proxy proxy = {};
  Log log = {};
  Fleet fleet = {};
  Gateway gateway = {};
  Process process = {};

  friend bool operator==(const Config&, const Config&) = default;
};

// What api.listen[index] has, with what [api] gives it.

/// Its name in messages: "api.listen" if it is one address alone, else "api.listen[1]".
std::string name_of_listener(const Config::Api& api, std::size_t index);
/// Without a certificate it speaks plain HTTP. A Unix socket never has one.
TlsFiles tls_of_listener(const Config::Api& api, std::size_t index);
bool allows_guests(const Config::Api& api, std::size_t index);
const std::vector<std::uint32_t>& admin_uids_of(const Config::Api& api, std::size_t index);

/// fleet.node_id, or what stands for it.
const std::string& fleet_node_id(const Config& config);
/// fleet.address, or what stands for it: the API's first TCP listener beyond loopback; empty if there is
/// none.
std::string fleet_address(const Config& config);

/// A key set outside the file. The later one wins, so the environment's go before the flags'.
struct Override {
  // Dotted: "api.listen".
  std::string key;
  // As text, without quotes; lists are separated by commas.
  std::string value;
  // What an error names instead of file:line, e.g. "PORTWAY_API_LISTEN".
  std::string origin;
};

/// The overrides in an environment (environ(7)): PORTWAY_<TABLE>_<KEY>, e.g. PORTWAY_API_LISTEN or
/// PORTWAY_PROFILES_DEFAULT_MAX_FORWARDED_PORTS. A name that is nearly a key's is returned too, so that
/// parse_config refuses it; other PORTWAY_ variables are not ours (Kubernetes makes PORTWAY_SERVICE_HOST
/// and the like).
std::vector<Override> environment_overrides(const char* const* environment);

/// "api.listen=127.0.0.1:8080", as the flag --set takes it.
Result<Override> parse_override(std::string_view assignment);

/// The configuration that `text`, a TOML 1.0 document, and the overrides make of the defaults. Errors are
/// kInvalidConfig: the detail names source_name:line or the override's origin, the key and the remedy; the
/// field is the dotted key.
Result<Config> parse_config(std::string_view text, std::string_view source_name,
                            std::span<const Override> overrides = {});

/// parse_config on a file of at most 1 MiB.
Result<Config> load_config(const std::string& path, std::span<const Override> overrides = {});

/// Copies the live keys, those that can change while the daemon runs (SIGHUP), to `running`. Returns the
/// names of the other keys that differ: they need a restart.
std::vector<std::string> take_live_keys(Config& running, const Config& wanted);

/// A key that differs from its default and is in none of `tables` ("api"); empty: there is none.
std::string key_beside(const Config& config, std::span<const std::string_view> tables);

/// What is allowed but probably not meant: sentences for the log and for --check.
std::vector<std::string> config_warnings(const Config& config);

/// Every key with its meaning and its default, as a TOML document: config/portway.toml.
std::string config_reference();

}  // namespace portway
