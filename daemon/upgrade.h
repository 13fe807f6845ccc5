// Replaces this process by a new one of the binary that is installed now, without losing a connection:
// SIGUSR2.
//
// First the new binary checks the configuration. Then it is started, and asks for what this one has
// (handover/transfer.h). Only then does this one pause, for as long as the new one takes to begin. If it does
// not begin, this one resumes.
#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "daemon/privileges/unconfined_thread.h"

namespace portway {

class Upgrade {
 public:
  /// Hands everything to whoever is at the other end of the socket. Returns only if it did not take it, and
  /// once that process has ended.
  using HandOver = std::function<Error(const Fd& successor, pid_t process)>;

  struct Steps {
    /// Ends what must not be under way when this process hands over; then calls `then`.
    std::function<void(std::function<void()> then)> prepare;
    HandOver hand_over;
    /// This process continues.
    std::function<void(const std::string& why)> on_failure;
  };
  /// `path`: where the successor asks; see Predecessor::await().
  /// `starter`: by which processes are started.
  Upgrade(boost::asio::io_context& context, UnconfinedThread& starter, std::string path, Steps steps);

  /// Returns at once; what comes of it is logged. Not while running().
  void start();
  bool running() const { return running_; }
  /// Nothing is started any more, and what was started ends.
  void stop();

 private:
  using Then = std::function<void()>;
  void spawn(std::vector<std::string> extra_arguments, Then on_exit);
  void await_exit(Then then);
  void wait_with_patience();
  void on_checked();
  void await_successor();
  void on_successor();
  void fail(const std::string& why);
  void close_listener();

  boost::asio::io_context& context_;
  UnconfinedThread& starter_;
  const std::string path_;
  const Steps steps_;
  const std::vector<std::string> arguments_;
  const std::string program_;
  bool running_ = false;
  pid_t process_ = 0;  // the new one; 0: none
  int status_ = 0;     // with which it has ended
  std::optional<boost::asio::posix::stream_descriptor> exit_;
  std::optional<boost::asio::posix::stream_descriptor> listener_;
  Fd successor_;  // waits for what it has asked for
  boost::asio::steady_timer patience_;
};

}  // namespace portway
