#include "base/tls_files.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cstring>
#include <memory>
#include <string_view>

namespace portway {
namespace {

Error unusable(const TlsFiles& files, std::string_view name, const std::string& file, std::string_view why) {
  const std::string key = fmt::format("{}{}", files.key_prefix, name);
  return {ErrorCode::kInvalidConfig, fmt::format("{}: {}: {}", key, file, why), key};
}

Result<std::time_t> valid_until(const X509* certificate, const TlsFiles& files) {
  const auto wrong = [&](std::string_view why) {
    return unusable(files, "tls_certificate", files.certificate, why);
  };
  if (::X509_cmp_current_time(::X509_get0_notAfter(certificate)) < 0) {
    return wrong("it has expired; renew it");
  }
  if (::X509_cmp_current_time(::X509_get0_notBefore(certificate)) > 0) {
    return wrong("its time has not come yet; set this machine's clock, or take another certificate");
  }
  std::tm time{};
  if (::ASN1_TIME_to_tm(::X509_get0_notAfter(certificate), &time) != 1) {
    return wrong("its expiry is no date; renew it");
  }
  return ::timegm(&time);
}

Result<void> use_client_ca(SSL_CTX* context, const TlsFiles& files) {
  const std::string& file = files.client_ca;
  // The names in it tell clients which of their certificates to send.
  STACK_OF(X509_NAME)* names = ::SSL_load_client_CA_file(file.c_str());
  if (names == nullptr || ::SSL_CTX_load_verify_file(context, file.c_str()) != 1) {
    ::sk_X509_NAME_pop_free(names, ::X509_NAME_free);
    return unusable(files, "client_ca", file,
                    openssl_reason() + "; name a readable PEM file with the authorities' certificates");
  }
  ::SSL_CTX_set_client_CA_list(context, names);  // owns them now
  ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return {};
}

}  // namespace

std::string openssl_reason() {
  const unsigned long error = ::ERR_peek_error();
  const char* reason =
      ERR_SYSTEM_ERROR(error) ? std::strerror(ERR_GET_REASON(error)) : ::ERR_reason_error_string(error);
  return reason != nullptr ? reason : "unknown reason";
}

Result<std::time_t> use_tls_files(SSL_CTX* context, const TlsFiles& files) {
  ::ERR_clear_error();
  // A key with a passphrase is an error: nobody is there to enter it.
  ::SSL_CTX_set_default_passwd_cb(context, [](char*, int, int, void*) { return -1; });
  if (::SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1) {
    return unusable(files, "tls_certificate", files.certificate,
                    openssl_reason() + "; name a readable PEM file with the certificate and its chain");
  }
  const auto expiry = valid_until(::SSL_CTX_get0_certificate(context), files);
  if (!expiry) return expiry.error();
  if (::SSL_CTX_use_PrivateKey_file(context, files.private_key.c_str(), SSL_FILETYPE_PEM) != 1) {
    const unsigned long error = ::ERR_peek_last_error();
    const bool other =
        ERR_GET_LIB(error) == ERR_LIB_X509 && (ERR_GET_REASON(error) == X509_R_KEY_VALUES_MISMATCH ||
                                               ERR_GET_REASON(error) == X509_R_KEY_TYPE_MISMATCH);
    return unusable(files, "tls_private_key", files.private_key,
                    other ? "it is not the key of " + files.certificate + "; name the one it was made with"
                          : openssl_reason() + "; name a readable PEM file with a key without a passphrase");
  }
  if (!files.client_ca.empty()) {
    if (auto used = use_client_ca(context, files); !used) return used.error();
  }
  return *expiry;
}

Result<void> check_tls_files(const TlsFiles& files) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(::SSL_CTX_new(::TLS_server_method()),
                                                             ::SSL_CTX_free);
  if (context == nullptr) {
    return Error{ErrorCode::kResourceExhausted, "OpenSSL cannot start: " + openssl_reason() + "."};
  }
  if (const auto used = use_tls_files(context.get(), files); !used) return used.error();
  return {};
}

}  // namespace portway
