#include "api/server.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <cctype>
#include <exception>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "api/problem.h"
#include "config/forward.h"

namespace portway {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using Socket = asio::ip::tcp::socket;

/// An operation that reports through `error` instead of throwing.
auto into(error_code& error) {
  return asio::redirect_error(asio::use_awaitable, error);
}

constexpr std::size_t kRequestIdMax = 64;
constexpr std::chrono::milliseconds kAcceptPause(100);

std::string request_id(std::string_view given) {
  const bool usable =
      !given.empty() && given.size() <= kRequestIdMax && std::ranges::all_of(given, [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '_' || c == '-';
      });
  return usable ? std::string(given) : to_string(make_uuid());
}

Request to_request(const http::request<http::string_body>& message, const IpAddress& peer) {
  Request request;
  request.method = std::string(message.method_string());
  request.target = std::string(message.target());
  for (const auto& field : message) {
    std::string name(field.name_string());
    std::ranges::transform(name, name.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    request.headers[std::move(name)] = std::string(field.value());
  }
  request.body = message.body();
  request.peer = peer;
  request.id = request_id(request.header("x-request-id"));
  return request;
}

/// What a read that failed is answered with; nothing where there is nobody to answer.
std::optional<Error> refusal(const error_code& error, const ServerOptions& options) {
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
  if (error == asio::error::operation_aborted) {
    return Error{ErrorCode::kRequestTimeout,
                 fmt::format("The request was not complete after {} ms; send it in one go.",
                             options.request_timeout.count())};
  }
  const bool malformed = error.category() == http::make_error_code(http::error::end_of_stream).category() &&
                         error != http::error::end_of_stream && error != http::error::partial_message;
  if (malformed)
    return Error{ErrorCode::kMalformedRequest, "This is not an HTTP/1.1 request: " + error.message() + "."};
  return std::nullopt;
}

/// What the parser lets pass and two readers could still understand differently (RFC 9112, 3.2 and 6.1).
std::optional<Error> ambiguity(const http::request<http::string_body>& message) {
  if (message.count(http::field::host) > 1 ||
      (message.version() >= 11 && message.count(http::field::host) == 0)) {
    return Error{ErrorCode::kMalformedRequest, "A request has exactly one Host header.", "host"};
  }
  const bool framed_twice = message.count(http::field::content_length) > 1 ||
                            (message.count(http::field::content_length) > 0 && message.chunked());
  if (framed_twice || (message.count(http::field::transfer_encoding) > 0 && !message.chunked())) {
    return Error{ErrorCode::kMalformedRequest, "Say the body's length once: Content-Length, or chunked.",
                 "content-length"};
  }
  if (message.version() != 10 && message.version() != 11) {
    return Error{ErrorCode::kMalformedRequest, "Use HTTP/1.1 or HTTP/1.0."};
  }
  return std::nullopt;
}

/// An answer on its way out.
struct Message {
  http::response<http::string_body> response;
  bool head = false;  // the length without the body
};

Message make_message(Response answer, unsigned version, std::string_view id) {
  Message message{http::response<http::string_body>(static_cast<http::status>(answer.status), version)};
  http::response<http::string_body>& response = message.response;
  response.set(http::field::server, "portway");
  response.set(http::field::cache_control, "no-store");
  response.set("X-Content-Type-Options", "nosniff");
  response.set("X-Request-Id", std::string(id));
  if (!answer.content_type.empty()) response.set(http::field::content_type, answer.content_type);
  for (const auto& [name, value] : answer.headers) response.set(name, value);
  if (answer.status != 204) response.content_length(answer.body.size());
  response.body() = std::move(answer.body);
  return message;
}

/// The last answer on a connection: a request that was not understood ends it.
Message make_refusal(const Error& error, std::string_view id) {
  Message message = make_message(problem(error, id), 11, id);
  message.response.keep_alive(false);
  return message;
}

}  // namespace

// In the coroutines below whatever owns memory has a name: GCC 12 destroys some temporaries in a co_await
// expression twice (GCC bug 104031 and its kin).
class Server::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(asio::io_context& context, const ServerOptions& options, Handler handler)
      : context_(context), options_(options), handler_(std::move(handler)), acceptor_(context) {}

  Result<void> listen() {
    error_code error;
    acceptor_.open(options_.listen.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(options_.listen, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (!error) return {};
    return Error{ErrorCode::kInvalidConfig,
                 fmt::format("cannot listen on {}: {}; choose another address or port, or end what has it",
                             to_string(options_.listen), error.message()),
                 "api.listen"};
  }

  void run() { asio::co_spawn(context_, accept_all(shared_from_this()), asio::detached); }

  Endpoint endpoint() const { return acceptor_.local_endpoint(); }

  void stop() {
    stopping_ = true;
    error_code ignored;
    acceptor_.close(ignored);
    for (Session* session : sessions_) {
      if (session->idle) session->socket.close(ignored);
    }
  }

 private:
  struct Session {
    Session(Socket accepted, asio::io_context& context) : socket(std::move(accepted)), timer(context) {}

    Socket socket;
    asio::steady_timer timer;
    boost::beast::flat_buffer buffer;
    IpAddress peer;
    bool idle = true;  // waits for a request's first byte
  };

  /// Cancels what the socket waits for when time is up; no operation outlives its Deadline.
  class Deadline {
   public:
    Deadline(Session& session, std::chrono::milliseconds limit) : timer_(session.timer) {
      timer_.expires_after(limit);
      timer_.async_wait([&socket = session.socket, alive = std::weak_ptr(alive_)](error_code error) {
        error_code ignored;
        if (!error && !alive.expired()) socket.cancel(ignored);
      });
    }
    ~Deadline() { timer_.cancel(); }
    Deadline(const Deadline&) = delete;
    Deadline& operator=(const Deadline&) = delete;

   private:
    asio::steady_timer& timer_;
    const std::shared_ptr<void> alive_ =
        std::make_shared<char>();  // a callback already queued looks here first
  };

  static asio::awaitable<void> accept_all(std::shared_ptr<Impl> self) {
    while (!self->stopping_) {
      error_code error;
      Socket socket = co_await self->acceptor_.async_accept(into(error));
      if (!error) {
        asio::co_spawn(self->context_, serve(self, std::move(socket)), asio::detached);
      } else if (!self->stopping_) {
        // Descriptors ran out: clients wait in the backlog.
        spdlog::warn("API: accept: {}; trying again", error.message());
        asio::steady_timer pause(self->context_, kAcceptPause);
        co_await pause.async_wait(into(error));
      }
    }
  }

  static asio::awaitable<void> serve(std::shared_ptr<Impl> self, Socket socket) {
    Session session(std::move(socket), self->context_);
    error_code error;
    const Endpoint peer = session.socket.remote_endpoint(error);
    if (error || self->is_refused(peer.address())) co_return;
    session.peer = peer.address();
    session.socket.set_option(asio::ip::tcp::no_delay(true), error);
    if (self->sessions_.size() >= self->options_.connections_max) {
      const Error full{ErrorCode::kConnectionLimit,
                       "Too many clients are connected; reuse connections, or try again soon."};
      const Message refusal = make_refusal(full, request_id(""));
      co_await self->write(session, refusal);
      co_return;
    }
    self->sessions_.insert(&session);
    try {
      while (co_await self->serve_one(session)) {
      }
    } catch (const std::exception& exception) {
      spdlog::error("API: session: {}", exception.what());
    }
    self->sessions_.erase(&session);
    co_await self->linger(session);
  }

  /// One request and its answer; false when the connection ends.
  asio::awaitable<bool> serve_one(Session& session) {
    if (!co_await wait_for_request(session)) co_return false;
    http::request_parser<http::string_body> parser;
    parser.header_limit(static_cast<std::uint32_t>(options_.header_max_bytes));
    parser.body_limit(options_.body_max_bytes);
    const error_code failed = co_await read(session, parser);
    if (failed) {
      if (const auto error = refusal(failed, options_)) {
        const Message message = make_refusal(*error, request_id(""));
        co_await write(session, message);
      }
      co_return false;
    }
    const auto& asked = parser.get();
    const Request request = to_request(asked, session.peer);
    if (const auto error = ambiguity(asked)) {
      const Message message = make_refusal(*error, request.id);
      co_await write(session, message);
      co_return false;
    }
    Message message = make_message(answer(request), asked.version(), request.id);
    message.head = asked.method() == http::verb::head;
    const bool keep_alive = asked.keep_alive() && !stopping_;
    message.response.keep_alive(keep_alive);
    const bool written = co_await write(session, message);
    co_return written&& keep_alive;
  }

  /// False when the client has gone or was silent for too long.
  asio::awaitable<bool> wait_for_request(Session& session) {
    if (session.buffer.size() > 0) co_return true;  // pipelined
    if (stopping_) co_return false;
    session.idle = true;
    const Deadline deadline(session, options_.idle_timeout);
    error_code error;
    co_await session.socket.async_wait(Socket::wait_read, into(error));
    session.idle = false;
    co_return !error;
  }

  asio::awaitable<error_code> read(Session& session, http::request_parser<http::string_body>& parser) {
    const Deadline deadline(session, options_.request_timeout);
    error_code error;
    co_await http::async_read_header(session.socket, session.buffer, parser, into(error));
    if (error) co_return error;
    if (parser.content_length() && *parser.content_length() > options_.body_max_bytes)
      co_return http::error::body_limit;
    if (boost::beast::iequals(parser.get()[http::field::expect], "100-continue")) {
      http::response<http::empty_body> go_on(http::status::continue_, parser.get().version());
      co_await http::async_write(session.socket, go_on, into(error));
      if (error) co_return error;
    }
    co_await http::async_read(session.socket, session.buffer, parser, into(error));
    co_return error;
  }

  Response answer(const Request& request) {
    try {
      return handler_(request);
    } catch (const std::exception& exception) {
      spdlog::error("API: {} {}: {} (request {})", request.method, request.target, exception.what(),
                    request.id);
      return problem({ErrorCode::kInternal, "This is a fault of the daemon; its log has the request's id."},
                     request.id);
    }
  }

  asio::awaitable<bool> write(Session& session, const Message& message) {
    const Deadline deadline(session, options_.write_timeout);
    error_code error;
    http::response_serializer<http::string_body> serializer(message.response);
    if (message.head) {
      co_await http::async_write_header(session.socket, serializer, into(error));
    } else {
      co_await http::async_write(session.socket, serializer, into(error));
    }
    co_return !error;
  }

  /// Ends a connection so that the client can read the last answer: closing with bytes unread would reset it.
  asio::awaitable<void> linger(Session& session) {
    error_code error;
    session.socket.shutdown(Socket::shutdown_send, error);
    const Deadline deadline(session, std::min(options_.request_timeout, std::chrono::milliseconds(1000)));
    std::array<char, 4096> rest;
    for (std::size_t read = 0; !error && !stopping_ && read < options_.body_max_bytes;) {
      read += co_await session.socket.async_read_some(asio::buffer(rest), into(error));
    }
  }

  bool is_refused(const IpAddress& address) const {
    return std::ranges::any_of(options_.refused_networks,
                               [&address](const Cidr& cidr) { return cidr.contains(address); });
  }

  asio::io_context& context_;
  const ServerOptions options_;
  const Handler handler_;
  asio::ip::tcp::acceptor acceptor_;
  std::set<Session*> sessions_;
  bool stopping_ = false;
};

Result<std::unique_ptr<Server>> Server::start(asio::io_context& context, const ServerOptions& options,
                                              Handler handler) {
  auto impl = std::make_shared<Impl>(context, options, std::move(handler));
  if (auto listening = impl->listen(); !listening) return listening.error();
  impl->run();
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() {
  stop();
}
Endpoint Server::endpoint() const {
  return impl_->endpoint();
}
void Server::stop() {
  impl_->stop();
}

}  // namespace portway
