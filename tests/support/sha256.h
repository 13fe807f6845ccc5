// SHA-256 for tests and for the guest.
//
// OpenSSL's low-level functions, because the guest's program is linked statically and the high-level ones
// (EVP) load their providers with dlopen(3).
#pragma once

#ifndef OPENSSL_SUPPRESS_DEPRECATED
#define OPENSSL_SUPPRESS_DEPRECATED
#endif
#include <openssl/sha.h>

#include <span>
#include <string>

namespace portway::test {

class Sha256 {
 public:
  Sha256() { SHA256_Init(&context_); }
  void add(std::span<const char> bytes) { SHA256_Update(&context_, bytes.data(), bytes.size()); }

  /// The digest in hexadecimal; ends the computation.
  std::string hex() {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256_Final(digest, &context_);
    std::string text;
    for (const unsigned char byte : digest) {
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
    return text;
  }

 private:
  SHA256_CTX context_;
};

}  // namespace portway::test
