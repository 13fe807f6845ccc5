// The connections of a NodeClient: those in use, which are bounded, and idle ones. Not for use by others; see
// node_client.h.
//
// Runs on its executor, which is single-threaded. Kept alive by what is under way.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "fleet/http_connection.h"
#include "gateway/node_client.h"

namespace portway {

/// The place of one connection in use. Its end closes the connection, unless that was given back.
class NodeLease {
 public:
  NodeLease(std::shared_ptr<NodePool> pool, HttpEndpoint endpoint);
  ~NodeLease();
  NodeLease(const NodeLease&) = delete;
  NodeLease& operator=(const NodeLease&) = delete;

  /// Takes a kept connection. False: there is none.
  bool take_idle();
  /// Opens a new one in place of the one before.
  boost::asio::awaitable<HttpResult<void>> open(HttpConnection::Clock::time_point deadline);
  /// For the next one, if it can be used again.
  void give_back();

  /// Null before the first of these, and after the last.
  const std::shared_ptr<HttpConnection>& connection() const { return connection_; }
  NodePool& pool() { return *pool_; }

 private:
  const std::shared_ptr<NodePool> pool_;
  const HttpEndpoint endpoint_;
  std::shared_ptr<HttpConnection> connection_;
  const std::list<NodeLease*>::iterator place_;
};

class NodePool : public std::enable_shared_from_this<NodePool> {
 public:
  using Clock = HttpConnection::Clock;

  NodePool(boost::asio::any_io_executor executor, NodeClientOptions options);

  /// kBusy or kClosed.
  NodeResult<std::unique_ptr<NodeLease>> lease(const HttpEndpoint& endpoint);

  /// Closes all connections.
  void close();

  const boost::asio::any_io_executor& executor() const { return executor_; }
  const NodeClientOptions& options() const { return options_; }
  NodeClientStats& counters() { return counters_; }
  NodeClientStats stats() const;

 private:
  friend NodeLease;
  struct Idle {
    std::shared_ptr<HttpConnection> connection;
    Clock::time_point since;
  };

  std::shared_ptr<HttpConnection> take(const HttpEndpoint& endpoint);
  void keep(std::shared_ptr<HttpConnection> connection);
  void make_room_for(const std::string& url);
  void expect_expiry();
  void drop_expired();

  const boost::asio::any_io_executor executor_;
  const NodeClientOptions options_;
  std::list<NodeLease*> leases_;
  std::map<std::string, std::size_t> in_use_;  // leases, by the node's URL
  std::list<Idle> idle_;                       // oldest first
  boost::asio::steady_timer expiry_;           // of the oldest one
  NodeClientStats counters_;
  bool is_closed_ = false;
};

}  // namespace portway
