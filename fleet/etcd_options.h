// Where etcd is, and how to speak to it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "fleet/http_values.h"

namespace portway {

struct EtcdOptions {
  // 1-16 URLs of one cluster: "http://198.18.0.1:2379", "https://etcd-1.example:2379". The port of a URL
  // without one is 2379. The name of a host is looked up on a thread of Asio's, at each connection.
  std::vector<std::string> endpoints = {};
  std::string tls_ca = {};  // PEM file: the authorities of etcd's certificates; empty: those of the system
  std::string tls_certificate = {};  // PEM file: the client's own; empty: none
  std::string tls_private_key = {};  // PEM file
  std::string user = {};             // empty: none
  std::string password = {};
  std::uint64_t cluster_id = 0;                     // of the one to speak to; 0: that of the first answer
  std::chrono::milliseconds connect_timeout{2000};  // 10 ms - 60 s; to one endpoint, with TLS
  std::chrono::milliseconds request_timeout{5000};  // 10 ms - 600 s; over all endpoints, with connecting
  // 10 ms - 600 s: a watch that has heard nothing for that long asks for a sign of life.
  std::chrono::milliseconds silence_max{10'000};
  std::size_t answer_max =
      8U << 20;  // 64 KiB - 256 MiB: bytes of JSON, for each answer and each batch of events
  // For errors: the configuration key of `endpoints`, and what those of the others begin with.
  std::string endpoints_key = "etcd.endpoints";
  std::string key_prefix = "etcd.";
};

/// kInvalidConfig with the configuration key and the remedy. Opens no file.
Result<std::vector<HttpEndpoint>> check_etcd_options(const EtcdOptions& options);

/// The TLS part of them.
HttpTls tls_of(const EtcdOptions& options);

}  // namespace portway
