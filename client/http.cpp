// The only file that includes Boost.Beast, which is expensive to compile.
#include "client/http.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <boost/beast/version.hpp>
#include <cassert>
#include <memory>

namespace portway {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr std::size_t kBodyMax = 64U << 20;
constexpr std::size_t kHeaderMax = 64U << 10;

// One type for TCP and Unix sockets: the templates below are instantiated twice instead of three times.
using Plain = beast::basic_stream<asio::generic::stream_protocol>;
using Tls = asio::ssl::stream<Plain>;

Failure unreachable(const ServerAddress& server, const std::string& what, std::string remedy) {
  return {Exit::kUnreachable, server.url + ": " + what + ".", std::move(remedy)};
}

std::string connect_remedy(const ServerAddress& server, const error_code& error) {
  if (error == asio::error::access_denied) return "Join the socket's group, or use sudo.";
  const std::string where = server.transport == Transport::kUnix ? "the socket" : "the host and port";
  return "Check that portwayd is running. Compare " + where +
         " with its api.listen, and give the right address in --server or PORTWAY_SERVER.";
}

/// Trusts the first certificate of the file, but no other certificate that its authorities have signed.
bool trust_only(asio::ssl::context& tls, const std::string& file) {
  const std::unique_ptr<BIO, void (*)(BIO*)> bio(::BIO_new_file(file.c_str(), "r"), ::BIO_free_all);
  const std::unique_ptr<X509, void (*)(X509*)> certificate(
      bio ? ::PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr) : nullptr, ::X509_free);
  X509_STORE* store = ::SSL_CTX_get_cert_store(tls.native_handle());
  return certificate && ::X509_STORE_add_cert(store, certificate.get()) == 1 &&
         ::X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN) == 1;
}

/// What HttpClient::stream() wants; no media type for send().
struct Endless {
  std::string_view media_type = {};
  HttpClient::OnData on_data = {};
  std::chrono::seconds silence_max{};
};

/// One request and its answer. The calls are asynchronous only to have timeouts: each one waits until it
/// completes.
class Exchange {
 public:
  Exchange(const HttpOptions& options, const HttpRequest& request, Endless endless)
      : options_(options), request_(request), endless_(std::move(endless)) {}

  Outcome<HttpAnswer> run();

 private:
  template <class Start>
  error_code wait(Plain& stream, Start start);

  Outcome<void> connect(Plain& stream);
  Outcome<std::vector<Plain::endpoint_type>> resolve();
  Outcome<void> set_up_tls(asio::ssl::context& tls) const;
  Outcome<void> handshake(Tls& stream);

  template <class Stream>
  Outcome<HttpAnswer> talk(Stream& stream);
  http::request<http::string_body> message() const;
  Failure broken(std::string_view what, const error_code& error) const;

  const HttpOptions& options_;
  const HttpRequest& request_;
  const Endless endless_;
  asio::io_context context_{1};
};

template <class Start>
error_code Exchange::wait(Plain& stream, Start start) {
  error_code result;
  stream.expires_after(options_.timeout);
  start([&result](error_code error, auto&&...) { result = error; });
  context_.restart();
  context_.run();
  return result;
}

Outcome<HttpAnswer> Exchange::run() {
  if (options_.server.transport != Transport::kHttps) {
    Plain stream(context_);
    if (auto connected = connect(stream); !connected) return connected.error();
    return talk(stream);
  }
  asio::ssl::context tls(asio::ssl::context::tls_client);
  if (auto done = set_up_tls(tls); !done) return done.error();
  Tls stream(context_, tls);
  if (auto connected = connect(stream.next_layer()); !connected) return connected.error();
  if (auto done = handshake(stream); !done) return done.error();
  return talk(stream);
}

Outcome<std::vector<Plain::endpoint_type>> Exchange::resolve() {
  const ServerAddress& server = options_.server;
  if (server.transport == Transport::kUnix) {
    return std::vector<Plain::endpoint_type>{asio::local::stream_protocol::endpoint(server.host)};
  }
  error_code error;
  asio::ip::tcp::resolver resolver(context_);
  const auto found = resolver.resolve(server.host, server.port, error);
  if (error) {
    return unreachable(server, "the host name cannot be resolved: " + error.message(), "Check --server.");
  }
  std::vector<Plain::endpoint_type> endpoints;
  for (const auto& entry : found) endpoints.emplace_back(entry.endpoint());
  return endpoints;
}

Outcome<void> Exchange::connect(Plain& stream) {
  const auto endpoints = resolve();
  if (!endpoints) return endpoints.error();
  error_code error;
  for (const Plain::endpoint_type& endpoint : *endpoints) {
    error = wait(stream, [&](auto done) { stream.async_connect(endpoint, done); });
    if (!error) break;
    stream.close();
  }
  if (error) {
    return unreachable(options_.server, "cannot connect: " + error.message(),
                       connect_remedy(options_.server, error));
  }
  // Keepalive detects a server that disappeared without closing, also while a stream is idle.
  error_code ignored;
  stream.socket().set_option(asio::socket_base::keep_alive(true), ignored);
  return {};
}

Outcome<void> Exchange::set_up_tls(asio::ssl::context& tls) const {
  const auto unusable = [](const char* option, const std::string& file, const error_code& error) {
    return Failure{Exit::kUsage, file + ": " + error.message() + ".",
                   std::string("Name a readable PEM file with ") + option + "."};
  };
  error_code error;
  tls.set_options(
      asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1, error);
  if (options_.trusts_any_certificate) {
    assert(options_.key.empty());
  } else if (!options_.server_certificate_file.empty()) {
    if (!trust_only(tls, options_.server_certificate_file)) {
      return Failure{Exit::kUsage,
                     options_.server_certificate_file + ": no certificate can be read from this file.",
                     "Run this as a user who may read the file, or give the server with --server."};
    }
  } else if (options_.ca_file.empty()) {
    tls.set_default_verify_paths(error);
  } else if (tls.load_verify_file(options_.ca_file, error); error) {
    return unusable("--ca", options_.ca_file, error);
  }
  if (options_.certificate_file.empty()) return {};
  if (tls.use_certificate_chain_file(options_.certificate_file, error); error) {
    return unusable("--cert", options_.certificate_file, error);
  }
  const std::string& key =
      options_.private_key_file.empty() ? options_.certificate_file : options_.private_key_file;
  if (tls.use_private_key_file(key, asio::ssl::context::pem, error); error) {
    return unusable("--cert-key", key, error);
  }
  return {};
}

Outcome<void> Exchange::handshake(Tls& stream) {
  const ServerAddress& server = options_.server;
  error_code address_error;
  asio::ip::make_address(server.host, address_error);
  // Server name indication is for names only (RFC 6066).
  if (address_error) SSL_set_tlsext_host_name(stream.native_handle(), server.host.c_str());
  stream.set_verify_mode(options_.trusts_any_certificate ? asio::ssl::verify_none : asio::ssl::verify_peer);
  if (options_.server_certificate_file.empty()) {
    stream.set_verify_callback(asio::ssl::host_name_verification(server.host));
  }
  const error_code error = wait(
      stream.next_layer(), [&](auto done) { stream.async_handshake(asio::ssl::stream_base::client, done); });
  if (!error) return {};
  const long verified = SSL_get_verify_result(stream.native_handle());
  if (verified == X509_V_OK) return broken("the TLS handshake failed", error);
  if (!options_.server_certificate_file.empty()) {
    return unreachable(server,
                       "its certificate is not the one of " + options_.server_certificate_file +
                           ", or not valid: " + X509_verify_cert_error_string(verified),
                       "Send portwayd SIGHUP to reload the file, or give the server with --server.");
  }
  return unreachable(
      server,
      std::string("the server's certificate is not trusted: ") + X509_verify_cert_error_string(verified),
      "Give the authority's certificate with --ca, and in --server the host as the certificate names it.");
}

http::request<http::string_body> Exchange::message() const {
  http::request<http::string_body> message;
  message.method_string(request_.method);
  message.target(options_.server.prefix + request_.target);
  message.version(11);
  const ServerAddress& server = options_.server;
  const bool v6 = server.host.find(':') != std::string::npos;
  message.set(http::field::host, server.transport == Transport::kUnix ? "portway"
                                 : v6                                 ? "[" + server.host + "]:" + server.port
                                                                      : server.host + ":" + server.port);
  message.set(http::field::user_agent, "portway/" PORTWAY_VERSION);
  message.set(http::field::connection, "close");
  if (!options_.key.empty()) message.set(http::field::authorization, "Bearer " + options_.key);
  for (const auto& [name, value] : request_.headers) message.set(name, value);
  if (!request_.body.empty()) {
    message.set(http::field::content_type, "application/json");
    message.body() = request_.body;
  }
  message.prepare_payload();
  return message;
}

Failure Exchange::broken(std::string_view what, const error_code& error) const {
  if (error == beast::error::timeout) {
    return unreachable(options_.server, "no answer within " + std::to_string(options_.timeout.count()) + " s",
                       "Raise --timeout, or check what keeps portwayd busy.");
  }
  return unreachable(options_.server, std::string(what) + ": " + error.message(),
                     "Check that Portway's API listens there, and that http:// or https:// is right.");
}

template <class Stream>
Outcome<HttpAnswer> Exchange::talk(Stream& stream) {
  Plain& plain = beast::get_lowest_layer(stream);
  const auto request = message();
  if (const error_code error = wait(plain, [&](auto done) { http::async_write(stream, request, done); })) {
    return broken("the request could not be sent", error);
  }
  beast::flat_buffer buffer(kHeaderMax);
  http::response_parser<http::buffer_body> parser;
  parser.header_limit(kHeaderMax);
  parser.body_limit(boost::none);  // counted below
  if (const error_code error =
          wait(plain, [&](auto done) { http::async_read_header(stream, buffer, parser, done); })) {
    return broken("the answer is not HTTP", error);
  }
  HttpAnswer answer{.status = parser.get().result_int(),
                    .content_type = std::string(parser.get()[http::field::content_type]),
                    .retry_after = std::string(parser.get()[http::field::retry_after]),
                    .etag = std::string(parser.get()[http::field::etag])};
  const bool endless = !endless_.media_type.empty() && answer.status == 200 &&
                       answer.content_type.starts_with(endless_.media_type);
  answer.streamed = endless;
  if (endless && !endless_.on_data({})) return answer;
  std::vector<char> chunk(kHeaderMax);
  while (!parser.is_done()) {
    auto& body = parser.get().body();
    body = {chunk.data(), chunk.size(), true};
    error_code error = wait(plain, [&](auto done) {
      if (endless && endless_.silence_max.count() == 0) plain.expires_never();
      if (endless && endless_.silence_max.count() != 0) plain.expires_after(endless_.silence_max);
      http::async_read_some(stream, buffer, parser, done);
    });
    if (error == http::error::need_buffer) error = {};
    const std::string_view data(chunk.data(), chunk.size() - body.size);
    if (endless && !data.empty() && !endless_.on_data(data)) return answer;
    if (!endless) answer.body += data;
    // Some servers close the connection without a TLS close_notify: a complete answer is accepted.
    if (error && endless) {
      answer.broke_off = error == beast::error::timeout ? "nothing has arrived for a while" : error.message();
      break;
    }
    if (error) return broken("the answer broke off", error);
    if (answer.body.size() > kBodyMax) {
      return unreachable(options_.server, "the answer is larger than 64 MiB",
                         "Check --server: this may not be Portway's API.");
    }
  }
  return answer;
}

}  // namespace

Outcome<HttpAnswer> HttpClient::send(const HttpRequest& request) const {
  return Exchange(options_, request, {}).run();
}

Outcome<HttpAnswer> HttpClient::stream(const HttpRequest& request, std::string_view media_type,
                                       const OnData& on_data, std::chrono::seconds silence_max) const {
  return Exchange(options_, request,
                  {.media_type = media_type, .on_data = on_data, .silence_max = silence_max})
      .run();
}

}  // namespace portway
