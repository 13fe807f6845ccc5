// Reads the PEM files for TLS, of a server or of a client, and checks them against each other, for the server
// and for configuration checks.
#pragma once

#include <openssl/types.h>

#include <ctime>
#include <string>

#include "base/error.h"

namespace portway {

/// Paths of PEM files.
struct TlsFiles {
  std::string certificate = {};  // its own first, then those of its CAs; empty: no TLS
  std::string private_key = {};
  std::string client_ca = {};       // must have signed the clients' certificates; empty: none required
  std::string key_prefix = "api.";  // of the configuration keys that name them, for errors

  friend bool operator==(const TlsFiles&, const TlsFiles&) = default;
};

/// Reads the files into the context; returns when the certificate expires. kInvalidConfig with the
/// configuration key, the file and the remedy: a file that cannot be read or is not PEM, a private key
/// that does not match or has a passphrase, a certificate that has expired or is not yet valid.
Result<std::time_t> use_tls_files(SSL_CTX* context, const TlsFiles& files);

/// The same, but only for its error.
Result<void> check_tls_files(const TlsFiles& files);

/// The text of OpenSSL's first error, the cause of the others.
std::string openssl_reason();

}  // namespace portway
