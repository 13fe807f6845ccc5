#include "gateway/node_stream.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <optional>
#include <utility>

#include "base/into.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using Clock = HttpConnection::Clock;

constexpr std::size_t kWaitingMax = 64U << 10;

/// What the stream shares with the coroutine that reads for it.
struct NodeBody {
  NodeBody(std::unique_ptr<NodeLease> from, std::string first, std::chrono::milliseconds silence)
      : lease(std::move(from)),
        waiting(std::move(first)),
        silence_max(silence),
        taken(lease->pool().executor(), Clock::time_point::max()) {}

  std::unique_ptr<NodeLease> lease;  // null: nothing more is read
  std::string waiting;               // to be taken
  const std::chrono::milliseconds silence_max;
  std::function<void()> wake;
  asio::steady_timer taken;  // cancelled when something was
  bool is_broken = false;
};

asio::awaitable<void> read_for(std::shared_ptr<NodeBody> body) {
  const auto connection = body->lease != nullptr ? body->lease->connection() : nullptr;
  while (body->lease != nullptr) {
    if (body->waiting.size() >= kWaitingMax) {
      boost::system::error_code ignored;
      co_await body->taken.async_wait(into(ignored));
      continue;
    }
    const std::size_t room = kWaitingMax - body->waiting.size();
    const auto piece = co_await connection->read_body(room, Clock::now() + body->silence_max);
    if (body->lease == nullptr) break;  // the stream was destroyed
    if (piece && !piece->empty()) {
      body->waiting += *piece;
    } else {
      body->is_broken = !piece;
      if (!piece) ++body->lease->pool().counters().streams_broken;
      if (piece) body->lease->give_back();
      body->lease.reset();
    }
    const auto wake = body->wake;  // which may destroy the stream
    if (wake) wake();
  }
}

class NodeStream final : public BodyStream {
 public:
  explicit NodeStream(std::shared_ptr<NodeBody> body) : body_(std::move(body)) {}
  ~NodeStream() override {
    body_->wake = nullptr;
    body_->lease.reset();
    body_->taken.cancel();
  }

  void on_ready(std::function<void()> wake) override { body_->wake = std::move(wake); }

  std::optional<std::string> read() override {
    std::string& waiting = body_->waiting;
    if (waiting.empty()) return body_->lease == nullptr ? std::nullopt : std::optional(std::string());
    std::string piece;
    if (waiting.size() <= kWaitingMax) {
      piece = std::exchange(waiting, {});
    } else {
      piece = waiting.substr(0, kWaitingMax);
      waiting.erase(0, kWaitingMax);
    }
    body_->taken.cancel();
    return piece;
  }

  bool is_broken() const override { return body_->is_broken; }

 private:
  const std::shared_ptr<NodeBody> body_;
};

}  // namespace

std::shared_ptr<BodyStream> stream_from_node(std::unique_ptr<NodeLease> lease, std::string first,
                                             std::chrono::milliseconds silence_max) {
  auto& pool = lease->pool();
  const auto body = std::make_shared<NodeBody>(std::move(lease), std::move(first), silence_max);
  asio::co_spawn(pool.executor(), read_for(body), asio::detached);
  return std::make_shared<NodeStream>(body);
}

}  // namespace portway
