#include "api/http/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

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

/// False only if there is no memory.
bool set_rules(SSL_CTX* context) {
  ::SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
                                     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA |
                                     SSL_OP_NO_TICKET);
  // Clients stay connected: session resumption would only add state, and a secret to protect.
  ::SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  ::SSL_CTX_set_num_tickets(context, 0);
  // Idle connections give their buffers back. The caller's buffer may move between two tries of a write.
  ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
  ::SSL_CTX_set_alpn_select_cb(context, select_protocol, nullptr);
  return ::SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) == 1 &&
         ::SSL_CTX_set_cipher_list(context, kCiphersOfTls12) == 1 &&
         ::SSL_CTX_set1_groups_list(context, kGroups) == 1;
}

constexpr std::size_t kNameMaxBytes = 253;  // RFC 1035, section 2.3.4, as text

/// In lower case; empty if it is no host name: a name with a NUL in it is not the one before the NUL.
std::string host_name(const ASN1_STRING* name) {
  const std::string_view text(reinterpret_cast<const char*>(::ASN1_STRING_get0_data(name)),
                              static_cast<std::size_t>(::ASN1_STRING_length(name)));
  std::string lower;
  if (text.size() > kNameMaxBytes) return lower;
  for (const char c : text) {
    const bool is_upper = c >= 'A' && c <= 'Z';
    const bool is_other =
        (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
    if (!is_upper && !is_other) return {};
    lower += is_upper ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return lower;
}

/// False if it has no DNS names at all.
bool take_dns_names(const X509* certificate, std::vector<std::string>& names) {
  const std::unique_ptr<GENERAL_NAMES, void (*)(GENERAL_NAMES*)> all(
      static_cast<GENERAL_NAMES*>(::X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)),
      ::GENERAL_NAMES_free);
  bool has_any = false;
  for (int i = 0; all != nullptr && i < ::sk_GENERAL_NAME_num(all.get()); ++i) {
    const GENERAL_NAME* each = sk_GENERAL_NAME_value(all.get(), i);
    if (each->type != GEN_DNS) continue;
    has_any = true;
    std::string name = host_name(each->d.dNSName);
    if (!name.empty() && names.size() < TlsConnection::kClientNamesMax) names.push_back(std::move(name));
  }
  return has_any;
}

/// The last one, which is the most specific.
std::string common_name(const X509* certificate) {
  const X509_NAME* subject = ::X509_get_subject_name(certificate);
  int last = -1;
  for (int at = -1; (at = ::X509_NAME_get_index_by_NID(subject, NID_commonName, at)) >= 0;) last = at;
  if (last < 0) return {};
  return host_name(::X509_NAME_ENTRY_get_data(::X509_NAME_get_entry(subject, last)));
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
  const auto expiry = use_tls_files(context, files);
  if (!expiry) return expiry.error();
  loaded->expiry_ = *expiry;
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
      // A fault of the connection or of TLS: nothing may be sent any more. So is an end without close_notify,
      // since somebody else may have cut the connection.
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

std::vector<std::string> TlsConnection::client_names() const {
  std::vector<std::string> names;
  const X509* certificate = ::SSL_get0_peer_certificate(connection_.get());
  // The result is good for want of a certificate, too, and means nothing unless one is verified.
  const bool is_verified = established_ && certificate != nullptr &&
                           (::SSL_get_verify_mode(connection_.get()) & SSL_VERIFY_PEER) != 0 &&
                           ::SSL_get_verify_result(connection_.get()) == X509_V_OK;
  if (!is_verified || take_dns_names(certificate, names)) return names;
  if (std::string name = common_name(certificate); !name.empty()) names.push_back(std::move(name));
  return names;
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
