#include "fleet/etcd_options.h"

#include <fmt/format.h>

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

Result<HttpEndpoint> parse_etcd_endpoint(const EtcdOptions& options, const std::string& url) {
  auto endpoint = parse_http_endpoint(url, {.example = "https://etcd-1.example:2379",
                                            .default_port = "2379",
                                            .user_remedy = "give it by " + options.key_prefix + "user"});
  if (endpoint) return endpoint;
  // A password may be in it, so it is not repeated then.
  const std::string shown = url.find('@') == std::string::npos ? in_quotes(url) : "a URL";
  return wrong_option(options, kEndpoints, fmt::format("{} {}", shown, endpoint.error().detail));
}

Result<void> check_etcd_duration(const EtcdOptions& options, std::string_view name, milliseconds value,
                                 milliseconds max) {
  if (value >= kTimeoutMin && value <= max) return {};
  return wrong_option(
      options, name,
      fmt::format("{} ms is outside {}-{} ms", value.count(), kTimeoutMin.count(), max.count()));
}

Result<void> check_etcd_tls(const EtcdOptions& options, const std::vector<HttpEndpoint>& endpoints) {
  if (options.tls_certificate.empty() != options.tls_private_key.empty()) {
    return wrong_option(options, options.tls_certificate.empty() ? "tls_certificate" : "tls_private_key",
                        "is missing; a certificate and its private key go together");
  }
  const std::string_view name = !options.tls_ca.empty()            ? "tls_ca"
                                : !options.tls_certificate.empty() ? "tls_certificate"
                                                                   : "";
  if (name.empty()) return {};
  for (const HttpEndpoint& endpoint : endpoints) {
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

Result<std::vector<HttpEndpoint>> check_etcd_options(const EtcdOptions& options) {
  if (options.endpoints.empty() || options.endpoints.size() > kEndpointsMax) {
    return wrong_option(options, kEndpoints, fmt::format("must have 1-{} URLs", kEndpointsMax));
  }
  std::vector<HttpEndpoint> endpoints;
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

HttpTls tls_of(const EtcdOptions& options) {
  return {.ca = options.tls_ca,
          .certificate = options.tls_certificate,
          .private_key = options.tls_private_key,
          .key_prefix = options.key_prefix,
          .untrusted_remedy = fmt::format("see {}tls_ca, the host in {}, and etcd's --cert-file",
                                          options.key_prefix, options.endpoints_key),
          .refused_remedy = "give it one that etcd's --trusted-ca-file has signed"};
}

}  // namespace portway
