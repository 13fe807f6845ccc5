#include "api/http/transport.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <cstring>
#include <string>
#include <utility>

#include "base/into.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// Unsent bytes that the kernel takes of an answer: enough for a second's wait at 1 Mbit/s.
constexpr int kUnsentMax = 128 * 1024;
// Head and body up to this size together go into one record of TLS (RFC 8446, 5.1).
constexpr std::size_t kJoinedMax = 16 * 1024;

}  // namespace

Endpoint tcp_endpoint(const asio::generic::stream_protocol::endpoint& endpoint) {
  Endpoint out;
  std::memcpy(out.data(), endpoint.data(), std::min(endpoint.size(), out.capacity()));
  return out;
}

void set_tcp_options(StreamSocket& socket, std::chrono::milliseconds unacknowledged_max) {
  error_code ignored;
  // Answers are written whole: Nagle's algorithm would only delay a pipelined one.
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  // A client that has vanished is found out by what it does not acknowledge.
  const auto patience_ms = static_cast<unsigned>(unacknowledged_max.count());
  ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &patience_ms, sizeof patience_ms);
  ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsentMax, sizeof kUnsentMax);
}

SessionTransport::SessionTransport(StreamSocket socket, const TlsContext* tls) : socket_(std::move(socket)) {
  if (tls == nullptr) return;
  // OpenSSL works on the descriptor itself, which must not block.
  error_code ignored;
  socket_.native_non_blocking(true, ignored);
  tls_ = std::make_unique<TlsConnection>(*tls, socket_.native_handle());
}

asio::awaitable<SessionTransport::Handshake> SessionTransport::handshake() {
  using Wait = TlsConnection::Step::Wait;
  TlsConnection::Step step{.wait = Wait::kReadable};
  error_code error;
  while (step.wait != Wait::kNo && !error) {
    step = tls_->handshake();
    error = step.error;
    if (step.wait != Wait::kNo) error = co_await wait_for(step.wait);
  }
  if (!error) co_return Handshake::kDone;
  const bool plain_http = tls_->got_plain_http();
  tls_.reset();
  co_return plain_http ? Handshake::kGotPlainHttp : Handshake::kFailed;
}

/// Until the socket is ready for what TLS wants of it.
asio::awaitable<error_code> SessionTransport::wait_for(TlsConnection::Step::Wait readiness) {
  const bool to_read = readiness == TlsConnection::Step::Wait::kReadable;
  error_code error;
  co_await socket_.async_wait(to_read ? StreamSocket::wait_read : StreamSocket::wait_write, into(error));
  // A closed descriptor may already belong to another connection: OpenSSL must not touch it.
  if (!error && !socket_.is_open()) error = asio::error::operation_aborted;
  co_return error;
}

asio::awaitable<std::size_t> SessionTransport::read(asio::mutable_buffer buffer, error_code& error) {
  error = socket_.is_open() ? error_code() : asio::error::operation_aborted;
  while (!error) {
    // TLS may end while this waits: a stream's end is written while its session reads.
    if (tls_ == nullptr) co_return co_await socket_.async_read_some(buffer, into(error));
    const TlsConnection::Step step = tls_->read(buffer.data(), buffer.size());
    error = step.error;
    if (step.wait == TlsConnection::Step::Wait::kNo) co_return step.bytes;
    error = co_await wait_for(step.wait);
  }
  co_return 0;
}

asio::awaitable<error_code> SessionTransport::write(std::string_view first, std::string_view second) {
  error_code error;
  if (tls_ == nullptr) {
    const std::array buffers = {asio::buffer(first), asio::buffer(second)};
    co_await asio::async_write(socket_, buffers, into(error));
    co_return error;
  }
  std::string joined;
  if (first.size() + second.size() <= kJoinedMax) {
    joined.append(first).append(second);
    first = joined;
    second = {};
  }
  error = co_await write_tls(first);
  if (!error) error = co_await write_tls(second);
  co_return error;
}

asio::awaitable<error_code> SessionTransport::write_tls(std::string_view bytes) {
  error_code error = socket_.is_open() ? error_code() : asio::error::operation_aborted;
  while (!error && !bytes.empty()) {
    const TlsConnection::Step step = tls_->write(bytes.data(), bytes.size());
    error = step.error;
    if (step.wait == TlsConnection::Step::Wait::kNo) {
      bytes.remove_prefix(step.bytes);
    } else {
      error = co_await wait_for(step.wait);
    }
  }
  co_return error;
}

bool SessionTransport::finish_writing() {
  if (!socket_.is_open()) return false;
  if (tls_ != nullptr) tls_->finish();
  tls_.reset();
  error_code error;
  socket_.shutdown(StreamSocket::shutdown_send, error);
  return !error;
}

void SessionTransport::cancel() {
  error_code ignored;
  socket_.cancel(ignored);
}

void SessionTransport::close() {
  error_code ignored;
  socket_.close(ignored);
}

void SessionTransport::reset() {
  error_code ignored;
  socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  socket_.close(ignored);
}

}  // namespace portway
