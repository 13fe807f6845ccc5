#include "fleet/http_tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>

#include "base/endpoint.h"
#include "base/tls_files.h"

namespace portway {

Result<void> use_http_tls(SSL_CTX* context, const HttpTls& options) {
  ::ERR_clear_error();
  ::SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  if (options.ca.empty()) {
    ::SSL_CTX_set_default_verify_paths(context);
  } else if (::SSL_CTX_load_verify_file(context, options.ca.c_str()) != 1) {
    const std::string key = options.key_prefix + "tls_ca";
    return Error{ErrorCode::kInvalidConfig,
                 fmt::format("{}: {}: {}; name a readable PEM file with the authorities' certificates", key,
                             options.ca, openssl_reason()),
                 key};
  }
  if (options.certificate.empty() != options.private_key.empty()) {
    const std::string key =
        options.key_prefix + (options.certificate.empty() ? "tls_certificate" : "tls_private_key");
    return Error{ErrorCode::kInvalidConfig,
                 key + ": is missing; a certificate and its private key go together", key};
  }
  if (options.certificate.empty()) return {};
  const auto used = use_tls_files(context, {.certificate = options.certificate,
                                            .private_key = options.private_key,
                                            .key_prefix = options.key_prefix});
  if (!used) return used.error();
  return {};
}

Result<void> check_http_tls(const HttpTls& options) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(::SSL_CTX_new(::TLS_client_method()),
                                                             ::SSL_CTX_free);
  if (context != nullptr) return use_http_tls(context.get(), options);
  return Error{ErrorCode::kResourceExhausted, "OpenSSL cannot start: " + openssl_reason() + "."};
}

bool expect_host(SSL* connection, const std::string& host) {
  X509_VERIFY_PARAM* rules = ::SSL_get0_param(connection);
  ::X509_VERIFY_PARAM_set_hostflags(rules, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  if (parse_address(host)) return ::X509_VERIFY_PARAM_set1_ip_asc(rules, host.c_str()) == 1;
  // Server name indication is for names only (RFC 6066, 3).
  return ::SSL_set_tlsext_host_name(connection, host.c_str()) == 1 &&
         ::X509_VERIFY_PARAM_set1_host(rules, host.c_str(), 0) == 1;
}

bool is_about_certificate(unsigned long openssl_error) {
  constexpr int kCertificateRequired = 116;
  const int alert = ERR_GET_REASON(openssl_error) - SSL_AD_REASON_OFFSET;
  return (alert >= SSL_AD_BAD_CERTIFICATE && alert <= SSL_AD_CERTIFICATE_UNKNOWN) ||
         alert == SSL_AD_UNKNOWN_CA || alert == SSL_AD_ACCESS_DENIED || alert == kCertificateRequired;
}

}  // namespace portway
