// A node that does what a test's script says, on the test's thread.
#pragma once

#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/into.h"

namespace portway::test {

/// Its end of a connection.
class RawPeer {
 public:
  using Socket = boost::asio::ip::tcp::socket;

  explicit RawPeer(Socket socket) : socket_(std::move(socket)) {}

  /// The head of the next request; empty at the end.
  boost::asio::awaitable<std::string> request() {
    boost::system::error_code error;
    for (;;) {
      const auto end = received_.find("\r\n\r\n");
      if (end != std::string::npos) {
        std::string head = received_.substr(0, end + 4);
        received_.erase(0, end + 4);
        co_return head;
      }
      if (error) co_return std::string();
      co_await more(error);
    }
  }
  /// False if the client has closed.
  boost::asio::awaitable<bool> send(std::string bytes) {
    boost::system::error_code error;
    co_await boost::asio::async_write(socket_, boost::asio::buffer(bytes), into(error));
    co_return !error;
  }
  /// Until the client closes.
  boost::asio::awaitable<void> wait_for_end() {
    boost::system::error_code error;
    while (!error) co_await more(error);
  }

 private:
  boost::asio::awaitable<void> more(boost::system::error_code& error) {
    std::array<char, 4096> buffer;
    const std::size_t size = co_await socket_.async_read_some(boost::asio::buffer(buffer), into(error));
    received_.append(buffer.data(), size);
  }

  Socket socket_;
  std::string received_;
};

/// Plays the script with each connection, until that returns.
class RawNode {
 public:
  using Script = std::function<boost::asio::awaitable<void>(RawPeer& peer)>;

  RawNode(boost::asio::io_context& context, Script script)
      : acceptor_(context, {boost::asio::ip::address_v4::loopback(), 0}), script_(std::move(script)) {
    boost::asio::co_spawn(context, accept(), boost::asio::detached);
  }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port()); }
  int connections() const { return connections_; }  // accepted
  int ended() const { return ended_; }              // scripts

 private:
  boost::asio::awaitable<void> accept() {
    for (;;) {
      boost::system::error_code error;
      RawPeer::Socket socket = co_await acceptor_.async_accept(into(error));
      if (error) co_return;
      ++connections_;
      boost::asio::co_spawn(acceptor_.get_executor(), play(std::move(socket)), boost::asio::detached);
    }
  }
  boost::asio::awaitable<void> play(RawPeer::Socket socket) {
    RawPeer peer(std::move(socket));
    co_await script_(peer);
    ++ended_;
  }

  boost::asio::ip::tcp::acceptor acceptor_;
  const Script script_;
  int connections_ = 0;
  int ended_ = 0;
};

}  // namespace portway::test
