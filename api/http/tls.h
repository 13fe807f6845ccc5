// TLS 1.2 and 1.3 for the server, directly on OpenSSL: a certificate with its rules, and the connections that
// use it.
//
// A TlsConnection works on a non-blocking socket that its caller owns, waits for and closes; there are no
// buffers in between. OpenSSL writes without MSG_NOSIGNAL, so the process ignores SIGPIPE. One thread for a
// connection; contexts are immutable.
#pragma once

#include <openssl/types.h>

#include <boost/system/error_code.hpp>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/tls_files.h"

namespace portway {

class TlsContext {
 public:
  /// Reads the files; errors are those of use_tls_files().
  static Result<std::shared_ptr<const TlsContext>> load(const TlsFiles& files);

  /// When the certificate expires.
  std::time_t expiry() const { return expiry_; }

 private:
  friend class TlsConnection;
  explicit TlsContext(SSL_CTX* context);

  const std::shared_ptr<SSL_CTX> context_;
  std::time_t expiry_ = 0;
};

class TlsConnection {
 public:
  /// The outcome of a step. If it must wait, repeat it once the socket is ready.
  struct Step {
    enum class Wait : std::uint8_t { kNo, kReadable, kWritable };
    Wait wait = Wait::kNo;
    std::size_t bytes = 0;
    boost::system::error_code error = {};  // asio's eof after the client's close_notify
  };

  /// The server's side. Throws std::bad_alloc.
  TlsConnection(const TlsContext& context, int socket);

  Step handshake();
  Step read(void* buffer, std::size_t size);
  Step write(const void* buffer, std::size_t size);
  /// Sends close_notify, if the socket takes it at once.
  void finish();

  /// Of the client's certificate, if it has one that TlsFiles::client_ca has verified: its DNS names in lower
  /// case, in their order, or if it has none the CN. A name that is no host name is left out. At most
  /// kClientNamesMax. Empty before the handshake. Throws std::bad_alloc.
  std::vector<std::string> client_names() const;
  static constexpr std::size_t kClientNamesMax = 32;

  /// After a handshake that failed: the client had sent an HTTP request instead.
  bool got_plain_http() const { return got_plain_http_; }

 private:
  Step step_of(int result);

  const std::unique_ptr<SSL, void (*)(SSL*)> connection_;
  bool established_ = false;
  bool got_plain_http_ = false;
};

}  // namespace portway
