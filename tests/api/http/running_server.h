// A server over real sockets, on a thread of its own, and blocking clients for it.
#pragma once

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "api/http/server.h"
#include "base/fd.h"

namespace portway::test {

using namespace std::chrono_literals;

inline constexpr auto kDeadline = 20s;  // for what only a fault delays

inline const std::string kGet = "GET /ping HTTP/1.1\r\nHost: a\r\n\r\n";

struct Answer {
  int status = 0;
  std::map<std::string, std::string> headers;  // names as sent
  std::string body;
};

/// A blocking client; every call ends after kDeadline at the latest, with an exception.
class Client {
 public:
  Client() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const timeval timeout{.tv_sec = std::chrono::seconds(kDeadline).count(), .tv_usec = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    const int on = 1;
    ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  explicit Client(const Endpoint& server) : Client() {
    if (!connect(server)) throw std::runtime_error("connect failed");
  }
  explicit Client(const UnixPath& server) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    std::ranges::copy(server.path, address.sun_path);
    if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
      throw std::runtime_error("connect failed");
    }
  }

  bool connect(const Endpoint& server) {
    return ::connect(fd_.get(), server.data(), static_cast<socklen_t>(server.size())) == 0;
  }
  /// From another source than other clients, 127.0.0.`last`.
  Client(const Endpoint& server, std::uint8_t last) : Client() {
    const sockaddr_in own{.sin_family = AF_INET,
                          .sin_port = 0,
                          .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK + last - 1U)},
                          .sin_zero = {}};
    if (::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) < 0 || !connect(server)) {
      throw std::runtime_error("connect failed");
    }
  }

  /// False if the server has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
  }
  void send_bytewise(std::string_view bytes) {
    for (std::size_t i = 0; i < bytes.size(); ++i) send(bytes.substr(i, 1));
  }
  void finish() { ::shutdown(fd_.get(), SHUT_WR); }

  /// True as soon as there is something to receive, FIN included.
  bool wait_readable(std::chrono::milliseconds timeout) {
    pollfd readable{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    return !received_.empty() || ::poll(&readable, 1, static_cast<int>(timeout.count())) > 0;
  }

  /// Header and body; `bodiless` for what answers HEAD.
  Answer receive(bool bodiless = false) {
    std::size_t end;
    while ((end = received_.find("\r\n\r\n")) == std::string::npos) {
      if (!receive_more()) throw std::runtime_error("no answer, but " + received_);
    }
    const std::string header = take(end + 4);
    Answer answer;
    answer.status = std::stoi(header.substr(9));
    for (std::size_t line = header.find("\r\n") + 2; line < header.size() - 2;) {
      const std::size_t colon = header.find(": ", line);
      const std::size_t eol = header.find("\r\n", line);
      answer.headers[header.substr(line, colon - line)] = header.substr(colon + 2, eol - colon - 2);
      line = eol + 2;
    }
    if (bodiless || answer.headers.count("Content-Length") == 0) return answer;
    const auto length = std::stoul(answer.headers["Content-Length"]);
    while (received_.size() < length) {
      if (!receive_more()) throw std::runtime_error("the body is cut: " + received_);
    }
    answer.body = take(length);
    return answer;
  }
  Answer call(std::string_view request) {
    send(request);
    return receive();
  }

  /// 1 to `most` bytes.
  std::string receive_some(std::size_t most) {
    if (received_.empty() && !receive_more()) throw std::runtime_error("the end");
    return take(std::min(most, received_.size()));
  }

  /// What arrives until the end, by FIN or RST.
  std::string receive_to_end() {
    while (receive_more()) {
    }
    return take(received_.size());
  }

  int descriptor() const { return fd_.get(); }

 private:
  bool receive_more() {
    char buffer[16384];
    const auto got = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (got < 0 && errno != ECONNRESET) throw std::runtime_error("nothing comes");
    if (got > 0) received_.append(buffer, static_cast<std::size_t>(got));
    return got > 0;
  }
  std::string take(std::size_t size) {
    std::string taken = received_.substr(0, size);
    received_.erase(0, size);
    return taken;
  }

  Fd fd_;
  std::string received_;
};

inline Response make_response(unsigned status, std::string body) {
  Response response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

inline Response echo(const Request& request) {
  return make_response(200, request.method + " " + request.target + " " + request.body);
}

inline boost::asio::awaitable<Response> echo_at_once(const Request& request) {
  return answer_at_once(echo(request));
}

using PlainHandler = std::function<Response(const Request&)>;

/// A server on loopback, unless the options name a Unix socket, on a thread of its own.
class Running {
 public:
  explicit Running(ServerOptions options = {}, PlainHandler handler = echo)
      : Running(std::move(options), RequestHandler([handler = std::move(handler)](const Request& request) {
                  return answer_at_once(handler(request));
                })) {}
  Running(ServerOptions options, RequestHandler handler) {
    if (!std::holds_alternative<UnixPath>(options.listen)) {
      options.listen = Endpoint(boost::asio::ip::address_v4::loopback(), 0);
    }
    server_ = Server::start(context_, options, std::move(handler)).value();
    address_ = server_->address();
    thread_ = std::thread([this] { context_.run(); });
  }
  ~Running() {
    destroy_server();
    join();
  }

  const Endpoint& endpoint() const { return std::get<Endpoint>(address_); }

  void stop() {
    on_its_thread([this] {
      server_->stop();
      return 0;
    });
  }
  void destroy_server() {
    if (!server_) return;
    on_its_thread([this] {
      server_.reset();
      return 0;
    });
  }
  /// Returns when the server has left the context nothing to do.
  void join() {
    keep_running_.reset();
    if (thread_.joinable()) thread_.join();
  }

  ServerStats stats() {
    return on_its_thread([this] { return server_->stats(); });
  }
  /// Polls on the server's thread until it is so; fails the test after the deadline.
  void wait_until(const std::function<bool(const ServerStats&)>& is_so) {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (!on_its_thread([&] { return is_so(server_->stats()); })) {
      if (std::chrono::steady_clock::now() > deadline)
        throw std::runtime_error("what was awaited does not happen");
      std::this_thread::yield();
    }
  }

  Server& server() { return *server_; }
  template <class Function>
  auto on_its_thread(Function function) -> decltype(function()) {
    if (!thread_.joinable()) return function();  // it has ended
    std::promise<decltype(function())> result;
    boost::asio::post(context_, [&] { result.set_value(function()); });
    return result.get_future().get();
  }

 private:
  boost::asio::io_context context_{1};
  std::optional<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>> keep_running_{
      boost::asio::make_work_guard(context_)};
  std::unique_ptr<Server> server_;
  ListenAddress address_;
  std::thread thread_;
};

/// The server itself refused with a complete answer and then closed.
inline void expect_refusal(Client& client, int status, std::string_view code) {
  Answer answer = client.receive();
  EXPECT_EQ(answer.status, status) << answer.body;
  EXPECT_EQ(answer.headers["Content-Type"], "application/problem+json");
  EXPECT_NE(answer.headers["Connection"], "keep-alive");
  EXPECT_THAT(answer.body, testing::HasSubstr("\"" + std::string(code) + "\""));
  EXPECT_THAT(answer.body, testing::HasSubstr(answer.headers["X-Request-Id"]));
  client.finish();
  EXPECT_EQ(client.receive_to_end(), "");
}

}  // namespace portway::test
