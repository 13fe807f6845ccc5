// The only file of this folder that includes Boost.Beast and Asio's TLS, which are expensive to compile.
#include "fleet/etcd_http.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

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

/// The alerts by which a server refuses a client's certificate, or the lack of one (RFC 8446, 6.2).
bool is_about_certificate(const error_code& error) {
  if (error.category() != asio::error::get_ssl_category()) return false;
  constexpr int kCertificateRequired = 116;
  const int alert = ERR_GET_REASON(static_cast<unsigned long>(error.value())) - SSL_AD_REASON_OFFSET;
  return (alert >= SSL_AD_BAD_CERTIFICATE && alert <= SSL_AD_CERTIFICATE_UNKNOWN) ||
         alert == SSL_AD_UNKNOWN_CA || alert == SSL_AD_ACCESS_DENIED || alert == kCertificateRequired;
}

Result<void> use_etcd_tls_files(asio::ssl::context& context, const EtcdOptions& options) {
  error_code error;
  context.set_options(
      asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1, error);
  context.set_verify_mode(asio::ssl::verify_peer, error);
  if (options.tls_ca.empty()) {
    context.set_default_verify_paths(error);
  } else if (context.load_verify_file(options.tls_ca, error); error) {
    const std::string key = options.key_prefix + "tls_ca";
    return Error{ErrorCode::kInvalidConfig,
                 fmt::format("{}: {}: {}; name a readable PEM file with the authorities' certificates", key,
                             options.tls_ca, error.message()),
                 key};
  }
  if (options.tls_certificate.empty()) return {};
  const auto used = use_tls_files(context.native_handle(), {.certificate = options.tls_certificate,
                                                            .private_key = options.tls_private_key,
                                                            .key_prefix = options.key_prefix});
  if (!used) return used.error();
  return {};
}

/// The certificate must be for this host. False only if there is no memory.
bool expect_host(SSL* connection, const std::string& host) {
  X509_VERIFY_PARAM* rules = ::SSL_get0_param(connection);
  ::X509_VERIFY_PARAM_set_hostflags(rules, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  if (parse_address(host)) return ::X509_VERIFY_PARAM_set1_ip_asc(rules, host.c_str()) == 1;
  // Server name indication is for names only (RFC 6066, 3).
  return ::SSL_set_tlsext_host_name(connection, host.c_str()) == 1 &&
         ::X509_VERIFY_PARAM_set1_host(rules, host.c_str(), 0) == 1;
}

std::string chunk_of(std::string_view bytes) {
  return fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
}

std::string head_of(const EtcdHttpRequest& request, const EtcdEndpoint& endpoint) {
  std::string head = fmt::format("POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: portway/" PORTWAY_VERSION
                                 "\r\nContent-Type: application/json\r\n",
                                 request.path, endpoint.authority);
  if (!request.token.empty()) head += fmt::format("Authorization: {}\r\n", request.token);
  // The gateway passes it on as the gRPC metadata "hasleader" (api/v3rpc/rpctypes/md.go).
  if (request.needs_leader) head += "Grpc-Metadata-Hasleader: true\r\n";
  if (request.stays_open) {
    head += "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
  } else {
    head += fmt::format("Content-Length: {}\r\n\r\n", request.body.size());
  }
  return head;
}

}  // namespace

struct EtcdConnection::Tls {
  Tls(tcp::socket& socket, asio::ssl::context rules) : context(std::move(rules)), stream(socket, context) {}

  asio::ssl::context context;
  asio::ssl::stream<tcp::socket&> stream;
};

struct EtcdConnection::Answer {
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
class EtcdConnection::Deadline {
 public:
  Deadline(EtcdConnection& connection, Clock::time_point deadline) : connection_(connection) {
    connection.set_deadline(deadline);
  }
  ~Deadline() { connection_.set_deadline(kNoDeadline); }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

 private:
  EtcdConnection& connection_;
};

EtcdConnection::EtcdConnection(const asio::any_io_executor& executor, EtcdEndpoint endpoint)
    : endpoint_(std::move(endpoint)), socket_(executor), resolver_(executor), timer_(executor) {}

EtcdConnection::~EtcdConnection() = default;

void EtcdConnection::set_deadline(Clock::time_point deadline) {
  timer_.expires_at(deadline);
  if (deadline == kNoDeadline) return;
  timer_.async_wait([weak = weak_from_this()](const error_code& error) {
    const auto self = weak.lock();
    // It may have been set anew after this was due.
    if (error || self == nullptr || self->timer_.expiry() > Clock::now()) return;
    self->close(EtcdErrorKind::kTimeout);
  });
}

void EtcdConnection::close(EtcdErrorKind why) {
  if (is_closed_) return;
  is_closed_ = true;
  why_closed_ = why;
  error_code ignored;
  socket_.close(ignored);
  resolver_.cancel();
  timer_.expires_at(kNoDeadline);
}

EtcdError EtcdConnection::error_of(EtcdErrorKind kind, std::string_view what) const {
  return {.kind = kind, .detail = fmt::format("{}: {}", endpoint_.url, what)};
}

EtcdError EtcdConnection::broken(std::string_view what, const error_code& error) {
  if (is_closed_) {
    return error_of(why_closed_, why_closed_ == EtcdErrorKind::kTimeout
                                     ? fmt::format("{}: no answer in time", what)
                                     : std::string("the client was closed"));
  }
  if (is_about_certificate(error)) {
    certificate_refused_ = true;
    return error_of(EtcdErrorKind::kUnreachable,
                    fmt::format("it refuses this client's certificate ({}); give it one that etcd's "
                                "--trusted-ca-file has signed",
                                error.message()));
  }
  return error_of(EtcdErrorKind::kUnreachable, fmt::format("{}: {}", what, error.message()));
}

EtcdConnection::Awaitable<void> EtcdConnection::open(const EtcdOptions& options, Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  auto connected = co_await connect();
  if (!connected || !endpoint_.tls) co_return connected;
  co_return co_await start_tls(options);
}

EtcdConnection::Awaitable<void> EtcdConnection::connect() {
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
  co_return EtcdResult<void>();
}

EtcdConnection::Awaitable<void> EtcdConnection::start_tls(const EtcdOptions& options) {
  auto context = asio::ssl::context(asio::ssl::context::tls_client);
  // At each connection, so that renewed files are used.
  if (const auto used = use_etcd_tls_files(context, options); !used) {
    co_return error_of(EtcdErrorKind::kUnreachable, used.error().detail);
  }
  tls_ = std::make_unique<Tls>(socket_, std::move(context));
  SSL* session = tls_->stream.native_handle();
  if (!expect_host(session, endpoint_.host)) {
    co_return error_of(EtcdErrorKind::kUnreachable, "OpenSSL cannot start: " + openssl_reason());
  }
  error_code error;
  co_await tls_->stream.async_handshake(asio::ssl::stream_base::client, into(error));
  if (!error && !is_closed_) co_return EtcdResult<void>();
  const long verified = ::SSL_get_verify_result(session);
  if (!is_closed_ && verified != X509_V_OK) {
    co_return error_of(
        EtcdErrorKind::kUnreachable,
        fmt::format("its certificate is not trusted: {}; see {}tls_ca, the host in {}, and etcd's "
                    "--cert-file",
                    ::X509_verify_cert_error_string(verified), options.key_prefix, options.endpoints_key));
  }
  co_return broken("the TLS handshake failed", error);
}

EtcdConnection::Awaitable<void> EtcdConnection::send(const EtcdHttpRequest& request,
                                                     Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  answer_ = std::make_unique<Answer>();
  std::string bytes = head_of(request, endpoint_);
  bytes += request.stays_open ? chunk_of(request.body) : request.body;
  co_return co_await write(bytes);
}

EtcdConnection::Awaitable<void> EtcdConnection::send_more(std::string_view chunk) {
  if (is_sending_more_) co_return EtcdResult<void>();
  is_sending_more_ = true;
  const std::string bytes = chunk_of(chunk);
  const auto written = co_await write(bytes);
  is_sending_more_ = false;
  co_return written;
}

EtcdConnection::Awaitable<void> EtcdConnection::write(std::string_view bytes) {
  error_code error;
  const auto buffer = asio::buffer(bytes);
  if (is_closed_) co_return broken("the request cannot be sent", error);
  if (tls_ != nullptr) {
    co_await asio::async_write(tls_->stream, buffer, into(error));
  } else {
    co_await asio::async_write(socket_, buffer, into(error));
  }
  if (error || is_closed_) co_return broken("the request cannot be sent", error);
  co_return EtcdResult<void>();
}

EtcdConnection::Awaitable<void> EtcdConnection::read_some() {
  error_code error;
  if (is_closed_) co_return broken("the answer broke off", error);
  if (answer_->unparsed.size() > kUnparsedMax) {
    co_return error_of(EtcdErrorKind::kBadAnswer, "the answer is not HTTP");
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
  if (!error) co_return EtcdResult<void>();
  if (error == asio::error::eof && answer_->parser.is_header_done()) {
    error_code incomplete;
    answer_->parser.put_eof(incomplete);
    if (!incomplete && answer_->parser.is_done()) co_return EtcdResult<void>();
  }
  co_return broken("the answer broke off", error);
}

EtcdResult<void> EtcdConnection::parse() {
  auto& [unparsed, parser, searched] = *answer_;
  while (unparsed.size() > 0 && !parser.is_done()) {
    error_code error;
    const std::size_t parsed = parser.put(unparsed.data(), error);
    unparsed.consume(parsed);
    if (error == http::error::need_more) break;
    if (error) return error_of(EtcdErrorKind::kBadAnswer, "the answer is not HTTP: " + error.message());
  }
  return {};
}

EtcdConnection::Awaitable<EtcdHttpAnswer> EtcdConnection::read_answer(std::size_t body_max,
                                                                      Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  for (;;) {
    if (answer_->body().size() > body_max) {
      co_return error_of(EtcdErrorKind::kTooLarge,
                         fmt::format("the answer has more than {} bytes; ask for less at once", body_max));
    }
    if (answer_->parser.is_done()) break;
    const auto read = co_await read_some();
    if (!read) co_return read.error();
  }
  EtcdHttpAnswer out{.status = answer_->parser.get().result_int(),
                     .body = std::move(answer_->body()),
                     .date = answer_->parser.get()[http::field::date]};
  co_return out;
}

EtcdConnection::Awaitable<unsigned> EtcdConnection::read_status(Clock::time_point deadline) {
  const Deadline until(*this, deadline);
  while (!answer_->parser.is_header_done()) {
    const auto read = co_await read_some();
    if (!read) co_return read.error();
  }
  co_return answer_->parser.get().result_int();
}

EtcdConnection::Awaitable<std::string> EtcdConnection::read_line(std::size_t line_max,
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
      co_return error_of(EtcdErrorKind::kTooLarge,
                         fmt::format("a message of the stream has more than {} bytes", line_max));
    }
    answer_->searched = body.size();
    if (answer_->parser.is_done()) co_return error_of(EtcdErrorKind::kUnreachable, "the stream has ended");
    const auto read = co_await read_some();
    if (!read) co_return read.error();
  }
}

bool EtcdConnection::is_reusable() {
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
