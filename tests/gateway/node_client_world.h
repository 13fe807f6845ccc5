// A client of nodes, nodes of all kinds, and the test's thread for all of them.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "api/http/server.h"
#include "gateway/node_client.h"
#include "tests/gateway/raw_node.h"
#include "tests/support/run.h"

namespace portway::test {

using namespace std::chrono_literals;

class NodeClientTest : public testing::Test {
 protected:
  /// Patient: other work may have the machine.
  static NodeClientOptions patient() {
    NodeClientOptions options;
    options.connect_timeout = options.answer_timeout = 60s;
    return options;
  }
  NodeClient& client(NodeClientOptions options = patient()) {
    client_ = NodeClient::create(context_.get_executor(), std::move(options)).value();
    return *client_;
  }
  RawNode& raw(RawNode::Script script) {
    raw_.push_back(std::make_unique<RawNode>(context_, std::move(script)));
    return *raw_.back();
  }
  /// The URL of a node that answers each request so, and keeps the connection.
  std::string always(const std::string& answer) {
    return raw([answer](RawPeer& peer) -> boost::asio::awaitable<void> {
             while (!(co_await peer.request()).empty()) co_await peer.send(answer);
           })
        .url();
  }
  /// The URL of a node that answers so, and closes.
  std::string once(const std::string& answer) {
    return raw([answer](RawPeer& peer) -> boost::asio::awaitable<void> {
             co_await peer.request();
             co_await peer.send(answer);
           })
        .url();
  }
  /// That of one that is silent.
  std::string silent() {
    return raw([](RawPeer& peer) -> boost::asio::awaitable<void> { co_await peer.wait_for_end(); }).url();
  }
  /// Where nobody listens.
  std::string dead() {
    const boost::asio::ip::tcp::acceptor bound(context_, {boost::asio::ip::address_v4::loopback(), 0});
    return "http://127.0.0.1:" + std::to_string(bound.local_endpoint().port());
  }
  /// That of a real server.
  std::string serve(RequestHandler handler, ServerOptions options = {}) {
    options.listen = Endpoint(boost::asio::ip::address_v4::loopback(), 0);
    const std::string scheme = options.tls.certificate.empty() ? "http" : "https";
    servers_.push_back(Server::start(context_, options, std::move(handler)).value());
    return scheme + "://127.0.0.1:" + std::to_string(std::get<Endpoint>(servers_.back()->address()).port());
  }
  /// That of a real server whose answers are made without waiting.
  std::string serve_at_once(std::function<Response(const Request&)> handler, ServerOptions options = {}) {
    return serve([handler](const Request& request) { return answer_at_once(handler(request)); },
                 std::move(options));
  }

  template <class Value>
  Value wait(boost::asio::awaitable<Value> what) {
    return run(context_, std::move(what));
  }
  template <class Condition>
  void run_until(const Condition& is_so) {
    context_.restart();
    while (!is_so()) context_.run_one();
  }

  NodeResult<NodeAnswer> ask(const std::string& url, NodeRequest request = {}) {
    return wait(client_->send(url, std::move(request)));
  }
  NodeAnswer answer_of(const std::string& url, NodeRequest request = {}) {
    auto answer = ask(url, std::move(request));
    if (!answer)
      throw std::runtime_error(std::string(to_string(answer.error().kind)) + answer.error().detail);
    return std::move(*answer);
  }
  /// How it fails, with an error that names the node, and is counted.
  NodeErrorKind error_of(const std::string& url, bool repeatable) {
    const auto before = client_->stats().errors;
    const auto answer = ask(url, {.repeatable = repeatable});
    EXPECT_FALSE(answer);
    if (answer) return NodeErrorKind::kClosed;
    EXPECT_THAT(answer.error().detail, testing::HasSubstr(url));
    const auto index = static_cast<std::size_t>(answer.error().kind);
    EXPECT_EQ(client_->stats().errors[index], before[index] + 1);
    return answer.error().kind;
  }
  /// Asks, and does not wait.
  void begin(const std::string& url, std::vector<NodeResult<NodeAnswer>>& answers) {
    boost::asio::co_spawn(context_, asking(client_->send(url, {}), answers), boost::asio::detached);
  }
  /// All of a stream; throws what came if it breaks off.
  std::string rest_of(BodyStream& stream) {
    std::string all;
    bool woken = true;
    stream.on_ready([&] { woken = true; });
    for (;;) {
      run_until([&] { return woken; });
      woken = false;
      for (;;) {
        const auto piece = stream.read();
        if (!piece && stream.is_broken()) throw std::runtime_error("broken after " + all);
        if (!piece) return all;
        if (piece->empty()) break;
        largest_piece_ = std::max(largest_piece_, piece->size());
        all += *piece;
      }
    }
  }

  boost::asio::io_context context_{1};
  std::vector<std::unique_ptr<RawNode>> raw_;
  std::vector<std::unique_ptr<Server>> servers_;
  std::unique_ptr<NodeClient> client_;
  std::size_t largest_piece_ = 0;

 private:
  static boost::asio::awaitable<void> asking(boost::asio::awaitable<NodeResult<NodeAnswer>> call,
                                             std::vector<NodeResult<NodeAnswer>>& answers) {
    answers.push_back(co_await std::move(call));
  }
};

/// "HTTP/1.1 200 OK" with its length.
inline std::string sized_answer(const std::string& body, const std::string& fields = "") {
  return "HTTP/1.1 200 OK\r\n" + fields + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
         body;
}

inline std::string chunked_head(const std::string& type) {
  return "HTTP/1.1 200 OK\r\nContent-Type: " + type + "\r\nTransfer-Encoding: chunked\r\n\r\n";
}

}  // namespace portway::test
