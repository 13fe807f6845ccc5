// Locks for changes that wait for the disk: two changes of one thing come one after the other, in the order
// in which they asked. A lock is a name; it exists as long as somebody holds it or waits for it.
//
// To keep clear of deadlocks, a change takes its locks from the general to the special: the node, an
// instance, a forward.
//
// Control thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

namespace portway {

class ChangeLocks {
  struct State;

 public:
  ChangeLocks();

  /// A lock that is held until this is gone. It may outlive the ChangeLocks.
  class Held {
   public:
    Held() = default;
    Held(Held&& other) noexcept
        : state_(std::move(other.state_)), name_(std::move(other.name_)), alone_(other.alone_) {
      other.state_.reset();
    }
    Held& operator=(Held&& other) noexcept {
      std::swap(state_, other.state_);
      std::swap(name_, other.name_);
      std::swap(alone_, other.alone_);
      return *this;
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held();

   private:
    friend ChangeLocks;
    Held(std::shared_ptr<State> state, std::string name, bool alone)
        : state_(std::move(state)), name_(std::move(name)), alone_(alone) {}

    std::shared_ptr<State> state_;  // null: holds nothing
    std::string name_;
    bool alone_ = false;
  };

  /// Held together with others who share it.
  boost::asio::awaitable<Held> share(std::string name);
  /// Held alone.
  boost::asio::awaitable<Held> own(std::string name);

  /// Names that are held.
  std::size_t size() const;

 private:
  boost::asio::awaitable<Held> lock(std::string name, bool alone);

  const std::shared_ptr<State> state_;
};

}  // namespace portway
