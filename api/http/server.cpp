// Each connection is a Session: one coroutine that reads a request, calls the handler, writes the answer, and
// begins again. It is in one of the lists of Sessions, which says what may be done to it: an idle one may be
// closed at any time, for a newcomer or because the server stops; a busy one is let finish; a streaming one,
// whose answer has no end, is ended when the server stops. A streaming session has a second coroutine that
// sends, while the first one reads, to notice at once that the client has gone.
//
// What a client has not read yet is in three places: an answer's body or its next piece, which has a share of
// the budget (api/http/answer_budget.h) until it is sent; what the kernel holds unsent, which
// TCP_NOTSENT_LOWAT bounds; and what is under way, the client's own receive buffer at the most.
//
// Bytes pass through two functions, read_more() and send(), which alone know of TLS.
//
// Reading is our own loop around Beast's parser, for two reasons. One timer covers a whole header or body,
// and a composed read could miss its cancellation between two reads. And the parser's limit on the header is
// one on what it has not parsed yet: whoever cuts the segments just after a field's end never meets it.
//
// The only file with Boost.Beast: it is expensive to compile.
#include "api/http/server.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstring>
#include <ctime>
#include <exception>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "api/http/failure_log.h"
#include "api/http/problem.h"
#include "api/http/unix_listener.h"
#include "base/forward.h"

// GCC 12 takes Asio's allocator of coroutine frames, where it is inlined, for a mismatch.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace portway {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Tcp = asio::ip::tcp;
// A session does not care what it runs over.
using Socket = asio::generic::stream_protocol::socket;
using Acceptor = asio::basic_socket_acceptor<asio::generic::stream_protocol>;
using Parser = http::request_parser<http::string_body>;
using Head = Parser::value_type;

constexpr std::size_t kReadBytes = 4096;
constexpr std::size_t kRequestIdMax = 64;
constexpr milliseconds kAcceptPause(100);
// For the client to take the last answer and close.
constexpr milliseconds kLingerTimeout(2000);
constexpr std::size_t kLingerBytes = 1024 * 1024;
// Clients being told at the same time that there are too many; more are closed without a word.
constexpr std::size_t kTurnedAwayMax = 64;
// A body up to this size goes into one piece with its head: into one record of TLS (RFC 8446, 5.1), that is.
constexpr std::size_t kJoinedMax = 16 * 1024;

// Unsent bytes that the kernel takes of an answer: enough for a second's wait at 1 Mbit/s.
constexpr int kUnsentMax = 128 * 1024;
// What an answer that is made in pieces takes: a piece, with its frame, and a compressor.
constexpr std::size_t kPiecesBytes = 64 * 1024;
// Smaller answers are not counted: a connection itself takes more.
constexpr std::size_t kUncountedBytes = 4096;

/// An operation that reports through `error` instead of throwing.
auto into(error_code& error) {
  return asio::redirect_error(asio::use_awaitable, error);
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

char to_lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

/// The caller's own id where it can go into a log unchanged, else a new one.
std::string request_id(const Head& head) {
  const auto given = head["X-Request-Id"];
  const bool usable =
      !given.empty() && given.size() <= kRequestIdMax && std::ranges::all_of(given, [](char c) {
        const char lower = to_lower(c);
        return (lower >= 'a' && lower <= 'z') || is_digit(c) || c == '.' || c == '_' || c == '-';
      });
  return usable ? std::string(given) : to_string(make_uuid());
}

/// Who is at the other end.
struct Peer {
  ClientOrigin origin;  // unspecified for a Unix socket
  std::optional<PeerCredentials> credentials;
};

/// The interface that the connection came in by, which the kernel remembers of its last handshake segment
/// (tcp_v4_syn_recv_sock(), tcp_v6_syn_recv_sock()) and tells as "packet options" (ip(7), ipv6(7)).
std::int32_t incoming_link(int socket, bool is_v6) {
  const int on = 1;
  const int level = is_v6 ? IPPROTO_IPV6 : IPPROTO_IP;
  ::setsockopt(socket, level, is_v6 ? IPV6_RECVPKTINFO : IP_PKTINFO, &on, sizeof on);
  alignas(cmsghdr) std::array<char, 256> buffer{};
  auto size = static_cast<socklen_t>(buffer.size());
  if (::getsockopt(socket, level, is_v6 ? IPV6_2292PKTOPTIONS : IP_PKTOPTIONS, buffer.data(), &size) != 0) {
    return 0;
  }
  msghdr message{};
  message.msg_control = buffer.data();
  message.msg_controllen = size;
  for (cmsghdr* each = CMSG_FIRSTHDR(&message); each != nullptr; each = CMSG_NXTHDR(&message, each)) {
    if (each->cmsg_level != level) continue;
    if (is_v6 && each->cmsg_type == IPV6_PKTINFO) {
      in6_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(each), sizeof info);
      return static_cast<std::int32_t>(info.ipi6_ifindex);
    }
    if (!is_v6 && each->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(each), sizeof info);
      return info.ipi_ifindex;
    }
  }
  return 0;
}

/// Everything but the body.
Request to_request(const Head& head, const Peer& peer) {
  Request request;
  request.id = request_id(head);
  request.method = std::string(head.method_string());
  request.target = std::string(head.target());
  for (const auto& field : head) {
    std::string name(field.name_string());
    std::ranges::transform(name, name.begin(), to_lower);
    request.headers[std::move(name)] = std::string(field.value());
  }
  request.peer = peer.origin.address;
  request.peer_credentials = peer.credentials;
  return request;
}

/// Into one line, whatever the value holds: a line break in it would be another field, or a body.
void append_field(std::string& head, std::string_view name, std::string_view value) {
  head += name;
  head += ": ";
  std::ranges::replace_copy_if(
      value, std::back_inserter(head), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  head += "\r\n";
}

/// How an answer is framed.
struct AnswerOptions {
  unsigned version = 11;  // of the request
  std::string_view request_id;
  bool keep_alive;
};

std::string_view body_of(const Response& response) {
  return response.lasting_body.empty() ? std::string_view(response.body) : response.lasting_body;
}

/// A piece of a body whose length is not known before its end (RFC 9112, 7.1).
std::string framed(std::string_view piece, bool chunked) {
  return chunked ? fmt::format("{:x}\r\n{}\r\n", piece.size(), piece) : std::string(piece);
}

/// What an answer takes of the budget until it is sent.
std::size_t bytes_of(const Response& response) {
  if (response.pieces != nullptr) return kPiecesBytes;
  return response.body.size() <= kUncountedBytes ? 0 : response.body.size();
}

/// An IPv6 client has 2^64 addresses to choose from.
AnswerBudget::Payer payer_of(const Response& response, const Peer& peer) {
  if (!response.payer.empty()) return {.name = response.payer, .has_key = true};
  if (peer.credentials) return {.name = fmt::format("uid:{}", peer.credentials->uid), .has_key = true};
  return {.name = source_of(peer.origin.address).to_string()};
}

Error answer_too_large() {
  return {.code = ErrorCode::kResourceExhausted,
          .detail =
              "Too many bytes of answers wait to be read by this caller, or by all of them together: read "
              "the answers to other requests, or ask for less at a time (limit), and try again."};
}

/// The answer up to its body.
std::string head_of(const Response& response, const AnswerOptions& how) {
  std::string head =
      fmt::format("HTTP/1.{} {} {}\r\n", how.version % 10, response.status,
                  std::string_view(http::obsolete_reason(http::int_to_status(response.status))));
  append_field(head, "Server", "portway");
  append_field(head, "Date", fmt::format("{:%a, %d %b %Y %H:%M:%S} GMT", fmt::gmtime(std::time(nullptr))));
  append_field(head, "X-Content-Type-Options", "nosniff");
  append_field(head, "X-Request-Id", how.request_id);
  bool caching_is_told = false;
  for (const auto& [name, value] : response.headers) {
    append_field(head, name, value);
    caching_is_told = caching_is_told || beast::iequals(name, "Cache-Control");
  }
  if (!caching_is_told) append_field(head, "Cache-Control", "no-store");
  if (response.status != 204) {
    append_field(head, "Content-Type", response.content_type);
    if (response.stream == nullptr && response.pieces == nullptr) {
      append_field(head, "Content-Length", std::to_string(body_of(response).size()));
    } else if (how.version == 11) {
      append_field(head, "Transfer-Encoding", "chunked");
    }
  }
  if (how.version == 11 && !how.keep_alive) append_field(head, "Connection", "close");
  if (how.version < 11 && how.keep_alive) append_field(head, "Connection", "keep-alive");
  head += "\r\n";
  return head;
}

Error malformed(std::string detail, std::string field = {}) {
  return {.code = ErrorCode::kMalformedRequest, .detail = std::move(detail), .field = std::move(field)};
}

/// What a read that failed is answered with; nothing where there is nobody to answer.
std::optional<Error> refusal(const error_code& error, const ServerOptions& options) {
  if (error == asio::error::timed_out) {
    return Error{.code = ErrorCode::kRequestTimeout,
                 .detail = "The request did not come to its end in time; send it in one go."};
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return Error{
        .code = ErrorCode::kHeaderTooLarge,
        .detail = fmt::format("The request's header is larger than {} bytes.", options.header_max_bytes),
        .limit = static_cast<std::int64_t>(options.header_max_bytes)};
  }
  if (error == http::error::body_limit) {
    return Error{.code = ErrorCode::kBodyTooLarge,
                 .detail = fmt::format("The request's body is larger than {} bytes.", options.body_max_bytes),
                 .limit = static_cast<std::int64_t>(options.body_max_bytes)};
  }
  if (error == asio::error::eof) return malformed("The request ended in its middle.");
  if (error.category() != http::make_error_code(http::error::bad_method).category()) return std::nullopt;
  return malformed(fmt::format("This is not an HTTP/1.1 request: {}.", error.message()));
}

/// What the parser lets pass and two readers could still understand differently (RFC 9112, 3.2, 6.1 and 6.3).
std::optional<Error> ambiguity(const Head& head) {
  for (const auto field : {http::field::host, http::field::content_length, http::field::transfer_encoding,
                           http::field::authorization}) {
    const std::string name(http::to_string(field));
    if (head.count(field) > 1) return malformed(fmt::format("Send {} once.", name), name);
  }
  if (head.version() == 11 && head.count(http::field::host) == 0) {
    return malformed("An HTTP/1.1 request needs a Host header.", "Host");
  }
  if (!std::ranges::all_of(head[http::field::content_length], is_digit)) {
    return malformed("Content-Length is one decimal number.", "Content-Length");
  }
  if (head.count(http::field::transfer_encoding) == 0) return std::nullopt;
  if (head.version() < 11 || !beast::iequals(head[http::field::transfer_encoding], "chunked")) {
    return malformed("The only transfer coding here is chunked, in HTTP/1.1.", "Transfer-Encoding");
  }
  return std::nullopt;
}

void log_failure(std::string_view what, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& exception) {
    spdlog::error("API: {}: {}", what, exception.what());
  }
}

class Session;

/// The open connections and what they share.
struct Sessions {
  Sessions(const ServerOptions& server_options, Server::Handler server_handler)
      : options(server_options), handler(std::move(server_handler)) {}

  std::size_t open() const { return idle.size() + busy.size() + streaming.size(); }
  bool refused(const Peer& peer) const {
    return !peer.credentials && options.refuses && options.refuses(peer.origin);
  }

  const ServerOptions options;
  const Server::Handler handler;
  bool stopping = false;
  ServerStats stats;
  FailureLog failures;
  // Each session is in one of these, and in none once it is closed; the longest there comes first.
  std::list<Session*> idle;         // waits for TLS, a request, or the client to close: may be closed
  std::list<Session*> busy;         // has a request
  std::list<Session*> streaming;    // sends an answer without an end
  std::list<Session*> turned_away;  // is told that there are too many; not one of connections_max
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  /// `tls` is null where none is spoken.
  Session(std::shared_ptr<Sessions> sessions, std::list<Session*>& list, Socket socket, const Peer& peer,
          std::unique_ptr<TlsConnection> tls)
      : sessions_(std::move(sessions)),
        list_(&list),
        place_(list.insert(list.end(), this)),
        socket_(std::move(socket)),
        tls_(std::move(tls)),
        timer_(socket_.get_executor()),
        wake_timer_(socket_.get_executor()),
        peer_(peer),
        buffer_(sessions_->options.header_max_bytes + kReadBytes) {}
  ~Session() { close(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void serve() { spawn(&Session::serve_all); }
  void turn_away() { spawn(&Session::refuse_connection); }

  bool is_refused() const { return sessions_->refused(peer_); }

  /// What waits on the socket ends with an error; leaves the list.
  void close() {
    error_code ignored;
    socket_.close(ignored);
    timer_.cancel();
    wake_timer_.cancel();
    stream_.reset();
    if (list_ != nullptr) list_->erase(place_);
    list_ = nullptr;
  }

  /// The stream may have something, or is to end because the server stops.
  void wake() {
    woken_ = true;
    wake_timer_.cancel();
  }

 private:
  enum class OnDeadline { kCancelRead, kClose };

  void spawn(asio::awaitable<void> (Session::*run)());
  void move_to(std::list<Session*>& list);
  void set_deadline(milliseconds limit, OnDeadline on_deadline);
  void clear_deadline() { timer_.expires_at(steady_clock::time_point::max()); }
  bool finish_sending();

  asio::awaitable<void> serve_all();
  asio::awaitable<void> refuse_connection();
  asio::awaitable<bool> handshake();
  asio::awaitable<bool> wait_for_request();
  asio::awaitable<bool> serve_one();
  asio::awaitable<error_code> read_header(Parser& parser);
  asio::awaitable<error_code> read_body(Parser& parser);
  asio::awaitable<error_code> read_more();
  asio::awaitable<std::size_t> read_tls(asio::mutable_buffer buffer, error_code& error);
  asio::awaitable<error_code> wait_for(TlsConnection::Step::Wait readiness);
  asio::awaitable<error_code> send(std::string_view first, std::string_view second);
  asio::awaitable<error_code> send_tls(std::string_view bytes);
  asio::awaitable<error_code> say_continue();
  asio::awaitable<bool> answer(const Head& head, Response response, AnswerOptions options);
  asio::awaitable<void> answer_with_stream(Response response, AnswerOptions options);
  asio::awaitable<void> send_stream(bool chunked);
  asio::awaitable<void> refuse(const Head& head, const Error& error);
  asio::awaitable<void> linger();
  asio::awaitable<void> discard_rest();
  Response handle(const Request& request) const;
  Response fail(const Request& request, const Error& error) const;
  std::optional<AnswerBudget::Share> take_share(const Request& request, Response& response) const;

  const std::shared_ptr<Sessions> sessions_;
  std::list<Session*>* list_;  // null once closed
  std::list<Session*>::iterator place_;
  Socket socket_;
  std::unique_ptr<TlsConnection> tls_;  // null once its last word is said
  asio::steady_timer timer_;
  bool timed_out_ = false;
  asio::steady_timer wake_timer_;  // until the stream's next heartbeat; cancelled by wake()
  bool woken_ = false;
  std::shared_ptr<BodyStream> stream_;  // while streaming
  const Peer peer_;
  beast::flat_buffer buffer_;  // read and not parsed yet
};

void Session::spawn(asio::awaitable<void> (Session::*run)()) {
  asio::co_spawn(
      socket_.get_executor(), [self = shared_from_this(), run] { return (self.get()->*run)(); },
      [self = shared_from_this()](const std::exception_ptr& failure) {
        self->close();
        if (failure) log_failure("a connection failed", failure);
      });
}

void Session::move_to(std::list<Session*>& list) {
  if (list_ == nullptr) return;
  list.splice(list.end(), *list_, place_);
  list_ = &list;
}

/// From now on, in place of the deadline before.
void Session::set_deadline(milliseconds limit, OnDeadline on_deadline) {
  timed_out_ = false;
  timer_.expires_after(limit);
  timer_.async_wait([self = shared_from_this(), on_deadline](error_code error) {
    // One that was queued already when the deadline was moved comes without an error, but too early.
    if (error || self->timer_.expiry() > steady_clock::now()) return;
    self->timed_out_ = true;
    if (on_deadline == OnDeadline::kClose) return self->close();
    self->socket_.cancel(error);
  });
}

asio::awaitable<void> Session::serve_all() {
  if (tls_ != nullptr && !co_await handshake()) co_return;
  while (co_await wait_for_request()) {
    move_to(sessions_->busy);
    const bool goes_on = co_await serve_one();
    if (!goes_on) {
      co_await linger();
      co_return;
    }
  }
}

asio::awaitable<void> Session::refuse_connection() {
  if (tls_ != nullptr && !co_await handshake()) co_return;
  const Head nothing;
  const Error error{.code = ErrorCode::kConnectionLimit,
                    .detail = "Too many clients are connected; try again soon, and reuse connections.",
                    .limit = sessions_->options.connections_max};
  co_await refuse(nothing, error);
  co_await linger();
}

/// False when there is no TLS with this client, who has been told then as far as possible.
asio::awaitable<bool> Session::handshake() {
  using Wait = TlsConnection::Step::Wait;
  set_deadline(sessions_->options.header_timeout, OnDeadline::kClose);
  TlsConnection::Step step{.wait = Wait::kReadable};
  error_code error;
  while (step.wait != Wait::kNo && !error) {
    step = tls_->handshake();
    error = step.error;
    if (step.wait != Wait::kNo) error = co_await wait_for(step.wait);
  }
  if (!error) co_return true;
  ++sessions_->stats.handshakes_failed;
  const bool plain_http = tls_->got_plain_http();
  tls_.reset();  // what is said now is said in clear text
  if (plain_http) {
    const Head nothing;
    const Error wrong_scheme = malformed("This port speaks HTTPS; use https:// in place of http://.");
    co_await refuse(nothing, wrong_scheme);
  }
  co_await linger();
  co_return false;
}

/// Until the socket is ready for what TLS wants of it.
asio::awaitable<error_code> Session::wait_for(TlsConnection::Step::Wait readiness) {
  error_code error;
  const auto what =
      readiness == TlsConnection::Step::Wait::kReadable ? Socket::wait_read : Socket::wait_write;
  co_await socket_.async_wait(what, into(error));
  // A descriptor that is closed may be another connection's already: OpenSSL must not touch it.
  if (!error && !socket_.is_open()) error = asio::error::operation_aborted;
  co_return error;
}

/// False when the client has gone or was silent for too long.
asio::awaitable<bool> Session::wait_for_request() {
  bool waits = false;
  for (;;) {
    // An empty line before a request is to be ignored (RFC 9112, 2.2).
    while (buffer_.size() > 0) {
      const char first = *static_cast<const char*>(buffer_.data().data());
      if (first != '\r' && first != '\n') co_return true;
      buffer_.consume(1);
    }
    if (sessions_->stopping) co_return false;
    if (!std::exchange(waits, true)) {
      move_to(sessions_->idle);
      set_deadline(sessions_->options.idle_timeout, OnDeadline::kClose);
    }
    if (co_await read_more()) co_return false;
  }
}

/// One request and its answer; false when it was the connection's last.
asio::awaitable<bool> Session::serve_one() {
  const ServerOptions& options = sessions_->options;
  Parser parser;
  parser.header_limit(static_cast<std::uint32_t>(options.header_max_bytes));
  parser.body_limit(options.body_max_bytes);
  const Head& head = parser.get();

  error_code failed = co_await read_header(parser);
  if (!failed) {
    if (const auto error = ambiguity(head)) {
      co_await refuse(head, *error);
      co_return false;
    }
  }
  // Before the body is read: what its trailer adds to the fields is none of the header (RFC 9110, 6.5.1).
  Request request = failed ? Request() : to_request(head, peer_);
  if (!failed) failed = co_await read_body(parser);
  if (failed) {
    if (const auto error = refusal(failed, options)) co_await refuse(head, *error);
    co_return false;
  }
  if (!socket_.is_open()) co_return false;  // the server is gone, and the handler with it
  if (is_refused()) {
    ++sessions_->stats.connections_refused_network;
    close();
    co_return false;
  }
  request.body = std::move(parser.get().body());
  Response response = handle(request);
  if (response.stream != nullptr && sessions_->streaming.size() >= options.streams_max) {
    ++sessions_->stats.streams_refused;
    response = fail(request, {.code = ErrorCode::kConnectionLimit,
                              .detail = "Too many streams are open; end one, or try again later.",
                              .limit = options.streams_max});
  }
  const bool streams = response.stream != nullptr && head.method() != http::verb::head;
  const auto share = take_share(request, response);
  const bool ends_by_closing = response.pieces != nullptr && head.version() < 11;
  const AnswerOptions how{
      .version = head.version(),
      .request_id = request.id,
      .keep_alive = head.keep_alive() && !sessions_->stopping && !streams && !ends_by_closing};
  if (streams) {
    co_await answer_with_stream(std::move(response), how);
    co_return false;
  }
  const bool answered = co_await answer(head, std::move(response), how);
  co_return answered&& how.keep_alive;
}

asio::awaitable<error_code> Session::read_header(Parser& parser) {
  set_deadline(sessions_->options.header_timeout, OnDeadline::kCancelRead);
  std::size_t parsed = 0;
  for (;;) {
    error_code error;
    const std::size_t used = parser.put(buffer_.data(), error);
    buffer_.consume(used);
    parsed += used;
    if (error && error != http::error::need_more) co_return error;
    if (parsed > sessions_->options.header_max_bytes) co_return http::error::header_limit;
    if (parser.is_header_done()) co_return error_code();
    error = co_await read_more();
    if (error) co_return error;
  }
}

asio::awaitable<error_code> Session::read_body(Parser& parser) {
  if (parser.is_done()) co_return error_code();
  const Head& head = parser.get();
  if (buffer_.size() == 0 && head.version() == 11 &&
      beast::iequals(head[http::field::expect], "100-continue")) {
    const error_code error = co_await say_continue();
    if (error) co_return error;
  }
  set_deadline(sessions_->options.body_timeout, OnDeadline::kCancelRead);
  parser.eager(true);
  for (;;) {
    error_code error;
    if (buffer_.size() > 0) buffer_.consume(parser.put(buffer_.data(), error));
    if (error && error != http::error::need_more) co_return error;
    if (parser.is_done()) co_return error_code();
    error = co_await read_more();
    if (error) co_return error;
  }
}

/// Waits for bytes and adds them to the buffer.
asio::awaitable<error_code> Session::read_more() {
  error_code error;
  const std::size_t room = std::min(kReadBytes, buffer_.max_size() - buffer_.size());
  if (room == 0) co_return http::error::buffer_overflow;
  // Time may have run out while no read was there to cancel.
  if (timed_out_) co_return asio::error::timed_out;
  const asio::mutable_buffer free = buffer_.prepare(room);
  std::size_t got = 0;
  if (tls_ != nullptr) {
    got = co_await read_tls(free, error);
  } else {
    got = co_await socket_.async_read_some(free, into(error));
  }
  buffer_.commit(got);
  if (error && timed_out_) co_return asio::error::timed_out;
  co_return error;
}

asio::awaitable<std::size_t> Session::read_tls(asio::mutable_buffer buffer, error_code& error) {
  error = socket_.is_open() ? error_code() : asio::error::operation_aborted;
  while (!error) {
    if (tls_ == nullptr) co_return co_await socket_.async_read_some(buffer, into(error));
    const TlsConnection::Step step = tls_->read(buffer.data(), buffer.size());
    error = step.error;
    if (step.wait == TlsConnection::Step::Wait::kNo) co_return step.bytes;
    error = co_await wait_for(step.wait);
  }
  co_return 0;
}

/// All of both.
asio::awaitable<error_code> Session::send(std::string_view first, std::string_view second) {
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
  error = co_await send_tls(first);
  if (!error) error = co_await send_tls(second);
  co_return error;
}

asio::awaitable<error_code> Session::send_tls(std::string_view bytes) {
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

asio::awaitable<error_code> Session::say_continue() {
  constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  co_return co_await send(kContinue, {});
}

Response Session::handle(const Request& request) const {
  try {
    return sessions_->handler(request);
  } catch (const std::exception& exception) {
    spdlog::error("API: {} {}: {}; request {}", request.method, in_quotes(request.target), exception.what(),
                  request.id);
  } catch (...) {
    spdlog::error("API: {} {}: an unknown exception; request {}", request.method, in_quotes(request.target),
                  request.id);
  }
  return problem({.code = ErrorCode::kInternal,
                  .detail = "This is a fault of the daemon; its log tells more under the request's id."},
                 request.id);
}

/// The server's own answer to a request that the handler knows of.
Response Session::fail(const Request& request, const Error& error) const {
  sessions_->failures.tell(request.method, request.target.substr(0, request.target.find('?')), request.id,
                           error);
  return problem(error, request.id);
}

/// Memory for the answer until it is sent; where there is none the answer becomes a refusal. One whose
/// request has changed something is sent all the same.
std::optional<AnswerBudget::Share> Session::take_share(const Request& request, Response& response) const {
  AnswerBudget* const budget = sessions_->options.answers;
  const std::size_t bytes = bytes_of(response);
  if (budget == nullptr || bytes == 0) return std::nullopt;
  const AnswerBudget::Payer payer = payer_of(response, peer_);
  if (!response.repeatable) return budget->take_anyway(payer, bytes);
  auto share = budget->take(payer, bytes);
  if (!share) response = fail(request, answer_too_large());
  return share;
}

/// False when the client did not take it.
asio::awaitable<bool> Session::answer(const Head& head, Response response, AnswerOptions options) {
  const std::string text = head_of(response, options);
  const bool bodiless = response.status == 204 || head.method() == http::verb::head;
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  error_code error = co_await send(text, bodiless ? std::string_view() : body_of(response));
  if (error || bodiless || response.pieces == nullptr) co_return !error;
  const bool chunked = options.version == 11;
  for (bool more = true; more && !error && socket_.is_open();) {
    const std::string piece = response.pieces();
    more = !piece.empty();
    const std::string bytes = more || chunked ? framed(piece, chunked) : std::string();
    error = co_await send(bytes, {});
  }
  co_return !error;
}

/// The connection's last answer too: while it is sent, whatever the client sends is thrown away, and when it
/// says that it sends no more, it has gone.
asio::awaitable<void> Session::answer_with_stream(Response response, AnswerOptions options) {
  move_to(sessions_->streaming);
  const std::string text = head_of(response, options);
  stream_ = std::move(response.stream);
  stream_->on_ready([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->wake();
  });
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  const error_code error = co_await send(text, {});
  if (error || stream_ == nullptr) co_return;
  clear_deadline();
  asio::co_spawn(
      socket_.get_executor(),
      [self = shared_from_this(), chunked = options.version == 11] { return self->send_stream(chunked); },
      [self = shared_from_this()](const std::exception_ptr& failure) {
        if (!failure) return;
        self->close();
        log_failure("a stream failed", failure);
      });
  co_await discard_rest();
  close();
}

/// Silence is counted from what was sent last, not from the last wake: a stream that is woken often and has
/// nothing to say neither sends more for it nor goes without its heartbeats.
asio::awaitable<void> Session::send_stream(bool chunked) {
  auto heartbeat_at = steady_clock::now() + sessions_->options.stream_heartbeat;
  while (stream_ != nullptr && !sessions_->stopping) {
    woken_ = false;
    std::optional<std::string> piece = stream_->read();
    if (!piece) break;
    error_code error;
    if (piece->empty()) {
      const auto now = steady_clock::now();
      if (now < heartbeat_at) {
        wake_timer_.expires_at(woken_ ? now : heartbeat_at);  // woken in read() already: after the others
        co_await wake_timer_.async_wait(into(error));
        continue;
      }
      heartbeat_at = now + sessions_->options.stream_heartbeat;
      piece = stream_->heartbeat();
      if (piece->empty()) continue;
    }
    const std::string bytes = framed(*piece, chunked);
    set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
    error = co_await send(bytes, {});
    if (error) co_return close();
    clear_deadline();
    heartbeat_at = steady_clock::now() + sessions_->options.stream_heartbeat;
  }
  if (stream_ == nullptr) co_return;  // closed
  stream_.reset();
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  const std::string_view end = chunked ? "0\r\n\r\n" : "";
  const error_code error = co_await send(end, {});
  // The other coroutine goes on reading until the client closes.
  if (error || !finish_sending()) close();
}

/// The connection's last answer. `head` is as much of the request as was understood.
asio::awaitable<void> Session::refuse(const Head& head, const Error& error) {
  const std::string id = request_id(head);
  sessions_->failures.tell(head.method_string().empty() ? "-" : std::string(head.method_string()), "-", id,
                           error);
  Response response = problem(error, id);
  if (response.status < 500) ++sessions_->stats.requests_refused;
  const AnswerOptions options{
      .version = head.version() < 11 ? 10U : 11U, .request_id = id, .keep_alive = false};
  co_await answer(head, std::move(response), options);
}

/// Nothing more is sent; the client gets a short time to close. False when it has closed already.
bool Session::finish_sending() {
  if (!socket_.is_open()) return false;
  if (tls_ != nullptr) tls_->finish();
  tls_.reset();  // what comes now is thrown away as it is
  error_code error;
  socket_.shutdown(Socket::shutdown_send, error);
  if (error) return false;
  if (list_ != &sessions_->turned_away) move_to(sessions_->idle);
  set_deadline(kLingerTimeout, OnDeadline::kClose);
  return true;
}

/// Lets the client read the last answer: closing while bytes of it are unread would reset the connection.
asio::awaitable<void> Session::linger() {
  if (finish_sending()) co_await discard_rest();
}

asio::awaitable<void> Session::discard_rest() {
  error_code error;
  for (std::size_t discarded = 0; !error && discarded < kLingerBytes;) {
    discarded += buffer_.size();
    buffer_.consume(buffer_.size());
    error = co_await read_more();
  }
}

std::string remedy(const error_code& error) {
  if (error == asio::error::address_in_use) return "end what has it, or choose another port";
  if (error == asio::error::access_denied)
    return "it needs CAP_NET_BIND_SERVICE; or choose a port from 1024 on";
  if (error == boost::system::errc::address_not_available) return "choose an address of this host";
  return "the kernel lacks descriptors, memory or the address family";
}

Error cannot_listen(const Endpoint& endpoint, const error_code& error) {
  const bool is_setting =
      error == asio::error::access_denied || error == boost::system::errc::address_not_available;
  return {.code = is_setting                             ? ErrorCode::kInvalidConfig
                  : error == asio::error::address_in_use ? ErrorCode::kHostPortTaken
                                                         : ErrorCode::kResourceExhausted,
          .detail = fmt::format("cannot listen on {}: {}; {}", to_string(endpoint), error.message(),
                                remedy(error))};
}

Endpoint tcp_endpoint(const asio::generic::stream_protocol::endpoint& endpoint) {
  Endpoint out;
  std::memcpy(out.data(), endpoint.data(), std::min(endpoint.size(), out.capacity()));
  return out;
}

/// With its zone, unlike folded().
IpAddress unmapped(const IpAddress& address) {
  if (!address.is_v6() || !address.to_v6().is_v4_mapped()) return address;
  return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
}

}  // namespace

/// Takes connections and hands them to sessions.
class Server::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(asio::io_context& context, const ServerOptions& options, Handler handler)
      : acceptor_(context),
        pause_(context),
        sessions_(std::make_shared<Sessions>(options, std::move(handler))) {}

  Result<void> start() {
    if (auto loaded = reload_tls(); !loaded) return loaded;
    const ListenAddress& address = sessions_->options.listen;
    const auto* unix_path = std::get_if<UnixPath>(&address);
    auto listening = unix_path != nullptr ? listen(*unix_path) : listen(std::get<Endpoint>(address));
    if (!listening) return listening;
    asio::co_spawn(
        acceptor_.get_executor(), [self = shared_from_this()] { return self->accept_all(); },
        [self = shared_from_this()](const std::exception_ptr& failure) {
          if (failure) log_failure("accepting has ended", failure);
        });
    return {};
  }

  const ListenAddress& address() const { return address_; }

  Result<void> reload_tls() {
    const TlsFiles& files = sessions_->options.tls;
    if (files.certificate.empty()) return {};
    auto loaded = TlsContext::load(files);
    if (!loaded) return loaded.error();
    tls_ = std::move(*loaded);
    sessions_->stats.tls_certificate_expiry = tls_->expiry();
    constexpr auto kSoon = std::chrono::hours(24 * 14);
    const auto left =
        std::chrono::system_clock::from_time_t(tls_->expiry()) - std::chrono::system_clock::now();
    const std::string until = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(tls_->expiry()));
    if (left < kSoon) {
      spdlog::warn("API: {} expires soon, at {}; renew it and reload", files.certificate, until);
    } else {
      spdlog::info("API: {} is valid until {}", files.certificate, until);
    }
    return {};
  }

  void stop() {
    error_code ignored;
    sessions_->stopping = true;
    acceptor_.close(ignored);
    if (unix_listener_) unix_listener_->remove();
    pause_.cancel();
    for (Session* session : sessions_->streaming) session->wake();
    close_all(sessions_->idle);
  }

  void cut() {
    stop();
    close_all(sessions_->busy);
    close_all(sessions_->streaming);
    close_all(sessions_->turned_away);
  }

  void drop_refused() {
    for (auto* list : {&sessions_->idle, &sessions_->busy, &sessions_->streaming, &sessions_->turned_away}) {
      for (auto next = list->begin(); next != list->end();) {
        Session& session = **next++;  // closing takes it out of the list
        if (!session.is_refused()) continue;
        ++sessions_->stats.connections_refused_network;
        session.close();
      }
    }
  }

  ServerStats stats() const {
    ServerStats stats = sessions_->stats;
    stats.connections = sessions_->open();
    stats.streams = sessions_->streaming.size();
    return stats;
  }

 private:
  Result<void> listen(const Endpoint& endpoint) {
    error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(Acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(Acceptor::max_listen_connections, error);
    if (!error) address_ = tcp_endpoint(acceptor_.local_endpoint(error));
    if (error) return cannot_listen(endpoint, error);
    return {};
  }

  Result<void> listen(const UnixPath& path) {
    auto opened = UnixListener::open(path);
    if (!opened) return opened.error();
    unix_listener_.emplace(std::move(*opened));
    address_ = path;
    error_code error;
    Fd socket = unix_listener_->take_socket();
    acceptor_.assign(asio::generic::stream_protocol(AF_UNIX, 0), socket.get(), error);
    if (error) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("cannot listen on {}: {}", to_string(address_), error.message())};
    }
    socket.release();
    return {};
  }

  asio::awaitable<void> accept_all() {
    bool paused = false;
    while (!sessions_->stopping) {
      error_code error;
      Socket socket = co_await acceptor_.async_accept(into(error));
      if (sessions_->stopping) co_return;
      if (!error) error = admit(std::move(socket));
      if (error && !paused) spdlog::warn("API: accept: {}; clients wait until that is over", error.message());
      paused = static_cast<bool>(error);
      if (!paused) continue;
      ++sessions_->stats.accept_pauses;
      pause_.expires_after(kAcceptPause);
      co_await pause_.async_wait(into(error));
    }
  }

  /// An error means that memory has run out.
  error_code admit(Socket socket) try {
    ++sessions_->stats.connections_total;
    const auto peer = unix_listener_ ? unix_peer(socket) : tcp_peer(socket);
    if (!peer) return {};  // it has gone already
    if (sessions_->refused(*peer)) {
      ++sessions_->stats.connections_refused_network;
      return {};
    }
    if (sessions_->open() < sessions_->options.connections_max || evict()) {
      make_session(sessions_->idle, std::move(socket), *peer)->serve();
      return {};
    }
    ++sessions_->stats.connections_refused_limit;
    if (sessions_->turned_away.size() < kTurnedAwayMax) {
      make_session(sessions_->turned_away, std::move(socket), *peer)->turn_away();
    }
    return {};
  } catch (const std::exception&) {
    return asio::error::no_memory;
  }

  std::shared_ptr<Session> make_session(std::list<Session*>& list, Socket socket, const Peer& peer) const {
    // OpenSSL works on the descriptor itself, which must not block.
    error_code ignored;
    std::unique_ptr<TlsConnection> tls;
    if (tls_ != nullptr) {
      socket.native_non_blocking(true, ignored);
      tls = std::make_unique<TlsConnection>(*tls_, socket.native_handle());
    }
    return std::make_shared<Session>(sessions_, list, std::move(socket), peer, std::move(tls));
  }

  std::optional<Peer> tcp_peer(Socket& socket) const {
    error_code error;
    const auto endpoint = socket.remote_endpoint(error);
    if (error) return std::nullopt;
    // Answers are written whole: Nagle's algorithm would only delay a pipelined one.
    socket.set_option(Tcp::no_delay(true), error);
    // A client that has vanished without a word is found out by what it does not acknowledge.
    const auto patience_ms = static_cast<unsigned>(sessions_->options.write_timeout.count());
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &patience_ms, sizeof patience_ms);
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsentMax, sizeof kUnsentMax);
    const IpAddress address = unmapped(tcp_endpoint(endpoint).address());
    const std::int32_t link =
        sessions_->options.refuses
            ? incoming_link(socket.native_handle(), tcp_endpoint(endpoint).address().is_v6())
            : 0;
    return Peer{.origin = {.address = address, .link = link}, .credentials = std::nullopt};
  }

  static std::optional<Peer> unix_peer(Socket& socket) {
    ucred who{};
    socklen_t size = sizeof who;
    if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &who, &size) < 0) return std::nullopt;
    return Peer{.origin = {}, .credentials = PeerCredentials{.pid = who.pid, .uid = who.uid, .gid = who.gid}};
  }

  /// Closes the longest idle connection; false when none is idle.
  bool evict() {
    if (sessions_->idle.empty()) return false;
    ++sessions_->stats.connections_evicted;
    sessions_->idle.front()->close();
    return true;
  }

  static void close_all(std::list<Session*>& list) {
    while (!list.empty()) list.front()->close();
  }

  Acceptor acceptor_;
  ListenAddress address_;
  std::optional<UnixListener> unix_listener_;
  std::shared_ptr<const TlsContext> tls_;  // for the next connection; null: none
  asio::steady_timer pause_;               // until the next try after an error
  const std::shared_ptr<Sessions> sessions_;
};

Result<std::unique_ptr<Server>> Server::start(asio::io_context& context, const ServerOptions& options,
                                              Handler handler) {
  auto core = std::make_shared<Core>(context, options, std::move(handler));
  if (auto started = core->start(); !started) return started.error();
  return std::unique_ptr<Server>(new Server(std::move(core)));
}

Server::Server(std::shared_ptr<Core> core) : core_(std::move(core)) {}

Server::~Server() {
  core_->cut();
}

ListenAddress Server::address() const {
  return core_->address();
}

void Server::stop() {
  core_->stop();
}

Result<void> Server::reload_tls() {
  return core_->reload_tls();
}

void Server::drop_refused() {
  core_->drop_refused();
}

ServerStats Server::stats() const {
  return core_->stats();
}

}  // namespace portway
