#include "fleet/http_values.h"

#include <algorithm>
#include <boost/url/grammar/ci_string.hpp>
#include <boost/url/parse.hpp>
#include <boost/url/url_view.hpp>
#include <stdexcept>

namespace portway {

void throw_exception_from_error(const HttpError& error, const boost::source_location& where) {
  throw std::logic_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                         ": unexpected " + error.detail);
}

Result<HttpEndpoint> parse_http_endpoint(const std::string& url, const HttpUrlRules& rules) {
  const auto wrong = [](std::string why) { return Error{ErrorCode::kInvalidConfig, std::move(why)}; };
  const auto parsed = boost::urls::parse_uri(url);
  if (!parsed) return wrong("is no URL; write it like " + std::string(rules.example));
  if (parsed->scheme() != "http" && parsed->scheme() != "https") {
    return wrong("has an unknown scheme; begin it with http:// or https://");
  }
  if (parsed->has_userinfo()) return wrong("has a user in it; " + rules.user_remedy);
  const bool has_path = !parsed->encoded_path().empty() && parsed->encoded_path() != "/";
  if (parsed->host_address().empty() || has_path || parsed->has_query() || parsed->has_fragment()) {
    return wrong("must have a host, optionally a port, and nothing else");
  }
  if (parsed->has_port() && parsed->port_number() == 0) return wrong("has a port that is not 1-65535");
  HttpEndpoint endpoint;
  endpoint.tls = parsed->scheme() == "https";
  endpoint.host = parsed->host_address();
  endpoint.port = !rules.default_port.empty() ? rules.default_port : endpoint.tls ? "443" : "80";
  if (parsed->has_port()) endpoint.port = std::string(parsed->port());
  const bool v6 = endpoint.host.find(':') != std::string::npos;
  endpoint.authority = (v6 ? "[" + endpoint.host + "]" : endpoint.host) + ":" + endpoint.port;
  endpoint.url = (endpoint.tls ? "https://" : "http://") + endpoint.authority;
  return endpoint;
}

std::string_view field_of(const HttpFields& fields, std::string_view name) {
  const auto found = std::ranges::find_if(
      fields, [&](const auto& field) { return boost::urls::grammar::ci_is_equal(field.first, name); });
  return found == fields.end() ? std::string_view() : std::string_view(found->second);
}

}  // namespace portway
