#include <fmt/core.h>

#include <algorithm>

#include "config/config_keys.h"

namespace portway {
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
                          fmt::format("{} covers the other addresses of its kind, which could not be bound "
                                      "beside it; leave it or them out",
                                      any.to_string())};
  }
  const auto* endpoint = std::get_if<Endpoint>(&config.api.listen);
  if (config.metrics.listen == config.api.listen && (endpoint == nullptr || endpoint->port() != 0)) {
    return ConfigConflict{"metrics.listen",
                          fmt::format("{} is where the API listens; give it another port, or leave it empty "
                                      "to have /metrics on the API's listener",
                                      to_string(config.api.listen))};
  }
  return find_tls_conflict(config.api);
}

std::vector<std::string> config_warnings(const Config& config) {
  std::vector<std::string> warnings;
  if (config.guests.networks.empty()) {
    warnings.emplace_back(
        "guests.networks is empty: no instance can be registered. List the networks the guests live in.");
  }
  const auto* endpoint = std::get_if<Endpoint>(&config.api.listen);
  if (endpoint != nullptr && !endpoint->address().is_loopback() && config.api.tls_certificate.empty()) {
    warnings.push_back("api.listen " + to_string(config.api.listen) +
                       " is not on loopback: keys cross the network in clear text; set api.tls_certificate.");
  }
  if (endpoint != nullptr && !config.api.admin_uids.empty()) {
    warnings.emplace_back(
        "api.admin_uids has no effect: who is calling is known on a Unix socket only; set api.listen to "
        "unix:/PATH, or leave the list empty.");
  }
  const auto warn_of_port = [&](std::string_view key, const ListenAddress& listen) {
    const auto* tcp = std::get_if<Endpoint>(&listen);
    if (tcp == nullptr || !config.ports.range.contains(tcp->port())) return;
    warnings.push_back(
        fmt::format("{} {} lies in ports.range {}: a forward may have the port when the daemon starts.", key,
                    to_string(listen), to_string(config.ports.range)));
  };
  warn_of_port("api.listen", config.api.listen);
  if (config.metrics.listen) warn_of_port("metrics.listen", *config.metrics.listen);
  return warnings;
}

}  // namespace portway
