// The bytes of one connection: over TCP or a Unix socket, in clear text or under TLS. A session reads and
// writes through it and does not know which.
//
// Runs on the thread of the socket's executor. At most one read and one write wait at a time; the owner keeps
// the object alive until both have returned. After close() they end with an error.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/tls.h"
#include "base/endpoint.h"

namespace portway {

using StreamSocket = boost::asio::generic::stream_protocol::socket;

/// A TCP address out of a generic one.
Endpoint tcp_endpoint(const boost::asio::generic::stream_protocol::endpoint& endpoint);

/// For an accepted TCP socket. `unacknowledged_max`: how long the client may leave bytes unacknowledged.
void set_tcp_options(StreamSocket& socket, std::chrono::milliseconds unacknowledged_max);

class SessionTransport {
 public:
  template <class Value>
  using Awaitable = boost::asio::awaitable<Value>;

  /// `tls`: null for clear text. Throws std::bad_alloc.
  SessionTransport(StreamSocket socket, const TlsContext* tls);

  StreamSocket::executor_type executor() { return socket_.get_executor(); }
  bool is_open() const { return socket_.is_open(); }
  bool has_tls() const { return tls_ != nullptr; }

  /// Agrees on TLS with the client. After a failure, what is written goes out in clear text.
  enum class Handshake : std::uint8_t { kDone, kFailed, kGotPlainHttp };
  Awaitable<Handshake> handshake();
  /// TlsConnection::client_names(); none in clear text.
  std::vector<std::string> client_names() const {
    return tls_ == nullptr ? std::vector<std::string>() : tls_->client_names();
  }

  /// Waits until there are bytes; returns how many.
  Awaitable<std::size_t> read(boost::asio::mutable_buffer buffer, boost::system::error_code& error);
  /// Writes all of both.
  Awaitable<boost::system::error_code> write(std::string_view first, std::string_view second);

  /// Says that nothing more comes: close_notify under TLS, then FIN. False if that is not possible any more.
  /// What is read from now on is not decrypted.
  bool finish_writing();
  /// Ends what waits here with an error.
  void cancel();
  void close();
  /// The same, but the client sees that it was no proper end: what it has not received yet is lost (RST).
  void reset();

 private:
  Awaitable<boost::system::error_code> write_tls(std::string_view bytes);
  Awaitable<boost::system::error_code> wait_for(TlsConnection::Step::Wait readiness);

  StreamSocket socket_;
  std::unique_ptr<TlsConnection> tls_;  // null in clear text, and once its last word is said
};

}  // namespace portway
