// Calls a function periodically on the thread of an io_context. It must live until the context no longer
// runs.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <utility>

namespace portway {

class Every {
 public:
  /// The first call is one period from now; each further one is one period after the previous one's end.
  Every(boost::asio::io_context& context, std::chrono::milliseconds period, std::function<void()> call)
      : timer_(context), period_(period), call_(std::move(call)) {
    wait();
  }
  Every(const Every&) = delete;
  Every& operator=(const Every&) = delete;

  /// No call comes after this.
  void stop() {
    stopped_ = true;
    timer_.cancel();
  }

 private:
  void wait() {
    timer_.expires_after(period_);
    timer_.async_wait([this](boost::system::error_code error) {
      if (error || stopped_) return;
      call_();
      if (!stopped_) wait();
    });
  }

  boost::asio::steady_timer timer_;
  const std::chrono::milliseconds period_;
  const std::function<void()> call_;
  bool stopped_ = false;
};

}  // namespace portway
