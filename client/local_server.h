// The API of this node's daemon, by its configuration.
#pragma once

#include <vector>

#include "client/request.h"
#include "config/config.h"

namespace portway {

/// How one of the API's listeners is reached from this node. Its certificate is the listener's own, so that
/// no name needs to fit.
struct LocalServer {
  KnownServer server;
  bool is_unix = false;
  bool wants_certificate = false;  // of its clients
};
/// In the configuration's order, without those whose address cannot be known (port 0).
std::vector<LocalServer> local_servers(const Config::Api& api);
/// The address in a URL for this node; empty for port 0.
std::string local_url(const ListenAddress& listen, bool has_tls);

}  // namespace portway
