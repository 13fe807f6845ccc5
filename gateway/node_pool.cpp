#include "gateway/node_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace portway {

namespace asio = boost::asio;

NodeLease::NodeLease(std::shared_ptr<NodePool> pool, HttpEndpoint endpoint)
    : pool_(std::move(pool)),
      endpoint_(std::move(endpoint)),
      place_(pool_->leases_.insert(pool_->leases_.end(), this)) {
  ++pool_->in_use_[endpoint_.url];
}

NodeLease::~NodeLease() {
  if (connection_ != nullptr) connection_->close();
  pool_->leases_.erase(place_);
  const auto count = pool_->in_use_.find(endpoint_.url);
  if (--count->second == 0) pool_->in_use_.erase(count);
}

bool NodeLease::take_idle() {
  connection_ = pool_->take(endpoint_);
  return connection_ != nullptr;
}

asio::awaitable<HttpResult<void>> NodeLease::open(HttpConnection::Clock::time_point deadline) {
  if (connection_ != nullptr) connection_->close();
  connection_ = std::make_shared<HttpConnection>(pool_->executor_, endpoint_);
  if (pool_->is_closed_) connection_->close();
  const auto connection = connection_;
  const auto opened = co_await connection->open(pool_->options_.tls, deadline);
  if (opened) ++pool_->counters_.connections_opened;
  co_return opened;
}

void NodeLease::give_back() {
  pool_->keep(std::exchange(connection_, nullptr));
}

NodePool::NodePool(asio::any_io_executor executor, NodeClientOptions options)
    : executor_(std::move(executor)), options_(std::move(options)), expiry_(executor_) {}

NodeResult<std::unique_ptr<NodeLease>> NodePool::lease(const HttpEndpoint& endpoint) {
  if (is_closed_) {
    return NodeError{.kind = NodeErrorKind::kClosed, .detail = endpoint.url + ": the client was closed"};
  }
  const auto here = in_use_.find(endpoint.url);
  if (here != in_use_.end() && here->second >= options_.connections_per_node_max) {
    return NodeError{.kind = NodeErrorKind::kBusy,
                     .detail = fmt::format(
                         "{}: {} requests to this node are under way, as many as may be; try again later",
                         endpoint.url, here->second)};
  }
  if (leases_.size() >= options_.connections_max) {
    return NodeError{
        .kind = NodeErrorKind::kBusy,
        .detail = fmt::format("{}: {} requests to nodes are under way, as many as may be; try again later",
                              endpoint.url, leases_.size())};
  }
  return std::make_unique<NodeLease>(shared_from_this(), endpoint);
}

void NodePool::close() {
  is_closed_ = true;
  // Each only closes sockets and timers, so that what waits for them goes on later.
  for (const NodeLease* lease : leases_) {
    if (lease->connection() != nullptr) lease->connection()->close();
  }
  idle_.clear();
  expiry_.cancel();
}

NodeClientStats NodePool::stats() const {
  NodeClientStats out = counters_;
  out.connections_idle = idle_.size();
  out.connections_open =
      idle_.size() + static_cast<std::size_t>(std::ranges::count_if(leases_, [](const NodeLease* lease) {
        return lease->connection() != nullptr && !lease->connection()->is_closed();
      }));
  return out;
}

std::shared_ptr<HttpConnection> NodePool::take(const HttpEndpoint& endpoint) {
  for (auto entry = idle_.end(); entry != idle_.begin();) {
    --entry;
    if (entry->connection->endpoint().url != endpoint.url) continue;
    auto connection = std::move(entry->connection);
    entry = idle_.erase(entry);
    if (connection->is_reusable()) return connection;
  }
  return nullptr;
}

void NodePool::keep(std::shared_ptr<HttpConnection> connection) {
  if (is_closed_ || options_.idle_max == 0 || options_.idle_per_node_max == 0 || !connection->is_reusable()) {
    connection->close();
    return;
  }
  make_room_for(connection->endpoint().url);
  idle_.push_back({.connection = std::move(connection), .since = Clock::now()});
  if (idle_.size() == 1) expect_expiry();
}

void NodePool::make_room_for(const std::string& url) {
  const auto is_there = [&](const Idle& entry) { return entry.connection->endpoint().url == url; };
  if (std::ranges::count_if(idle_, is_there) >= static_cast<std::ptrdiff_t>(options_.idle_per_node_max)) {
    idle_.erase(std::ranges::find_if(idle_, is_there));
  } else if (idle_.size() >= options_.idle_max) {
    idle_.pop_front();
  }
}

void NodePool::expect_expiry() {
  expiry_.expires_at(idle_.front().since + options_.idle_timeout);
  expiry_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (!error && self != nullptr) self->drop_expired();
  });
}

void NodePool::drop_expired() {
  const auto now = Clock::now();
  while (!idle_.empty() && idle_.front().since + options_.idle_timeout <= now) idle_.pop_front();
  if (!idle_.empty()) expect_expiry();
}

}  // namespace portway
