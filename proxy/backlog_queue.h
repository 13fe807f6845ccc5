// The clients that wait for room in the full backlog of a Unix socket: first come, first served.
//
// No event reports room in a backlog. So the first of them tries again, the longer the less often, and the
// others have their turn when it has left: however many wait, a socket costs one connect(2) at a time. All
// of them are connections of one worker. While there are any, a new client waits behind them, whichever
// forward it comes through and whichever worker accepts it.
//
// `clients` and `first_since` belong to that worker, the rest to any.
#pragma once

#include <atomic>
#include <boost/intrusive/list.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace portway {

struct InBacklog : boost::intrusive::list_base_hook<> {};

class BacklogQueue {
 public:
  explicit BacklogQueue(std::size_t of_worker) : worker(of_worker) {}

  /// Whether nobody waits: clients on their way to the worker do.
  bool empty() const { return waiting_.load(std::memory_order_relaxed) == 0; }

  /// While it lives, a client waits.
  class Place {
   public:
    Place() = default;
    explicit Place(std::shared_ptr<BacklogQueue> queue) : queue_(std::move(queue)) {
      queue_->waiting_.fetch_add(1);
    }
    Place(Place&&) = default;
    Place& operator=(Place&& other) noexcept {
      std::swap(queue_, other.queue_);
      return *this;
    }
    ~Place() {
      if (queue_) queue_->waiting_.fetch_sub(1);
    }

    explicit operator bool() const { return queue_ != nullptr; }
    std::size_t worker() const { return queue_->worker; }

   private:
    std::shared_ptr<BacklogQueue> queue_;
  };

  const std::size_t worker;                   // index
  boost::intrusive::list<InBacklog> clients;  // the next one to connect comes first
  std::chrono::nanoseconds first_since{0};    // since when it has been the first

 private:
  std::atomic<std::uint32_t> waiting_{0};
};

}  // namespace portway
