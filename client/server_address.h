// The server's address as given in --server.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/failure.h"

namespace portway {

enum class Transport : std::uint8_t { kHttp, kHttps, kUnix };

struct ServerAddress {
  Transport transport = Transport::kHttp;
  std::string host;    // a name or an address, without brackets; for kUnix the socket's path
  std::string port;    // digits; empty for kUnix
  std::string prefix;  // of every path, such as "/portway"; empty, or without a trailing slash
  std::string url;     // as given, for messages

  /// Whether requests stay on this machine.
  bool local() const;
};

/// "http://127.0.0.1:8080", "https://api.example/prefix", "unix:/run/portway/api.sock". Fails with
/// kUsage and a remedy.
Outcome<ServerAddress> parse_server_address(std::string_view url);

/// One path segment or query value, with everything but RFC 3986's unreserved characters escaped.
std::string percent_encoded(std::string_view text);

}  // namespace portway
