// TLS 1.2 and 1.3 for the server, straight on OpenSSL: a certificate with its rules, and the connections that
// are made with it.
//
// A TlsConnection works on a non-blocking socket that its caller owns and waits for: no buffers in between,
// and closing stays in the caller's hands. OpenSSL writes without MSG_NOSIGNAL, so the process ignores
// SIGPIPE. One thread for a connection; contexts are immutable.
#pragma once

#include <openssl/types.h>

#include <boost/system/error_code.hpp>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <memory>

#include "base/error.h"
#include "base/tls_files.h"

namespace portway {

class TlsContext {
 public:
  /// Reads the files; errors are those of use_tls_files().
  static Result<std::shared_ptr<const TlsContext>> load(const TlsFiles& files);

  /// When the certificate ends.
  std::time_t expiry() const { return expiry_; }

 private:
  friend class TlsConnection;
  explicit TlsContext(SSL_CTX* context);

  const std::shared_ptr<SSL_CTX> context_;
  std::time_t expiry_ = 0;
};

class TlsConnection {
 public:
  /// What a step has done; when `wait` says so, it is to be repeated once the socket is ready for that.
  struct Step {
    enum class Wait : std::uint8_t { kNo, kReadable, kWritable };
    Wait wait = Wait::kNo;
    std::size_t bytes = 0;
    boost::system::error_code error = {};  // asio's eof when the client has said goodbye
  };

  /// The server's side. Throws std::bad_alloc.
  TlsConnection(const TlsContext& context, int socket);

  Step handshake();
  Step read(void* buffer, std::size_t size);
  Step write(const void* buffer, std::size_t size);
  /// Tells the client that nothing more comes (close_notify), if the socket takes it at once.
  void finish();

  /// After a handshake that failed: the client had sent an HTTP request instead.
  bool got_plain_http() const { return got_plain_http_; }

 private:
  Step step_of(int result);

  const std::unique_ptr<SSL, void (*)(SSL*)> connection_;
  bool established_ = false;
  bool got_plain_http_ = false;
};

}  // namespace portway
