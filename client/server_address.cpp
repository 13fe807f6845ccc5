#include "client/server_address.h"

#include <boost/url/encode.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/rfc/unreserved_chars.hpp>
#include <boost/url/url_view.hpp>

#include "base/endpoint.h"

namespace portway {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";

Failure not_a_server(std::string_view url, std::string_view why) {
  return {Exit::kUsage, in_quotes(url) + " is not a server address: " + std::string(why) + ".",
          "Give http://HOST:PORT, https://HOST[:PORT] or unix:/PATH in --server or PORTWAY_SERVER."};
}

}  // namespace

bool ServerAddress::local() const {
  if (transport == Transport::kUnix || host == "localhost") return true;
  const auto address = parse_address(host);
  return address && address->is_loopback();
}

Outcome<ServerAddress> parse_server_address(std::string_view url) {
  ServerAddress server;
  server.url = url;
  if (url.starts_with(kUnixPrefix)) {
    server.transport = Transport::kUnix;
    server.host = url.substr(kUnixPrefix.size());
    // sockaddr_un has room for 107 bytes and a zero.
    if (!server.host.starts_with('/') || server.host.size() > 107) {
      return not_a_server(url, "a socket's path must start with / and have at most 107 bytes");
    }
    return server;
  }
  const auto parsed = boost::urls::parse_uri(url);
  if (!parsed) return not_a_server(url, "it is not a URL");
  if (parsed->scheme() != "http" && parsed->scheme() != "https") {
    return not_a_server(url, "its scheme is unknown");
  }
  if (parsed->has_userinfo()) return not_a_server(url, "it must not contain a key");
  if (parsed->has_query() || parsed->has_fragment() || parsed->host_address().empty()) {
    return not_a_server(url, "it must have a host, optionally a port and a path, and nothing else");
  }
  if (parsed->has_port() && parsed->port_number() == 0) return not_a_server(url, "its port is not a number");
  const bool https = parsed->scheme() == "https";
  server.transport = https ? Transport::kHttps : Transport::kHttp;
  server.host = parsed->host_address();
  server.port = parsed->has_port() ? std::string(parsed->port()) : (https ? "443" : "80");
  server.prefix = parsed->encoded_path();
  while (server.prefix.ends_with('/')) server.prefix.pop_back();
  return server;
}

std::string percent_encoded(std::string_view text) {
  return boost::urls::encode(text, boost::urls::unreserved_chars);
}

}  // namespace portway
