// The only file of this folder that includes Boost.Beast and Asio's TLS, which are expensive to compile.
#include "fleet/http_connection.h"

#include <fmt/format.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/optional.hpp>
#include <cerrno>
#include <charconv>
#include <utility>
#include <vector>

#include "base/endpoint.h"
#include "base/ends_with_process.h"
#include "base/into.h"
#include "base/tls_files.h"
#include "fleet/http_tls.h"

namespace portway {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::size_t kReadSize = 16U << 10;
constexpr std::uint32_t kHttpHeaderMax = 64U << 10;
constexpr std::size_t kUnparsedMax = 128U << 10;  // a chunk's head that never ends

/// Appends to a string that its owner may take from meanwhile; believes no Content-Length.
struct AppendedBody {
  using value_type = std::string;

  class reader {
   public:
    template <bool is_request, class Fields>
    reader(http::header<is_request, Fields>&, value_type& body) : body_(body) {}

    void init(const boost::optional<std::uint64_t>&, error_code& error) { error = {}; }

    template <class Buffers>
    std::size_t put(const Buffers& buffers, error_code& error) {
      std::size_t size = 0;
      for (const asio::const_buffer buffer : beast::buffers_range_ref(buffers)) {
        body_.append(static_cast<const char*>(buffer.data()), buffer.size());
        size += buffer.size();
      }
      error = {};
      return size;
    }

    void finish(error_code& error) { error = {}; }

   private:
    value_type& body_;
  };
};

std::string chunk_of(std::string_view bytes) {
  return fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
}

HttpError unsent(HttpError error) {
  error.not_sent = true;
  return error;
}

/// One line, whatever the value holds: a line break in it would start another field, or the body.
void append_request_field(std::string& head, std::string_view name, std::string_view value) {
  head.append(name).append(": ");
  std::ranges::replace_copy_if(
      value, std::back_inserter(head), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  head += "\r\n";
}

/// RFC 9110, 8.6: of a method that does not expect a body, its absence says that there is none.
bool needs_length(const HttpRequest& request) {
  return !request.body.empty() || !(request.method == "GET" || request.method == "HEAD");
}

std::string head_of(const HttpRequest& request, const HttpEndpoint& endpoint) {
  std::string head =
      fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.target, endpoint.authority);
  if (field_of(request.fields, "User-Agent").empty()) head += "User-Agent: portway/" PORTWAY_VERSION "\r\n";
  for (const auto& [name, value] : request.fields) append_request_field(head, name, value);
  if (request.stays_open) {
    head += "Connection: close\r\nTransfer-Encoding: chunked\r\n";
  } else if (needs_length(request)) {
    head += fmt::format("Content-Length: {}\r\n", request.body.size());
  }
  return head + "\r\n";
}

}  // namespace

struct HttpConnection::Tls {
  Tls(tcp::socket& socket, asio::ssl::context rules) : context(std::move(rules)), stream(socket, context) {}

  asio::ssl::context context;
  asio::ssl::stream<tcp::socket&> stream;
};

struct HttpConnection::Answer {
  Answer() {
    parser.header_limit(kHttpHeaderMax);
    parser.body_limit(boost::none);  // the readers have their own
    parser.eager(true);
  }

  std::string& body() { return parser.get().body(); }

  beast::flat_buffer unparsed;
  http::response_parser<AppendedBody> parser;
  std::size_t searched = 0;  // of the body: it has no line feed up to there
};

/// Closes the connection if it is not destroyed before.
class HttpConnection::Deadline {
 public:
  Deadline(HttpConnection& connection, Clock::time_point deadline) : connection_(connection) {
    connection.set_deadline(deadline);
  }
  ~Deadline() { connection_.set_deadline(kNoDeadline); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

 private:
  HttpConnection& connection_;
};

HttpConnection::HttpConnection(const asio::any_io_executor& executor, HttpEndpoint endpoint)
    : endpoint_(std::move(endpoint)), socket_(executor), resolver_(executor), timer_(executor) {}

HttpConnection::~HttpConnection() = default;

void HttpConnection::set_deadline(Clock::time_point deadline) {
  timer_.expires_at(deadline);
  if (deadline == kNoDeadline) return;
  timer_.async_wait([weak = weak_from_this()](const error_code& error) {
    const auto self = weak.lock();
    // It may have been set anew after this was due.
    if (error || self == nullptr || self->timer_.expiry() > Clock::now()) return;
    self->close(HttpErrorKind::kTimeout);
  });
}

void HttpConnection::close(HttpErrorKind why) {
  if (is_closed_) return;
  is_closed_ = true;
  why_closed_ = why;
  error_code ignored;
  socket_.close(ignored);
  resolver_.cancel();
  timer_.expires_at(kNoDeadline);
}

HttpError HttpConnection::error_of(HttpErrorKind kind, std::string_view what) const {
  return {.kind = kind, .detail = fmt::format("{}: {}", endpoint_.url, what)};
}

HttpError HttpConnection::broken(std::string_view what, const error_code& error) const {
  if (is_closed_) {
    return error_of(why_closed_, why_closed_ == HttpErrorKind::kTimeout
                                     ? fmt::format("{}: no answer in time", what)
                                     : std::string("the client was closed"));
  }
  if (error.category() == asio::error::get_ssl_category() &&
      is_about_certificate(static_cast<unsigned long>(error.value()))) {
    // With TLS 1.3 it says so only where the answer would be.
    return unsent(error_of(
        HttpErrorKind::kUnreachable,
        fmt::format("it refuses this client's certificate ({}); {}", error.message(), refused_remedy_)));
  }
  return error_of(HttpErrorKind::kUnreachable, fmt::format("{}: {}", what, error.message()));
}

HttpConnection::Awaitable<void> HttpConnection::open(const HttpTls& tls, Clock::time_point deadline) {
  if (is_closed_) co_return unsent(broken("cannot connect", {}));
  const Deadline until(*this, deadline);
  auto opened = co_await connect();
  if (opened && endpoint_.tls) opened = co_await start_tls(tls);
  if (!opened) co_return unsent(opened.error());
  co_return opened;
}

HttpConnection::Awaitable<void> HttpConnection::connect() {
  error_code error;
  std::vector<Endpoint> endpoints;
  if (const auto address = parse_address(endpoint_.host)) {
    std::uint16_t port = 0;
    std::from_chars(endpoint_.port.data(), endpoint_.port.data() + endpoint_.port.size(), port);
    endpoints.emplace_back(*address, port);
  } else {
    const auto found = co_await resolver_.async_resolve(endpoint_.host, endpoint_.port, into(error));
    if (error || is_closed_) co_return broken("the host's name cannot be looked up", error);
    for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  }
  for (const Endpoint& endpoint : endpoints) {
    error_code ignored;
    socket_.close(ignored);
    co_await socket_.async_connect(endpoint, into(error));
    if (!error || is_closed_) break;
  }
  if (error || is_closed_ || endpoints.empty()) co_return broken("cannot connect", error);
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  end_with_process(socket_.native_handle());  // no other process could go on with it
  co_return HttpResult<void>();
}

HttpConnection::Awaitable<void> HttpConnection::start_tls(const HttpTls& options) {
  refused_remedy_ = options.refused_remedy;
  auto context = asio::ssl::context(asio::ssl::context::tls_client);
  if (const auto used = use_http_tls(context.native_handle(), options); !used) {
    co_return error_of(HttpErrorKind::kUnreachable, used.error().detail);
  }
  tls_ = std::make_unique<Tls>(socket_, std::move(context));
  SSL* session = tls_->stream.native_handle();
  if (!expect_host(session, endpoint_.host)) {
    co_return error_of(HttpErrorKind::kUnreachable, "OpenSSL cannot start: " + openssl_reason());
  }
  error_code error;
  co_await tls_->stream.async_handshake(asio::ssl::stream_base::client, into(error));
  if (!error && !is_closed_) co_return HttpResult<void>();
  const long verified = ::SSL_get_verify_result(session);
  if (!is_closed_ && verified != X509_V_OK) {
    co_return error_of(HttpErrorKind::kUnreachable,
                       fmt::format("its certificate is not trusted: {}; {}",
                                   ::X509_verify_cert_error_string(verified), options.untrusted_remedy));
  }
  co_return broken("the TLS handshake failed", error);
}

HttpConnection::Awaitable<void> HttpConnection::send(const HttpRequest& request, Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  answer_ = std::make_unique<Answer>();
  answer_->parser.skip(request.method == "HEAD");
  std::string bytes = head_of(request, endpoint_);
  bytes += request.stays_open ? chunk_of(request.body) : request.body;
  const auto written = co_await write(bytes);
  if (!written) co_return unsent(written.error());
  co_return written;
}

HttpConnection::Awaitable<void> HttpConnection::send_more(std::string_view chunk) {
  if (is_sending_more_) co_return HttpResult<void>();
  is_sending_more_ = true;
  const std::string bytes = chunk_of(chunk);
  const auto written = co_await write(bytes);
  is_sending_more_ = false;
  co_return written;
}

HttpConnection::Awaitable<void> HttpConnection::write(std::string_view bytes) {
  error_code error;
  const auto buffer = asio::buffer(bytes);
  if (is_closed_) co_return broken("the request cannot be sent", error);
  if (tls_ != nullptr) {
    co_await asio::async_write(tls_->stream, buffer, into(error));
  } else {
    co_await asio::async_write(socket_, buffer, into(error));
  }
  // If it was closed just after all had been written, the reader is told.
  if (error) co_return broken("the request cannot be sent", error);
  co_return HttpResult<void>();
}

HttpConnection::Awaitable<void> HttpConnection::read_some() {
  error_code error;
  if (is_closed_) co_return broken("the answer broke off", error);
  if (answer_->unparsed.size() > kUnparsedMax) {
    co_return error_of(HttpErrorKind::kBadAnswer, "the answer is not HTTP");
  }
  const asio::mutable_buffer space = answer_->unparsed.prepare(kReadSize);
  std::size_t size = 0;
  if (tls_ != nullptr) {
    size = co_await tls_->stream.async_read_some(space, into(error));
  } else {
    size = co_await socket_.async_read_some(space, into(error));
  }
  if (is_closed_) co_return broken("the answer broke off", error);
  answer_->unparsed.commit(size);
  if (size > 0) heard_at_ = Clock::now();
  if (auto parsed = parse(); !parsed) co_return parsed;
  if (!error) co_return HttpResult<void>();
  if (error == asio::error::eof && answer_->parser.is_header_done()) {
    error_code incomplete;
    answer_->parser.put_eof(incomplete);
    if (!incomplete && answer_->parser.is_done()) co_return HttpResult<void>();
  }
  co_return broken("the answer broke off", error);
}

HttpResult<void> HttpConnection::parse() {
  auto& [unparsed, parser, searched] = *answer_;
  while (unparsed.size() > 0 && !parser.is_done()) {
    error_code error;
    const std::size_t parsed = parser.put(unparsed.data(), error);
    unparsed.consume(parsed);
    if (error == http::error::need_more) break;
    if (error) return error_of(HttpErrorKind::kBadAnswer, "the answer is not HTTP: " + error.message());
  }
  return {};
}

HttpConnection::Awaitable<HttpAnswer> HttpConnection::read_answer(std::size_t body_max,
                                                                  Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  for (;;) {
    if (answer_->body().size() > body_max) {
      co_return error_of(HttpErrorKind::kTooLarge,
                         fmt::format("the answer has more than {} bytes; ask for less at once", body_max));
    }
    if (answer_->parser.is_done()) break;
    const auto read = co_await read_some();
    if (!read) co_return read.error();
  }
  HttpAnswer out{.head = take_head(), .body = std::move(answer_->body())};
  co_return out;
}

HttpConnection::Awaitable<HttpHead> HttpConnection::read_head(Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  while (!answer_->parser.is_header_done()) {
    const auto read = co_await read_some();
    if (!read) co_return read.error();
  }
  co_return take_head();
}

HttpHead HttpConnection::take_head() {
  const auto& parser = answer_->parser;
  HttpHead head{.status = parser.get().result_int()};
  for (const auto& field : parser.get()) head.fields.emplace_back(field.name_string(), field.value());
  if (const auto length = parser.content_length()) head.length = *length;
  return head;
}

HttpConnection::Awaitable<std::string> HttpConnection::read_body(std::size_t max,
                                                                 Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  std::string& body = answer_->body();
  while (body.empty() && !answer_->parser.is_done()) {
    const auto read = co_await read_some();
    if (!read) co_return read.error();
  }
  if (body.size() <= max) co_return std::exchange(body, {});
  std::string piece = body.substr(0, max);
  body.erase(0, max);
  co_return piece;
}

HttpConnection::Awaitable<std::string> HttpConnection::read_line(std::size_t line_max,
                                                                 Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  for (;;) {
    std::string& body = answer_->body();
    const std::size_t end = body.find('\n', answer_->searched);
    if (end != std::string::npos && end <= line_max) {
      std::string line = body.substr(0, end);
      body.erase(0, end + 1);
      answer_->searched = 0;
      co_return line;
    }
    if (body.size() > line_max) {
      co_return error_of(HttpErrorKind::kTooLarge,
                         fmt::format("a message of the stream has more than {} bytes", line_max));
    }
    answer_->searched = body.size();
    if (answer_->parser.is_done()) co_return error_of(HttpErrorKind::kUnreachable, "the stream has ended");
    const auto read = co_await read_some();
    if (!read) co_return read.error();
  }
}

bool HttpConnection::is_reusable() {
  if (is_closed_ || answer_ == nullptr || !answer_->parser.is_done() || !answer_->parser.keep_alive() ||
      answer_->unparsed.size() > 0) {
    return false;
  }
  // If the server has closed it, its FIN is there already, unless it is under way this very moment.
  char byte = 0;
  const ssize_t got = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

}  // namespace portway
