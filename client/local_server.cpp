#include "client/local_server.h"

#include <utility>
#include <variant>

#include "base/endpoint.h"

namespace portway {

std::string local_url(const ListenAddress& listen, bool has_tls) {
  if (std::holds_alternative<UnixPath>(listen)) return to_string(listen);
  const auto& endpoint = std::get<Endpoint>(listen);
  if (endpoint.port() == 0) return "";
  IpAddress address = endpoint.address();
  if (address.is_unspecified()) {
    address = address.is_v4() ? IpAddress(boost::asio::ip::address_v4::loopback())
                              : IpAddress(boost::asio::ip::address_v6::loopback());
  }
  return (has_tls ? "https://" : "http://") + to_string(Endpoint(address, endpoint.port()));
}

std::vector<LocalServer> local_servers(const Config::Api& api) {
  std::vector<LocalServer> servers;
  for (std::size_t i = 0; i < api.listen.size(); ++i) {
    const ListenAddress& listen = api.listen[i].address;
    const bool is_unix = std::holds_alternative<UnixPath>(listen);
    const auto tls = tls_of_listener(api, i);
    const std::string certificate = is_unix ? "" : tls.certificate;
    std::string url = local_url(listen, !certificate.empty());
    if (url.empty()) continue;
    servers.push_back({.server = {std::move(url), certificate},
                       .is_unix = is_unix,
                       .wants_certificate = !is_unix && !tls.client_ca.empty()});
  }
  return servers;
}

}  // namespace portway
