#include <fmt/core.h>

#include <algorithm>

#include "config/config_keys.h"

namespace portway {
namespace {

bool is_unix(const ListenAddress& address) {
  return std::holds_alternative<UnixPath>(address);
}

/// Whether both cannot be bound at the same time.
bool collide(const ListenAddress& a, const ListenAddress& b) {
  const auto* one = std::get_if<Endpoint>(&a);
  const auto* other = std::get_if<Endpoint>(&b);
  if (one == nullptr || other == nullptr) return a == b;
  if (one->port() != other->port() || one->port() == 0) return false;
  const auto covers = [](const IpAddress& all, const IpAddress& address) {
    // Unlike 0.0.0.0, [::] has the other family's port as well.
    return all == address || (all.is_unspecified() && (all.is_v6() || address.is_v4()));
  };
  return covers(one->address(), other->address()) || covers(other->address(), one->address());
}

/// A certificate and its private key are set together; `prefix`: "fleet.etcd_".
std::optional<ConfigConflict> find_unpaired(std::string_view prefix, const std::string& certificate,
                                            const std::string& private_key) {
  if (certificate.empty() == private_key.empty()) return std::nullopt;
  const std::string certificate_name = fmt::format("{}tls_certificate", prefix);
  const std::string key_name = fmt::format("{}tls_private_key", prefix);
  if (private_key.empty())
    return ConfigConflict{certificate_name, fmt::format("needs its private key; set {} too", key_name)};
  return ConfigConflict{key_name, fmt::format("needs its certificate; set {} too", certificate_name)};
}

/// What is wrong with the keys that one listener has of its own.
std::optional<ConfigConflict> find_own_tls_conflict(const Config::Api& api, std::size_t index) {
  const ApiListener& listener = api.listen[index];
  const std::string name = name_of_listener(api, index);
  const auto wrong = [&](std::string_view key, std::string problem) {
    return ConfigConflict{fmt::format("{}.{}", name, key), std::move(problem)};
  };
  const std::string& certificate = listener.tls_certificate.value_or("");
  const std::string& private_key = listener.tls_private_key.value_or("");
  const std::string& client_ca = listener.client_ca.value_or("");
  if (is_unix(listener.address)) {
    constexpr std::string_view kNeedsNone = "a Unix socket never leaves this machine; leave it out";
    if (!certificate.empty()) return wrong("tls_certificate", std::string(kNeedsNone));
    if (!private_key.empty()) return wrong("tls_private_key", std::string(kNeedsNone));
    if (!client_ca.empty()) return wrong("client_ca", std::string(kNeedsNone));
    return std::nullopt;
  }
  if (!listener.admin_uids.value_or(std::vector<std::uint32_t>{}).empty()) {
    return wrong("admin_uids", "who is calling is known on a Unix socket only; leave it out");
  }
  if (auto unpaired = find_unpaired(name + ".", certificate, private_key)) return unpaired;
  if (!client_ca.empty() && tls_of_listener(api, index).certificate.empty()) {
    return wrong("client_ca",
                 fmt::format("needs TLS; set {0}.tls_certificate and {0}.tls_private_key too", name));
  }
  return std::nullopt;
}

std::optional<ConfigConflict> find_listener_conflict(const Config& config) {
  const Config::Api& api = config.api;
  for (std::size_t i = 0; i < api.listen.size(); ++i) {
    const ListenAddress& address = api.listen[i].address;
    for (std::size_t k = 0; k < i; ++k) {
      if (!collide(address, api.listen[k].address)) continue;
      return ConfigConflict{
          name_of_listener(api, i) + ".address",
          fmt::format("{} is taken by {}, {}; choose another, or leave one out", to_string(address),
                      name_of_listener(api, k), to_string(api.listen[k].address))};
    }
    if (config.metrics.listen && collide(*config.metrics.listen, address)) {
      return ConfigConflict{
          "metrics.listen",
          fmt::format("{} is where the API listens; give it another port, or leave it empty "
                      "to have /metrics on the API's listener",
                      to_string(address))};
    }
    if (auto conflict = find_own_tls_conflict(api, i)) return conflict;
  }
  return std::nullopt;
}

std::optional<ConfigConflict> find_tls_conflict(const Config::Api& api) {
  if (auto unpaired = find_unpaired("api.", api.tls_certificate, api.tls_private_key)) return unpaired;
  bool has_tls = false;
  for (std::size_t i = 0; i < api.listen.size(); ++i) has_tls |= !tls_of_listener(api, i).certificate.empty();
  if (!has_tls && api.tls_certificate.empty() && !api.client_ca.empty()) {
    return ConfigConflict{"api.client_ca", "needs TLS; set api.tls_certificate and api.tls_private_key too"};
  }
  const bool all_unix = std::ranges::all_of(api.listen, is_unix, &ApiListener::address);
  if (!api.tls_certificate.empty() && all_unix) {
    return ConfigConflict{"api.tls_certificate",
                          "api.listen is a Unix socket, which never leaves this machine; leave the "
                          "certificate out, or listen on ip:port"};
  }
  return std::nullopt;
}

std::optional<ConfigConflict> find_fleet_conflict(const Config& config) {
  const Config::Fleet& fleet = config.fleet;
  if (auto unpaired = find_unpaired("fleet.etcd_", fleet.etcd_tls_certificate, fleet.etcd_tls_private_key))
    return unpaired;
  const Config::Gateway& gateway = config.gateway;
  if (auto unpaired =
          find_unpaired("gateway.node_", gateway.node_tls_certificate, gateway.node_tls_private_key))
    return unpaired;
  if (fleet.etcd_user.empty() != fleet.etcd_password_file.empty()) {
    return fleet.etcd_user.empty()
               ? ConfigConflict{"fleet.etcd_password_file", "needs a user; set fleet.etcd_user too"}
               : ConfigConflict{"fleet.etcd_user", "needs a password; set fleet.etcd_password_file too"};
  }
  constexpr std::size_t kIdMaxBytes = 64;
  if (!fleet.etcd.empty() && fleet_node_id(config).size() > kIdMaxBytes) {
    return ConfigConflict{"fleet.node_id",
                          "is node.public_hostname, which is longer than 64 bytes; give a shorter id"};
  }
  return std::nullopt;
}

void warn_of_gateways(const Config& config, std::vector<std::string>& warnings) {
  if (config.fleet.gateways.empty()) return;
  for (std::size_t i = 0; i < config.api.listen.size(); ++i) {
    if (!tls_of_listener(config.api, i).client_ca.empty()) return;
  }
  warnings.emplace_back(
      "fleet.gateways has no effect: no listener verifies clients' certificates; give one a client_ca, or "
      "leave the list empty.");
}

void warn_of_fleet(const Config& config, std::vector<std::string>& warnings) {
  if (config.fleet.etcd.empty()) return;
  if (fleet_address(config).empty()) {
    warnings.emplace_back(
        "fleet.address is empty, and api.listen has no port beyond loopback: gateways cannot reach the "
        "node.");
  }
  if (std::ranges::any_of(config.fleet.etcd, [](const auto& url) { return url.starts_with("http://"); })) {
    warnings.emplace_back(
        "fleet.etcd has http:// in it: whoever is on the way can change what the fleet is told; use "
        "https://.");
  }
}

/// TCP listeners of the API.
void warn_of_listeners(const Config& config, std::vector<std::string>& warnings) {
  const Config::Api& api = config.api;
  for (std::size_t i = 0; i < api.listen.size(); ++i) {
    const auto* endpoint = std::get_if<Endpoint>(&api.listen[i].address);
    if (endpoint == nullptr || endpoint->address().is_loopback() ||
        !tls_of_listener(api, i).certificate.empty()) {
      continue;
    }
    warnings.push_back(
        fmt::format("{} {} is not on loopback: keys cross the network in clear text; set {}.tls_certificate.",
                    name_of_listener(api, i), to_string(*endpoint),
                    api.listen.size() > 1 ? name_of_listener(api, i) : "api"));
  }
  if (!api.admin_uids.empty() && std::ranges::none_of(api.listen, is_unix, &ApiListener::address)) {
    warnings.emplace_back(
        "api.admin_uids has no effect: who is calling is known on a Unix socket only; set api.listen to "
        "unix:/PATH, or leave the list empty.");
  }
}

}  // namespace

std::string name_of_listener(const Config::Api& api, std::size_t index) {
  const bool is_alone =
      api.listen.size() == 1 && api.listen[0] == ApiListener{.address = api.listen[0].address};
  return is_alone ? "api.listen" : fmt::format("api.listen[{}]", index);
}

TlsFiles tls_of_listener(const Config::Api& api, std::size_t index) {
  const ApiListener& listener = api.listen[index];
  TlsFiles files{.certificate = listener.tls_certificate.value_or(api.tls_certificate),
                 .private_key = listener.tls_private_key.value_or(api.tls_private_key),
                 .client_ca = listener.client_ca.value_or(api.client_ca)};
  if (is_unix(listener.address) || files.certificate.empty()) return {};
  if (listener.tls_certificate) files.key_prefix = name_of_listener(api, index) + ".";
  return files;
}

bool allows_guests(const Config::Api& api, std::size_t index) {
  return api.listen[index].allow_guests.value_or(api.allow_guests);
}

const std::vector<std::uint32_t>& admin_uids_of(const Config::Api& api, std::size_t index) {
  const auto& own = api.listen[index].admin_uids;
  return own ? *own : api.admin_uids;
}

const std::string& fleet_node_id(const Config& config) {
  return config.fleet.node_id.empty() ? config.node.public_hostname : config.fleet.node_id;
}

std::string fleet_address(const Config& config) {
  if (!config.fleet.address.empty()) return config.fleet.address;
  for (std::size_t i = 0; i < config.api.listen.size(); ++i) {
    const auto* endpoint = std::get_if<Endpoint>(&config.api.listen[i].address);
    if (endpoint == nullptr || endpoint->address().is_loopback() || endpoint->port() == 0) continue;
    const bool has_tls = !tls_of_listener(config.api, i).certificate.empty();
    return fmt::format("{}://{}:{}", has_tls ? "https" : "http", config.node.public_hostname,
                       endpoint->port());
  }
  return {};
}

std::optional<ConfigConflict> find_conflict(const Config& config) {
  const auto& addresses = config.node.public_addresses;
  for (const IpAddress& any : addresses) {
    const bool covers =
        any.is_unspecified() && std::any_of(addresses.begin(), addresses.end(), [&](const auto& other) {
          return other != any && other.is_v4() == any.is_v4();
        });
    if (!covers) continue;
    return ConfigConflict{"node.public_addresses",
                          fmt::format("{} covers the other addresses of its kind, which could not be bound "
                                      "beside it; leave it or them out",
                                      any.to_string())};
  }
  if (auto conflict = find_tls_conflict(config.api)) return conflict;
  if (auto conflict = find_listener_conflict(config)) return conflict;
  return find_fleet_conflict(config);
}

std::vector<std::string> config_warnings(const Config& config) {
  std::vector<std::string> warnings;
  if (config.guests.networks.empty()) {
    warnings.emplace_back(
        "guests.networks is empty: no instance can be registered. List the networks the guests live in.");
  }
  warn_of_listeners(config, warnings);
  warn_of_fleet(config, warnings);
  warn_of_gateways(config, warnings);
  const auto warn_of_port = [&](std::string_view key, const ListenAddress& listen) {
    const auto* tcp = std::get_if<Endpoint>(&listen);
    if (tcp == nullptr || !config.ports.range.contains(tcp->port())) return;
    warnings.push_back(
        fmt::format("{} {} lies in ports.range {}: a forward may have the port when the daemon starts.", key,
                    to_string(listen), to_string(config.ports.range)));
  };
  for (std::size_t i = 0; i < config.api.listen.size(); ++i) {
    warn_of_port(name_of_listener(config.api, i), config.api.listen[i].address);
  }
  if (config.metrics.listen) warn_of_port("metrics.listen", *config.metrics.listen);
  return warnings;
}

}  // namespace portway
