// What the operator decided: one struct, every key, its unit and its default.
//
// Loaded once at start by main, from a TOML file, environment variables and flags; constant afterwards and
// readable by any thread. The keys are strict: what is not known here is refused, with the place and a
// remedy. config/portway.toml is the reference for operators; it is printed from the same table of keys that
// the loader uses.
#pragma once

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

namespace portway {

enum class IoBackend : std::uint8_t {
  kAuto,  // io_uring where the kernel allows it, else epoll
  kUring,
  kEpoll,
};
std::string_view to_string(IoBackend backend);

/// A field is named as its key; ranges are checked by the loader. A default of "" in the file stands for what
/// the field's comment says.
struct Config {
  struct Node {
    std::string public_hostname;  // the "hostname" of the API's answers; this machine's name unless set
    std::vector<IpAddress> public_addresses = {
        boost::asio::ip::address_v4::any()};  // host ports are bound here; 1-16

    friend bool operator==(const Node&, const Node&) = default;
  };

  struct Api {
    ListenAddress listen = Endpoint(boost::asio::ip::address_v4::loopback(), 8080);  // port 0: any free one
    std::string admin_key_file = "/etc/portway/admin.key";  // made with a random key when missing
    std::vector<std::uint32_t> admin_uids;  // who is admin without a key, over a Unix socket; 0-64
    std::string tls_certificate;            // PEM file, the chain included; "": plain HTTP
    std::string tls_private_key;            // PEM file; with tls_certificate, and only then
    std::string client_ca;                  // PEM file: who signs the certificates of clients; "": none asked
    bool allow_guests = false;              // whether guests.networks may connect to the daemon's listeners
    std::uint32_t rate_limit_per_second = 50;  // requests of one key; 0: no limit
    std::uint32_t body_max_bytes = 65536;      // of a request; 1,024-16,777,216

    friend bool operator==(const Api&, const Api&) = default;
  };

  struct Metrics {
    std::optional<ListenAddress>
        listen;  // a listener without keys for /metrics; none: on the API's listener, with a key

    friend bool operator==(const Metrics&, const Metrics&) = default;
  };

  struct Ports {
    PortRange range{20000, 32767};  // host ports; within 1024-65535

    friend bool operator==(const Ports&, const Ports&) = default;
  };

  struct Guests {
    std::vector<Cidr>
        networks;  // a guest's address lies in one of these; empty: no instance can be registered; 0-64

    friend bool operator==(const Guests&, const Guests&) = default;
  };

  struct Store {
    std::string path = "/var/lib/portway/portway.db";

    friend bool operator==(const Store&, const Store&) = default;
  };

  struct Proxy {
    std::uint32_t workers = 0;  // threads; 0: one a core; at most 64
    IoBackend io_backend = IoBackend::kAuto;
    SourceMode source_mode = SourceMode::kAuto;
    std::uint32_t source_rule_preference = 0;   // 0: chosen at start; 2-32,765
    std::uint32_t source_route_table = 5210;    // not 0, 253 to 255
    std::uint32_t source_mark_bit = 29;         // of the packet mark; at most 31
    std::uint32_t connections_max = 65536;      // of the whole node; 1-1,000,000
    std::uint32_t instance_share_percent = 75;  // of them, for one instance; 100: no share; 1-100
    std::uint32_t connect_timeout_ms = 5000;    // for a guest to answer the SYN; 1-600,000
    std::uint32_t half_close_timeout_s = 3600;  // of silence after one side's FIN; 0: never; at most 604,800
    std::uint32_t keepalive_s = 300;     // of silence before TCP keepalive asks; 0: off; at most 32,767
    std::uint32_t idle_timeout_s = 0;    // of silence both ways; 0: never, as under DNAT; at most 2,592,000
    std::uint32_t drain_timeout_s = 30;  // for connections to end by themselves; 0: none; at most 86,400
    std::uint32_t user_timeout_s =
        900;  // for a guest to answer what was sent; 0: the kernel's; at most 86,400
    std::uint32_t guest_receive_buffer_kib = 96;  // SO_RCVBUF towards guests; 0: the kernel's; at most 65,536
    std::uint32_t client_receive_buffer_kib = 256;  // the same towards clients
    std::uint32_t unsent_max_kib = 64;              // TCP_NOTSENT_LOWAT; 0: no limit; at most 65,536
    bool copy_dscp = true;                          // of a client's SYN to what is sent to the guest
    std::uint32_t refused_probe_ms =
        1000;  // between probes of a guest's closed port, at most; 0: not probed; at most 10,000
    std::uint32_t busy_poll_us =
        50;  // that a worker looks for events before it sleeps; 0: none; at most 1,000
    std::uint32_t pipes_max = 16384;  // of the whole node, each of 256 KiB at most; 1-1,000,000

    friend bool operator==(const Proxy&, const Proxy&) = default;
  };

  struct Log {
    std::string access;                       // a line for each connection that ended; empty: none
    std::uint32_t recent_connections = 1000;  // of those, kept in memory; 0-100,000

    friend bool operator==(const Log&, const Log&) = default;
  };

  Node node;
  Api api;
  Metrics metrics;
  Ports ports;
  Guests guests;
  std::map<std::string, Profile, std::less<>> profiles = {{"default", Profile{}}};  // "default" always exists
  Store store;
  Proxy proxy;
  Log log;

  friend bool operator==(const Config&, const Config&) = default;
};

/// A key set outside the file. The later one wins, so the environment's go before the flags'.
struct Override {
  std::string key;     // dotted, "api.listen"
  std::string value;   // as text, without quotes; lists are separated by commas
  std::string origin;  // what an error names instead of file:line, e.g. "PORTWAY_API_LISTEN"
};

/// The overrides in an environment (environ(7)): PORTWAY_<TABLE>_<KEY>, e.g. PORTWAY_API_LISTEN or
/// PORTWAY_PROFILES_DEFAULT_MAX_FORWARDED_PORTS. A name that is nearly a key's is passed on too, for
/// parse_config to refuse it; other PORTWAY_ variables are not ours (Kubernetes makes PORTWAY_SERVICE_HOST
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

/// Copies the keys that can change while the daemon runs (SIGHUP) to `running`; returns the names of those
/// that cannot and differ.
std::vector<std::string> take_live_keys(Config& running, const Config& wanted);

/// What is allowed but probably not meant: sentences for the log and for --check.
std::vector<std::string> config_warnings(const Config& config);

/// Every key with its meaning and its default, as a TOML document: config/portway.toml.
std::string config_reference();

}  // namespace portway
