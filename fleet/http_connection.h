// One HTTP/1.1 connection of a client to one endpoint, and requests on it, one after the other: over TCP, or
// TLS with a check of the server's certificate and name.
//
// An answer is read whole, or piece by piece or line by line while it is still being written; then no more is
// read than was asked for, so a slow consumer is waited for. The body of a request may stay open as well, so
// that more can be asked on the same stream; see send().
//
// Runs on its executor, which is single-threaded. Every call ends by its deadline, or as soon as close() is
// called, except for the lookup of a host's name, which the system ends. At most one of open(), send() and
// the reading ones waits at a time; send_more() may beside a reading one. Whoever waits holds a pointer to
// the object.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "fleet/http_values.h"

namespace portway {

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Clock = std::chrono::steady_clock;
  template <class Value>
  using Awaitable = boost::asio::awaitable<HttpResult<Value>>;

  HttpConnection(const boost::asio::any_io_executor& executor, HttpEndpoint endpoint);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  /// Connects, and under TLS reads the files and agrees on a session. kUnreachable, kTimeout, kClosed.
  Awaitable<void> open(const HttpTls& tls, Clock::time_point deadline);

  /// Writes a request. If that fails (kUnreachable, kTimeout, kClosed) the server has not got all of it, and
  /// so cannot have carried it out. A request that stays open is the connection's last: it asks the server to
  /// close, since Go's HTTP/1 server reads a request's body to its end before it answers on a connection that
  /// it will use again.
  Awaitable<void> send(const HttpRequest& request, Clock::time_point deadline);
  /// A further chunk of it. Nothing, if the one before is still being written.
  Awaitable<void> send_more(std::string_view chunk);

  // Errors of the reading ones: kUnreachable (the connection broke before the answer's end), kTimeout,
  // kBadAnswer (not HTTP, or a head of more than 64 KiB), kTooLarge, kClosed. After an error the rest of the
  // answer is lost.

  /// The whole answer, or what follows its head. kTooLarge: a body of more than `body_max` bytes.
  Awaitable<HttpAnswer> read_answer(std::size_t body_max, Clock::time_point deadline);

  Awaitable<HttpHead> read_head(Clock::time_point deadline);
  /// After that, the next 1 to `max` bytes of the body as soon as there are some; empty: its clean end.
  Awaitable<std::string> read_body(std::size_t max, Clock::time_point deadline);
  /// Or its next line, without the line feed. The end is an error, kUnreachable.
  Awaitable<std::string> read_line(std::size_t line_max, Clock::time_point deadline);

  /// Whether another request can be sent on it: the last answer is read, and the server has not closed it.
  bool is_reusable();

  /// When bytes arrived last.
  Clock::time_point heard_at() const { return heard_at_; }

  /// What waits ends with an error of this kind.
  void close(HttpErrorKind why = HttpErrorKind::kClosed);
  bool is_closed() const { return is_closed_; }

  const HttpEndpoint& endpoint() const { return endpoint_; }
  static constexpr Clock::time_point kNoDeadline = Clock::time_point::max();

 private:
  struct Tls;
  struct Answer;
  class Deadline;
  using error_code = boost::system::error_code;

  Awaitable<void> connect();
  Awaitable<void> start_tls(const HttpTls& options);
  Awaitable<void> write(std::string_view bytes);
  Awaitable<void> read_some();
  HttpResult<void> parse();
  HttpHead take_head();

  void set_deadline(Clock::time_point deadline);
  HttpError broken(std::string_view what, const error_code& error) const;
  HttpError error_of(HttpErrorKind kind, std::string_view what) const;

  const HttpEndpoint endpoint_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::ip::tcp::resolver resolver_;
  boost::asio::steady_timer timer_;  // closes when the deadline has passed
  std::unique_ptr<Tls> tls_;         // null in clear text
  std::string refused_remedy_;       // HttpTls
  std::unique_ptr<Answer> answer_;   // that is being read
  Clock::time_point heard_at_ = Clock::now();
  bool is_sending_more_ = false;
  bool is_closed_ = false;
  HttpErrorKind why_closed_ = HttpErrorKind::kClosed;
};

}  // namespace portway
