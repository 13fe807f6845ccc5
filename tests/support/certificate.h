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

/// Makes a self-signed certificate for 127.0.0.1 and its private key in one PEM file.
void make_certificate(const std::string& file, const CertificateTimes& times = {});

}  // namespace portway::test
