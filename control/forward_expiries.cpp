#include "control/forward_expiries.h"

#include <algorithm>
#include <chrono>

namespace portway {
namespace {

// Not for longer at a time: the timer's clock stops while the machine sleeps.
constexpr std::chrono::seconds kLookAtLeastEvery(60);

}  // namespace

ForwardExpiries::ForwardExpiries(boost::asio::io_context& context, std::function<Timestamp()> clock,
                                 std::function<void(const ForwardId&)> on_due)
    : timer_(context), clock_(std::move(clock)), on_due_(std::move(on_due)) {}

void ForwardExpiries::set(const ForwardId& id, std::optional<Timestamp> at) {
  if (const auto known = times_.find(id); known != times_.end()) {
    by_time_.erase({known->second, id});
    times_.erase(known);
  } else if (!at) {
    return;
  }
  if (at) {
    times_.emplace(id, *at);
    by_time_.emplace(*at, id);
  }
  wait();
}

void ForwardExpiries::look() {
  while (!by_time_.empty() && by_time_.begin()->first <= clock_()) {
    const ForwardId id = by_time_.begin()->second;
    by_time_.erase(by_time_.begin());
    times_.erase(id);
    on_due_(id);
  }
  wait();
}

void ForwardExpiries::wait() {
  if (by_time_.empty()) {
    timer_.cancel();
    return;
  }
  timer_.expires_after(std::clamp<std::chrono::milliseconds>(
      by_time_.begin()->first - clock_(), std::chrono::milliseconds(0), kLookAtLeastEvery));
  timer_.async_wait([this, alive = std::weak_ptr(alive_)](const boost::system::error_code& error) {
    if (!error && !alive.expired()) look();
  });
}

}  // namespace portway
