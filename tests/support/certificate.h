// Certificates for tests of TLS.
#pragma once

#include <chrono>
#include <string>

namespace portway::test {

/// From now.
struct CertificateTimes {
  std::chrono::seconds begins{-3600};
  std::chrono::seconds ends{3600};
};

/// Makes a self-signed certificate and its private key in one PEM file. `names`: its subjectAltName, as in
/// x509v3_config(5); empty: none.
void make_certificate(const std::string& file, const CertificateTimes& times = {},
                      const std::string& names = "IP:127.0.0.1");

}  // namespace portway::test
