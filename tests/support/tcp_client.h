// A blocking TCP client in a network namespace, for tests: every call ends, with ETIMEDOUT after a time
// that passes only in case of a fault. Failures of a call whose result is not an errno throw
// std::system_error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/endpoint.h"
#include "base/fd.h"
#include "tests/support/network.h"

namespace portway::test {

/// What arrived until the connection's end, and how it ended: 0 for FIN, else the errno (ECONNRESET, ...).
struct Received {
  std::string bytes;
  int error = 0;
};

struct ReceivedDigest {
  std::uint64_t bytes = 0;
  std::string sha256;
  int error = 0;
};

struct TcpClientOptions {
  std::uint16_t source_port = 0;  // 0: any
  int dscp = 0;                   // of its packets, shifted left by two
};

class TcpClient {
 public:
  /// Connects from `network` to an address; connect_error() says whether that succeeded. It did if a reset
  /// came at once: receiving says so, however early it came.
  TcpClient(const NetworkNamespace& network, const std::string& address, std::uint16_t port,
            const TcpClientOptions& options = {});

  /// Its own address and port.
  Endpoint local() const;
  int connect_error() const { return connect_error_; }

  void send(std::string_view bytes);
  /// Sends the first `bytes` of Pattern(1) and returns their SHA-256.
  std::string send_pattern(std::uint64_t bytes);
  /// Sends FIN; what the other side sends can still be received.
  void finish();
  /// Closes with RST.
  void reset();

  /// Exactly `size` bytes.
  std::string receive(std::size_t size);
  Received receive_to_end();
  ReceivedDigest receive_digest_to_end();

 private:
  /// Bytes received, 0 for FIN, or -errno.
  std::ptrdiff_t receive_some(char* buffer, std::size_t size);

  Fd fd_;
  int connect_error_ = 0;
  bool was_reset_ = false;  // by the time that connect(2) returned
};

/// The SHA-256 of the first `bytes` of Pattern(1).
std::string pattern_sha256(std::uint64_t bytes);

}  // namespace portway::test
