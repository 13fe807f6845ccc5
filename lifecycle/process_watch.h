// Tells when another process has ended, by pidfd_open(2) (Linux 5.3): at once, and never fooled by a reused
// pid.
//
// Runs on one Asio io_context, whose thread makes all calls and gets the callback.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <functional>
#include <memory>

#include "config/error.h"

namespace portway {

/// When a process began, in clock ticks since boot (proc(5), field 22 of /proc/PID/stat): with the pid it
/// names one process for as long as the machine runs. kNotFound when there is no such process.
Result<std::uint64_t> process_start_time(std::int32_t pid);

class ProcessWatch {
 public:
  /// Calls `on_end` once, when `pid` has ended, unless destroyed before. kNotFound when there is no such
  /// process now, kResourceExhausted when descriptors ran out.
  static Result<std::unique_ptr<ProcessWatch>> start(boost::asio::io_context& context, std::int32_t pid,
                                                     std::function<void()> on_end);
  ProcessWatch(const ProcessWatch&) = delete;
  ProcessWatch& operator=(const ProcessWatch&) = delete;

 private:
  ProcessWatch(boost::asio::io_context& context, int pidfd) : pidfd_(context, pidfd) {}

  boost::asio::posix::stream_descriptor pidfd_;
  const std::shared_ptr<void> alive_ =
      std::make_shared<char>();  // a callback already queued looks here first
};

}  // namespace portway
