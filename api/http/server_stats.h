// Counts of the HTTP server. Written and read by its thread only: no atomics needed.
#pragma once

#include <cstdint>
#include <ctime>

namespace portway {

/// A server in front of the API, or all of them, since start.
struct ServerStats {
  std::uint64_t connections = 0;                  // open now
  std::uint64_t connections_total = 0;            // accepted, whatever became of them
  std::uint64_t connections_refused_network = 0;  // came from a refused network
  std::uint64_t connections_refused_limit = 0;    // over connections_max or the source's share
  std::uint64_t connections_evicted = 0;          // idle ones that made room for new ones
  std::uint64_t half_open_evicted = 0;            // the same, with a request that was not complete
  std::uint64_t handshakes_failed = 0;            // TLS: no common ground, no certificate, or given up
  std::uint64_t streams = 0;                      // answers without an end that are open now
  std::uint64_t streams_refused = 0;              // over streams_max
  std::uint64_t requests_refused = 0;             // answered with 4xx by the server itself
  std::uint64_t accept_pauses = 0;                // descriptors or memory had run out
  std::time_t tls_certificate_expiry = 0;         // when the certificate in use ends; 0: no TLS

  /// The sum of both; of the certificates, the one that ends first.
  ServerStats& operator+=(const ServerStats& other);
};

/// Answers on their way to their readers (api/http/answer_budget.h).
struct AnswerStats {
  std::uint64_t bytes = 0;      // taken now
  std::uint64_t bytes_max = 0;  // for all
  std::uint64_t refused = 0;    // did not fit
};

}  // namespace portway
