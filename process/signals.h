// The signals that the daemon handles, on the thread of an io_context. It must live until the context no
// longer runs. No other thread may get signals (base/blocked_signals.h).
//
// They wait in the kernel until they are handled, and interrupt nothing: what is not handled here any more
// can be passed on to a successor.
#pragma once

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace portway {

/// Of what the kernel sends itself (a terminal's SIGINT), process 0.
struct SignalSender {
  std::uint32_t uid = 0;
  std::uint32_t pid = 0;
};

class Signals {
 public:
  struct Handlers {
    // SIGTERM, SIGINT.
    std::function<void(int signal, const SignalSender& sender)> stop;
    // SIGHUP.
    std::function<void(const SignalSender& sender)> reload;
    // SIGUSR1.
    std::function<void()> reopen;
    // SIGUSR2.
    std::function<void(const SignalSender& sender)> upgrade;
  };
  /// From now on, none of these signals ends the process.
  Signals(boost::asio::io_context& context, Handlers handlers)
      : signals_(context, block()), handlers_(std::move(handlers)) {}
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  /// Handles signals from now on, and those that came since construction.
  void start() { wait(); }
  /// No handler is called after this.
  void stop() {
    stopped_ = true;
    signals_.cancel();
  }
  /// Those that have come and are not handled: they are the caller's.
  std::vector<std::pair<int, SignalSender>> take() {
    std::vector<std::pair<int, SignalSender>> all;
    signalfd_siginfo signal{};
    while (::read(signals_.native_handle(), &signal, sizeof signal) == sizeof signal)
      all.emplace_back(static_cast<int>(signal.ssi_signo), SignalSender{signal.ssi_uid, signal.ssi_pid});
    return all;
  }

 private:
  static int block() {
    sigset_t handled;
    sigemptyset(&handled);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) sigaddset(&handled, signal);
    ::pthread_sigmask(SIG_BLOCK, &handled, nullptr);
    return ::signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
  }
  void wait() {
    signals_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                        [this](boost::system::error_code error) {
                          if (error) return;
                          for (const auto& [signal, sender] : take()) {
                            if (!stopped_) handle(signal, sender);
                          }
                          if (!stopped_) wait();
                        });
  }
  void handle(int signal, const SignalSender& sender) {
    switch (signal) {
      case SIGHUP:
        return handlers_.reload(sender);
      case SIGUSR1:
        return handlers_.reopen();
      case SIGUSR2:
        return handlers_.upgrade(sender);
      default:
        return handlers_.stop(signal, sender);
    }
  }

  boost::asio::posix::stream_descriptor signals_;
  const Handlers handlers_;
  bool stopped_ = false;
};

}  // namespace portway
