// One connection to one endpoint of etcd, and HTTP requests on it, one after the other: over TCP, or TLS with
// a check of the server's certificate and name.
//
// An answer is read whole, or line by line while it is still being written (a watch). The body of a request
// may stay open as well, so that more can be asked on the same stream; see send().
//
// Runs on its executor, which is single-threaded. Every call ends by its deadline, or as soon as close() is
// called. At most one of open(), send() and the reading ones waits at a time; send_more() may beside a
// reading one. Whoever waits holds a pointer to the object.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "fleet/etcd_options.h"
#include "fleet/etcd_values.h"

namespace portway {

struct EtcdHttpRequest {
  std::string_view path;
  std::string token = {};   // empty: none is sent
  std::string body = {};    // JSON
  bool stays_open = false;  // the body is sent in chunks, and this is the first one
  bool needs_leader =
      false;  // etcd refuses the request, or ends its stream, while the member knows of no leader
};

struct EtcdHttpAnswer {
  unsigned status = 0;
  std::string body;
  std::string date;  // the header; empty: there was none
};

class EtcdConnection : public std::enable_shared_from_this<EtcdConnection> {
 public:
  using Clock = std::chrono::steady_clock;
  template <class Value>
  using Awaitable = boost::asio::awaitable<EtcdResult<Value>>;

  EtcdConnection(const boost::asio::any_io_executor& executor, EtcdEndpoint endpoint);
  ~EtcdConnection();
  EtcdConnection(const EtcdConnection&) = delete;
  EtcdConnection& operator=(const EtcdConnection&) = delete;

  /// Connects, and under TLS reads the files and agrees on a session. kUnreachable or kTimeout.
  Awaitable<void> open(const EtcdOptions& options, Clock::time_point deadline);

  /// Writes a request. If that fails (kUnreachable, kTimeout) the server has not got all of it, and so cannot
  /// have carried it out. A request that stays open is the connection's last: it asks the server to close,
  /// since Go's HTTP/1 server reads a request's body to its end before it answers on a connection that it
  /// will use again.
  Awaitable<void> send(const EtcdHttpRequest& request, Clock::time_point deadline);
  /// A further chunk of it. Nothing, if the one before is still being written.
  Awaitable<void> send_more(std::string_view chunk);

  /// The whole answer. kUnreachable, kTimeout, kBadAnswer (not HTTP), kTooLarge.
  Awaitable<EtcdHttpAnswer> read_answer(std::size_t body_max, Clock::time_point deadline);

  /// Of a streamed answer: its status, and if that is 200 line by line, without the line feed. kUnreachable
  /// if the stream ends.
  Awaitable<unsigned> read_status(Clock::time_point deadline);
  Awaitable<std::string> read_line(std::size_t line_max, Clock::time_point deadline);

  /// Whether another request can be sent on it: the last answer is read, and the server has not closed it.
  bool is_reusable();

  /// When bytes arrived last.
  Clock::time_point heard_at() const { return heard_at_; }
  /// During a handshake, or instead of an answer, etcd has refused this client's certificate.
  bool certificate_refused() const { return certificate_refused_; }

  /// What waits ends with an error of this kind.
  void close(EtcdErrorKind why = EtcdErrorKind::kClosed);

  const EtcdEndpoint& endpoint() const { return endpoint_; }
  static constexpr Clock::time_point kNoDeadline = Clock::time_point::max();

 private:
  struct Tls;
  struct Answer;
  class Deadline;
  using error_code = boost::system::error_code;

  Awaitable<void> connect();
  Awaitable<void> start_tls(const EtcdOptions& options);
  Awaitable<void> write(std::string_view bytes);
  Awaitable<void> read_some();
  EtcdResult<void> parse();

  void set_deadline(Clock::time_point deadline);
  EtcdError broken(std::string_view what, const error_code& error);
  EtcdError error_of(EtcdErrorKind kind, std::string_view what) const;

  const EtcdEndpoint endpoint_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::ip::tcp::resolver resolver_;
  boost::asio::steady_timer timer_;  // closes when the deadline has passed
  std::unique_ptr<Tls> tls_;         // null in clear text
  std::unique_ptr<Answer> answer_;   // that is being read
  Clock::time_point heard_at_ = Clock::now();
  bool certificate_refused_ = false;
  bool is_sending_more_ = false;
  bool is_closed_ = false;
  EtcdErrorKind why_closed_ = EtcdErrorKind::kClosed;
};

}  // namespace portway
