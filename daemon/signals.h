// The signals that the daemon handles, on the thread of an io_context. It must live until the context no
// longer runs.
#pragma once

#include <signal.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <functional>
#include <utility>

namespace portway {

class Signals {
 public:
  struct Handlers {
    // SIGTERM, SIGINT.
    std::function<void(int signal)> stop;
    // SIGHUP.
    std::function<void()> reload;
    // SIGUSR1.
    std::function<void()> reopen;
    // SIGUSR2.
    std::function<void()> upgrade;
  };
  /// From now on, none of these signals ends the process.
  Signals(boost::asio::io_context& context, Handlers handlers)
      : signals_(context, SIGTERM, SIGINT, SIGHUP), handlers_(std::move(handlers)) {
    signals_.add(SIGUSR1);
    signals_.add(SIGUSR2);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  /// Handles signals from now on, and those that came since construction.
  void start() { wait(); }
  /// No handler is called after this.
  void stop() {
    stopped_ = true;
    signals_.cancel();
  }

 private:
  void wait() {
    signals_.async_wait([this](boost::system::error_code error, int signal) {
      if (error || stopped_) return;
      handle(signal);
      if (!stopped_) wait();
    });
  }
  void handle(int signal) {
    switch (signal) {
      case SIGHUP:
        return handlers_.reload();
      case SIGUSR1:
        return handlers_.reopen();
      case SIGUSR2:
        return handlers_.upgrade();
      default:
        return handlers_.stop(signal);
    }
  }

  boost::asio::signal_set signals_;
  const Handlers handlers_;
  bool stopped_ = false;
};

}  // namespace portway
