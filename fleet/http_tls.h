// The client's side of TLS, on OpenSSL's own types: what http_connection.cpp needs of it.
#pragma once

#include <openssl/types.h>

#include <string>

#include "base/error.h"
#include "fleet/http_values.h"

namespace portway {

/// TLS 1.2 or newer, and the files. kInvalidConfig with the configuration key, the file and the remedy; also
/// for a certificate without a private key, or the other way round.
Result<void> use_http_tls(SSL_CTX* context, const HttpTls& options);

/// The same, but only for its error.
Result<void> check_http_tls(const HttpTls& options);

/// The server's certificate must be for this host, a name or an address. False only if there is no memory.
bool expect_host(SSL* connection, const std::string& host);

/// The alerts by which a server refuses a client's certificate, or the lack of one (RFC 8446, 6.2).
bool is_about_certificate(unsigned long openssl_error);

}  // namespace portway
