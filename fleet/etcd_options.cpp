#include "fleet/etcd_options.h"

#include <fmt/format.h>

#include <boost/url/parse.hpp>
#include <boost/url/url_view.hpp>

namespace portway {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kEndpointsMax = 16;
constexpr std::string_view kEndpoints = "endpoints";
constexpr std::size_t kNameMax = 1024;  // of a user or a password
constexpr milliseconds kTimeoutMin{10};
constexpr milliseconds kConnectTimeoutMax{60'000};
constexpr milliseconds kTimeoutMax{600'000};
constexpr std::size_t kAnswerMin = 64U << 10;
constexpr std::size_t kAnswerMax = 256U << 20;

Error wrong_option(const EtcdOptions& options, std::string_view name, std::string_view why) {
  const std::string key = name == kEndpoints ? options.endpoints_key : options.key_prefix + std::string(name);
  return {ErrorCode::kInvalidConfig, fmt::format("{}: {}.", key, why), key};
}

Result<EtcdEndpoint> parse_etcd_endpoint(const EtcdOptions& options, const std::string& url) {
  const auto wrong = [&](std::string_view why) {
    // A password may be in it, so it is not repeated then.
    const std::string shown = url.find('@') == std::string::npos ? in_quotes(url) : "a URL";
    return wrong_option(options, kEndpoints, fmt::format("{} {}", shown, why));
  };
  const auto parsed = boost::urls::parse_uri(url);
  if (!parsed) return wrong("is no URL; write it like https://etcd-1.example:2379");
  if (parsed->scheme() != "http" && parsed->scheme() != "https") {
    return wrong("has an unknown scheme; begin it with http:// or https://");
  }
  if (parsed->has_userinfo()) {
    return wrong(fmt::format("has a user in it; give it by {0}user", options.key_prefix));
  }
  const bool has_path = !parsed->encoded_path().empty() && parsed->encoded_path() != "/";
  if (parsed->host_address().empty() || has_path || parsed->has_query() || parsed->has_fragment()) {
    return wrong("must have a host, optionally a port, and nothing else");
  }
  if (parsed->has_port() && parsed->port_number() == 0) return wrong("has a port that is not 1-65535");
  EtcdEndpoint endpoint;
  endpoint.tls = parsed->scheme() == "https";
  endpoint.host = parsed->host_address();
  endpoint.port = parsed->has_port() ? std::string(parsed->port()) : "2379";
  const bool v6 = endpoint.host.find(':') != std::string::npos;
  endpoint.authority = (v6 ? "[" + endpoint.host + "]" : endpoint.host) + ":" + endpoint.port;
  endpoint.url = (endpoint.tls ? "https://" : "http://") + endpoint.authority;
  return endpoint;
}

Result<void> check_etcd_duration(const EtcdOptions& options, std::string_view name, milliseconds value,
                                 milliseconds max) {
  if (value >= kTimeoutMin && value <= max) return {};
  return wrong_option(
      options, name,
      fmt::format("{} ms is outside {}-{} ms", value.count(), kTimeoutMin.count(), max.count()));
}

Result<void> check_etcd_tls(const EtcdOptions& options, const std::vector<EtcdEndpoint>& endpoints) {
  if (options.tls_certificate.empty() != options.tls_private_key.empty()) {
    return wrong_option(options, options.tls_certificate.empty() ? "tls_certificate" : "tls_private_key",
                        "is missing; a certificate and its private key go together");
  }
  const std::string_view name = !options.tls_ca.empty()            ? "tls_ca"
                                : !options.tls_certificate.empty() ? "tls_certificate"
                                                                   : "";
  if (name.empty()) return {};
  for (const EtcdEndpoint& endpoint : endpoints) {
    if (!endpoint.tls) {
      return wrong_option(
          options, name,
          fmt::format("would not be used for {}; write https://, or remove the key", endpoint.url));
    }
  }
  return {};
}

Result<void> check_etcd_user(const EtcdOptions& options) {
  if (options.user.empty() && !options.password.empty()) {
    return wrong_option(options, "user", "is missing; a password needs one");
  }
  if (!options.user.empty() && options.password.empty()) {
    return wrong_option(options, "password", "is missing; a user needs one");
  }
  if (options.user.size() > kNameMax) return wrong_option(options, "user", "is longer than 1024 bytes");
  if (options.password.size() > kNameMax)
    return wrong_option(options, "password", "is longer than 1024 bytes");
  return {};
}

}  // namespace

Result<std::vector<EtcdEndpoint>> check_etcd_options(const EtcdOptions& options) {
  if (options.endpoints.empty() || options.endpoints.size() > kEndpointsMax) {
    return wrong_option(options, kEndpoints, fmt::format("must have 1-{} URLs", kEndpointsMax));
  }
  std::vector<EtcdEndpoint> endpoints;
  for (const std::string& url : options.endpoints) {
    auto endpoint = parse_etcd_endpoint(options, url);
    if (!endpoint) return endpoint.error();
    endpoints.push_back(std::move(*endpoint));
  }
  for (const Result<void>& checked :
       {check_etcd_tls(options, endpoints), check_etcd_user(options),
        check_etcd_duration(options, "connect_timeout", options.connect_timeout, kConnectTimeoutMax),
        check_etcd_duration(options, "request_timeout", options.request_timeout, kTimeoutMax),
        check_etcd_duration(options, "silence_max", options.silence_max, kTimeoutMax)}) {
    if (!checked) return checked.error();
  }
  if (options.answer_max < kAnswerMin || options.answer_max > kAnswerMax) {
    return wrong_option(options, "answer_max",
                        fmt::format("{} bytes is outside {}-{}", options.answer_max, kAnswerMin, kAnswerMax));
  }
  return endpoints;
}

}  // namespace portway
