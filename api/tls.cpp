#include "api/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <cstring>
#include <limits>
#include <new>
#include <string_view>

namespace portway {
namespace {

// Forward secrecy and authenticated encryption only (RFC 9325, 4.2); TLS 1.3 has nothing else.
constexpr const char* kCiphersOfTls12 = "ECDHE+AESGCM:ECDHE+CHACHA20";
constexpr const char* kGroups = "X25519:P-256:P-384";

Error unusable(std::string_view key, const std::string& file, std::string_view why) {
  return {ErrorCode::kInvalidConfig, fmt::format("{}: {}: {}", key, file, why), std::string(key)};
}

/// The first of OpenSSL's errors, which the others follow from, in its words.
std::string openssl_reason() {
  const unsigned long error = ::ERR_peek_error();
  const char* reason =
      ERR_SYSTEM_ERROR(error) ? std::strerror(ERR_GET_REASON(error)) : ::ERR_reason_error_string(error);
  return reason != nullptr ? reason : "unknown reason";
}

/// Picks http/1.1; a client that offers other protocols only is refused (RFC 7301, 3.2).
int select_protocol(SSL*, const unsigned char** out, unsigned char* out_length, const unsigned char* in,
                    unsigned in_length, void*) {
  constexpr std::string_view kHttp11 = "http/1.1";
  const std::string_view offered(reinterpret_cast<const char*>(in), in_length);
  for (std::size_t at = 0; at < offered.size();) {
    const std::size_t length = static_cast<unsigned char>(offered[at]);
    if (offered.substr(at + 1, length) == kHttp11) {
      *out = in + at + 1;
      *out_length = static_cast<unsigned char>(length);
      return SSL_TLSEXT_ERR_OK;
    }
    at += 1 + length;
  }
  return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/// False for want of memory only.
bool set_rules(SSL_CTX* context) {
  ::SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
                                     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA |
                                     SSL_OP_NO_TICKET);
  // Clients stay connected: resuming sessions would only be state to keep, and to keep secret.
  ::SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  ::SSL_CTX_set_num_tickets(context, 0);
  // Idle connections give their buffers back. The caller's buffer may move between two tries of a write.
  ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
  ::SSL_CTX_set_alpn_select_cb(context, select_protocol, nullptr);
  // A key with a passphrase is an error: nobody is there to be asked for it.
  ::SSL_CTX_set_default_passwd_cb(context, [](char*, int, int, void*) { return -1; });
  return ::SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) == 1 &&
         ::SSL_CTX_set_cipher_list(context, kCiphersOfTls12) == 1 &&
         ::SSL_CTX_set1_groups_list(context, kGroups) == 1;
}

Result<std::time_t> valid_until(const X509* certificate, const std::string& file) {
  if (::X509_cmp_current_time(::X509_get0_notAfter(certificate)) < 0) {
    return unusable("api.tls_certificate", file, "it has expired; renew it");
  }
  if (::X509_cmp_current_time(::X509_get0_notBefore(certificate)) > 0) {
    return unusable("api.tls_certificate", file, "its time has not come yet; is this machine's clock right?");
  }
  std::tm time{};
  if (::ASN1_TIME_to_tm(::X509_get0_notAfter(certificate), &time) != 1) {
    return unusable("api.tls_certificate", file, "its expiry is no date; renew it");
  }
  return ::timegm(&time);
}

Result<void> use_client_ca(SSL_CTX* context, const std::string& file) {
  // The names in it tell clients which of their certificates to send.
  STACK_OF(X509_NAME)* names = ::SSL_load_client_CA_file(file.c_str());
  if (names == nullptr || ::SSL_CTX_load_verify_file(context, file.c_str()) != 1) {
    ::sk_X509_NAME_pop_free(names, ::X509_NAME_free);
    return unusable("api.client_ca", file,
                    openssl_reason() + "; name a readable PEM file with the authorities' certificates");
  }
  ::SSL_CTX_set_client_CA_list(context, names);  // owns them now
  ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return {};
}

}  // namespace

TlsContext::TlsContext(SSL_CTX* context) : context_(context, ::SSL_CTX_free) {}

Result<std::shared_ptr<const TlsContext>> TlsContext::load(const TlsFiles& files) {
  ::ERR_clear_error();
  const std::shared_ptr<TlsContext> loaded(new TlsContext(::SSL_CTX_new(::TLS_server_method())));
  SSL_CTX* context = loaded->context_.get();
  if (context == nullptr || !set_rules(context)) {
    return Error{ErrorCode::kResourceExhausted, "OpenSSL cannot start: " + openssl_reason() + "."};
  }
  if (::SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1) {
    return unusable("api.tls_certificate", files.certificate,
                    openssl_reason() + "; name a readable PEM file with the certificate and its chain");
  }
  const auto expiry = valid_until(::SSL_CTX_get0_certificate(context), files.certificate);
  if (!expiry) return expiry.error();
  loaded->expiry_ = *expiry;
  if (::SSL_CTX_use_PrivateKey_file(context, files.private_key.c_str(), SSL_FILETYPE_PEM) != 1) {
    const unsigned long error = ::ERR_peek_last_error();
    const bool other =
        ERR_GET_LIB(error) == ERR_LIB_X509 && (ERR_GET_REASON(error) == X509_R_KEY_VALUES_MISMATCH ||
                                               ERR_GET_REASON(error) == X509_R_KEY_TYPE_MISMATCH);
    return unusable("api.tls_private_key", files.private_key,
                    other ? "it is not the key of " + files.certificate + "; name the one it was made with"
                          : openssl_reason() + "; name a readable PEM file with a key without a passphrase");
  }
  if (!files.client_ca.empty()) {
    if (auto used = use_client_ca(context, files.client_ca); !used) return used.error();
  }
  return std::shared_ptr<const TlsContext>(loaded);
}

TlsConnection::TlsConnection(const TlsContext& context, int socket)
    : connection_(::SSL_new(context.context_.get()), ::SSL_free) {
  if (connection_ == nullptr || ::SSL_set_fd(connection_.get(), socket) != 1) throw std::bad_alloc();
  ::SSL_set_accept_state(connection_.get());
}

TlsConnection::Step TlsConnection::step_of(int result) {
  if (result > 0) return {.bytes = static_cast<std::size_t>(result)};
  switch (::SSL_get_error(connection_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return {.wait = Step::Wait::kReadable};
    case SSL_ERROR_WANT_WRITE:
      return {.wait = Step::Wait::kWritable};
    case SSL_ERROR_ZERO_RETURN:
      return {.error = boost::asio::error::eof};
    default:
      // A fault of the connection or of TLS: nothing may be sent any more. An end without close_notify is
      // one too, since somebody else may have cut the connection.
      established_ = false;
      got_plain_http_ = ERR_GET_REASON(::ERR_peek_error()) == SSL_R_HTTP_REQUEST;
      return {.error = boost::asio::error::connection_reset};
  }
}

TlsConnection::Step TlsConnection::handshake() {
  ::ERR_clear_error();
  const Step step = step_of(::SSL_do_handshake(connection_.get()));
  established_ = step.wait == Step::Wait::kNo && !step.error;
  return step;
}

TlsConnection::Step TlsConnection::read(void* buffer, std::size_t size) {
  ::ERR_clear_error();
  const std::size_t most = std::min<std::size_t>(size, std::numeric_limits<int>::max());
  return step_of(::SSL_read(connection_.get(), buffer, static_cast<int>(most)));
}

TlsConnection::Step TlsConnection::write(const void* buffer, std::size_t size) {
  ::ERR_clear_error();
  const std::size_t most = std::min<std::size_t>(size, std::numeric_limits<int>::max());
  return step_of(::SSL_write(connection_.get(), buffer, static_cast<int>(most)));
}

void TlsConnection::finish() {
  if (!established_) return;
  ::ERR_clear_error();
  ::SSL_shutdown(connection_.get());
}

}  // namespace portway
