// Each connection is a Session: one coroutine that reads a request, calls the handler, writes the answer, and
// begins again. It is in one of the lists of Sessions, which says what may be done to it: an idle one may be
// closed at any time, for a newcomer or because the server stops; a busy one is let finish.
//
// Reading is our own loop around Beast's parser, for two reasons. One timer covers a whole header or body,
// and a composed read could miss its cancellation between two reads. And the parser's limit on the header is
// one on what it has not parsed yet: whoever cuts the segments just after a field's end never meets it.
//
// The only file with Boost.Beast: it is expensive to compile.
#include "api/server.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <ctime>
#include <exception>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "api/problem.h"
#include "config/forward.h"

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
using Socket = asio::generic::stream_protocol::socket;  // a session does not care what it runs over
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

/// Everything but the body.
Request to_request(const Head& head, const IpAddress& peer) {
  Request request;
  request.id = request_id(head);
  request.method = std::string(head.method_string());
  request.target = std::string(head.target());
  for (const auto& field : head) {
    std::string name(field.name_string());
    std::ranges::transform(name, name.begin(), to_lower);
    request.headers[std::move(name)] = std::string(field.value());
  }
  request.peer = peer;
  return request;
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

  std::size_t open() const { return idle.size() + busy.size(); }

  const ServerOptions options;
  const Server::Handler handler;
  bool stopping = false;
  ServerStats stats;
  // Each session is in one of these, and in none once it is closed; the longest there comes first.
  std::list<Session*> idle;         // waits for a request, or for the client to close: may be closed
  std::list<Session*> busy;         // has a request
  std::list<Session*> turned_away;  // is told that there are too many; not one of connections_max
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<Sessions> sessions, std::list<Session*>& list, Socket socket, const IpAddress& peer)
      : sessions_(std::move(sessions)),
        list_(&list),
        place_(list.insert(list.end(), this)),
        socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        peer_(peer),
        buffer_(sessions_->options.header_max_bytes + kReadBytes) {}
  ~Session() { close(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void serve() { spawn(&Session::serve_all); }
  void turn_away() { spawn(&Session::refuse_connection); }

  /// What waits on the socket ends with an error; leaves the list.
  void close() {
    error_code ignored;
    socket_.close(ignored);
    timer_.cancel();
    if (list_ != nullptr) list_->erase(place_);
    list_ = nullptr;
  }

 private:
  enum class OnDeadline { kCancelRead, kClose };

  struct AnswerOptions {
    std::string_view request_id;
    bool keep_alive;
  };

  void spawn(asio::awaitable<void> (Session::*run)());
  void move_to(std::list<Session*>& list);
  void set_deadline(milliseconds limit, OnDeadline on_deadline);

  asio::awaitable<void> serve_all();
  asio::awaitable<void> refuse_connection();
  asio::awaitable<bool> wait_for_request();
  asio::awaitable<bool> serve_one();
  asio::awaitable<error_code> read_header(Parser& parser);
  asio::awaitable<error_code> read_body(Parser& parser);
  asio::awaitable<error_code> read_more();
  asio::awaitable<error_code> say_continue();
  asio::awaitable<bool> answer(const Head& head, Response response, AnswerOptions options);
  asio::awaitable<void> refuse(const Head& head, const Error& error);
  asio::awaitable<void> linger();
  Response handle(const Request& request) const;

  const std::shared_ptr<Sessions> sessions_;
  std::list<Session*>* list_;  // null once closed
  std::list<Session*>::iterator place_;
  Socket socket_;
  asio::steady_timer timer_;
  bool timed_out_ = false;
  const IpAddress peer_;
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
  const Head nothing;
  const Error error{.code = ErrorCode::kConnectionLimit,
                    .detail = "Too many clients are connected; try again soon, and reuse connections.",
                    .limit = sessions_->options.connections_max};
  co_await refuse(nothing, error);
  co_await linger();
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
  request.body = std::move(parser.get().body());
  Response response = handle(request);
  const AnswerOptions how{.request_id = request.id, .keep_alive = head.keep_alive() && !sessions_->stopping};
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
  buffer_.commit(co_await socket_.async_read_some(buffer_.prepare(room), into(error)));
  if (error && timed_out_) co_return asio::error::timed_out;
  co_return error;
}

asio::awaitable<error_code> Session::say_continue() {
  constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  error_code error;
  co_await asio::async_write(socket_, asio::buffer(kContinue), into(error));
  co_return error;
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

/// False when the client did not take it.
asio::awaitable<bool> Session::answer(const Head& head, Response response, AnswerOptions options) {
  http::response<http::string_body> message;
  message.version(head.version());
  message.result(response.status);
  message.set(http::field::server, "portway");
  message.set(http::field::date,
              fmt::format("{:%a, %d %b %Y %H:%M:%S} GMT", fmt::gmtime(std::time(nullptr))));
  message.set(http::field::cache_control, "no-store");
  message.set("X-Content-Type-Options", "nosniff");
  message.set("X-Request-Id", options.request_id);
  for (const auto& [name, value] : response.headers) message.set(name, value);
  if (response.status != 204) {
    message.set(http::field::content_type, response.content_type);
    message.content_length(response.body.size());
    if (head.method() != http::verb::head) message.body() = std::move(response.body);
  }
  message.keep_alive(options.keep_alive);
  set_deadline(sessions_->options.write_timeout, OnDeadline::kClose);
  error_code error;
  co_await http::async_write(socket_, message, into(error));
  co_return !error;
}

/// The connection's last answer. `head` is as much of the request as was understood.
asio::awaitable<void> Session::refuse(const Head& head, const Error& error) {
  const std::string id = request_id(head);
  Response response = problem(error, id);
  if (response.status < 500) ++sessions_->stats.requests_refused;
  const AnswerOptions options{.request_id = id, .keep_alive = false};
  co_await answer(head, std::move(response), options);
}

/// Lets the client read the last answer: closing while bytes of it are unread would reset the connection.
asio::awaitable<void> Session::linger() {
  error_code error;
  socket_.shutdown(Socket::shutdown_send, error);
  if (error) co_return;
  if (list_ == &sessions_->busy) move_to(sessions_->idle);
  set_deadline(kLingerTimeout, OnDeadline::kClose);
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

IpAddress folded(const IpAddress& address) {
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

  Result<void> listen() {
    const Endpoint& endpoint = sessions_->options.listen;
    error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(Tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(Tcp::acceptor::max_listen_connections, error);
    if (!error) endpoint_ = acceptor_.local_endpoint(error);
    if (error) return cannot_listen(endpoint, error);
    asio::co_spawn(
        acceptor_.get_executor(), [self = shared_from_this()] { return self->accept_all(); },
        [self = shared_from_this()](const std::exception_ptr& failure) {
          if (failure) log_failure("accepting has ended", failure);
        });
    return {};
  }

  const Endpoint& endpoint() const { return endpoint_; }

  void stop() {
    error_code ignored;
    sessions_->stopping = true;
    acceptor_.close(ignored);
    pause_.cancel();
    close_all(sessions_->idle);
  }

  void cut() {
    stop();
    close_all(sessions_->busy);
    close_all(sessions_->turned_away);
  }

  ServerStats stats() const {
    ServerStats stats = sessions_->stats;
    stats.connections = sessions_->open();
    return stats;
  }

 private:
  asio::awaitable<void> accept_all() {
    bool paused = false;
    while (!sessions_->stopping) {
      error_code error;
      Tcp::socket socket = co_await acceptor_.async_accept(into(error));
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
  error_code admit(Tcp::socket socket) try {
    ++sessions_->stats.connections_total;
    error_code error;
    const IpAddress peer = folded(socket.remote_endpoint(error).address());
    if (error) return {};  // it has gone already
    if (is_refused(peer)) {
      ++sessions_->stats.connections_refused_network;
      return {};
    }
    // Answers are written whole: Nagle's algorithm would only delay a pipelined one.
    socket.set_option(Tcp::no_delay(true), error);
    if (sessions_->open() < sessions_->options.connections_max || evict()) {
      std::make_shared<Session>(sessions_, sessions_->idle, std::move(socket), peer)->serve();
      return {};
    }
    ++sessions_->stats.connections_refused_limit;
    if (sessions_->turned_away.size() < kTurnedAwayMax) {
      std::make_shared<Session>(sessions_, sessions_->turned_away, std::move(socket), peer)->turn_away();
    }
    return {};
  } catch (const std::exception&) {
    return asio::error::no_memory;
  }

  /// Closes the longest idle connection; false when none is idle.
  bool evict() {
    if (sessions_->idle.empty()) return false;
    ++sessions_->stats.connections_evicted;
    sessions_->idle.front()->close();
    return true;
  }

  bool is_refused(const IpAddress& peer) const {
    return std::ranges::any_of(sessions_->options.refused_networks,
                               [&peer](const Cidr& network) { return network.contains(peer); });
  }

  static void close_all(std::list<Session*>& list) {
    while (!list.empty()) list.front()->close();
  }

  Tcp::acceptor acceptor_;
  Endpoint endpoint_;
  asio::steady_timer pause_;  // until the next try after an error
  const std::shared_ptr<Sessions> sessions_;
};

Result<std::unique_ptr<Server>> Server::start(asio::io_context& context, const ServerOptions& options,
                                              Handler handler) {
  auto core = std::make_shared<Core>(context, options, std::move(handler));
  if (auto listening = core->listen(); !listening) return listening.error();
  return std::unique_ptr<Server>(new Server(std::move(core)));
}

Server::Server(std::shared_ptr<Core> core) : core_(std::move(core)) {}

Server::~Server() {
  core_->cut();
}

Endpoint Server::endpoint() const {
  return core_->endpoint();
}

void Server::stop() {
  core_->stop();
}

ServerStats Server::stats() const {
  return core_->stats();
}

}  // namespace portway
