#include "tests/client/fake_server.h"

#include <sys/socket.h>

#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <variant>

#include "client/command_line.h"

namespace portway::test {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Socket = asio::generic::stream_protocol::socket;

std::size_t content_length(const std::string& head) {
  const std::size_t found = head.find("Content-Length: ");
  return found == std::string::npos ? 0 : std::stoul(head.substr(found + 16));
}

}  // namespace

class FakeServer::Implementation {
 public:
  Implementation(const std::string& transport, Answer answer) : answer_(std::move(answer)) {
    const std::string path = transport.substr(transport.find(':') + 1);
    if (transport.starts_with("unix:")) {
      listen(asio::local::stream_protocol::endpoint(path));
      url_ = transport;
    } else {
      listen(asio::ip::tcp::endpoint(asio::ip::address_v4::loopback(), 0));
      asio::ip::tcp::endpoint bound;
      const auto local = acceptor_.local_endpoint();
      std::memcpy(bound.data(), local.data(), local.size());
      url_ = (transport == "tcp" ? "http://127.0.0.1:" : "https://127.0.0.1:") + std::to_string(bound.port());
    }
    if (transport.find("tls:") != std::string::npos) {
      tls_.emplace(asio::ssl::context::tls_server);
      tls_->use_certificate_chain_file(path);
      tls_->use_private_key_file(path, asio::ssl::context::pem);
      if (transport.starts_with("mtls:")) {
        tls_->load_verify_file(path);
        tls_->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
      }
    }
    thread_ = std::thread([this] { serve(); });
  }

  ~Implementation() {
    ::shutdown(acceptor_.native_handle(), SHUT_RDWR);  // makes the accept under way fail
    thread_.join();
  }

  const std::string& url() const { return url_; }

  std::vector<std::string> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void listen(const asio::generic::stream_protocol::endpoint& endpoint) {
    acceptor_.open(endpoint.protocol());
    acceptor_.bind(endpoint);
    acceptor_.listen();
  }

  void serve() {
    for (;;) {
      error_code error;
      Socket socket(context_);
      acceptor_.accept(socket, error);
      if (error) return;
      if (!tls_) {
        talk(socket, socket);
        continue;
      }
      asio::ssl::stream<Socket&> stream(socket, *tls_);
      stream.handshake(asio::ssl::stream_base::server, error);
      if (!error) talk(stream, socket);
    }
  }

  template <class Stream>
  void talk(Stream& stream, Socket& socket) {
    std::string request;
    error_code error;
    const std::size_t head = asio::read_until(stream, asio::dynamic_buffer(request), "\r\n\r\n", error);
    if (error) return;
    const std::size_t whole = head + content_length(request);
    if (request.size() < whole) {
      asio::read(stream, asio::dynamic_buffer(request), asio::transfer_exactly(whole - request.size()),
                 error);
    }
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    const auto answer = answer_(request);
    if (answer) asio::write(stream, asio::buffer(*answer), error);
    if (!answer) silent_.push_back(std::move(socket));
  }

  const Answer answer_;
  std::string url_;
  asio::io_context context_;
  asio::basic_socket_acceptor<asio::generic::stream_protocol> acceptor_{context_};
  std::optional<asio::ssl::context> tls_;
  std::vector<Socket> silent_;
  mutable std::mutex mutex_;
  std::vector<std::string> requests_;
  std::thread thread_;
};

FakeServer::FakeServer(const std::string& transport, Answer answer)
    : implementation_(std::make_unique<Implementation>(transport, std::move(answer))) {}
FakeServer::~FakeServer() = default;

std::string FakeServer::url() const {
  return implementation_->url();
}

std::vector<std::string> FakeServer::requests() const {
  return implementation_->requests();
}

namespace {

std::string answer_of(int status, const std::string& type, const std::string& headers,
                      const std::string& body) {
  return "HTTP/1.1 " + std::to_string(status) + " Whatever\r\nContent-Type: " + type +
         "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + headers +
         "Connection: close\r\n\r\n" + body;
}

}  // namespace

std::string http_answer(int status, const std::string& body) {
  return answer_of(status, "application/json", "", body);
}

std::string problem_answer(int status, const std::string& body, const std::string& more_headers) {
  return answer_of(status, "application/problem+json", more_headers, body);
}

ClientRun run_portway(const std::vector<std::string>& words,
                      const std::vector<std::pair<std::string, std::string>>& environment) {
  std::ostringstream out;
  std::ostringstream err;
  Console console{.out = out, .err = err};
  const int exit = run_client(words, {environment.begin(), environment.end()}, console);
  return {.exit = exit, .out = out.str(), .err = err.str()};
}

}  // namespace portway::test
