// The PEM files that the API's TLS is made of: read, and held against each other. One place for the server
// and for those who check a configuration.
#pragma once

#include <openssl/types.h>

#include <ctime>
#include <string>

#include "base/error.h"

namespace portway {

/// Paths of PEM files.
struct TlsFiles {
  std::string certificate = {};  // its own first, then those of its authorities; empty: no TLS
  std::string private_key = {};
  std::string client_ca = {};  // who must have signed the clients' certificates; empty: none are asked for
};

/// Reads the files into the context; returns when the certificate ends. kInvalidConfig with the key, the file
/// and the remedy: a file that cannot be read or is none, a key that does not fit or has a passphrase, a
/// certificate whose time is over or has not come.
Result<std::time_t> use_tls_files(SSL_CTX* context, const TlsFiles& files);

/// The same, for the error only.
Result<void> check_tls_files(const TlsFiles& files);

/// The first of OpenSSL's errors, which the others follow from, in its words.
std::string openssl_reason();

}  // namespace portway
