// Tells when another process has ended, by pidfd_open(2) (Linux 5.3): at once, and never fooled by a reused
// pid.
#pragma once

#include <cstdint>
#include <utility>

#include "config/error.h"
#include "config/fd.h"

namespace portway {

/// When a process began, in clock ticks since boot (proc(5), field 22 of /proc/PID/stat): with the pid it
/// names one process for as long as the machine runs. kNotFound when there is no such process.
Result<std::uint64_t> process_start_time(std::int32_t pid);

class ProcessWatch {
 public:
  /// kNotFound when there is no such process now, kResourceExhausted when descriptors ran out.
  static Result<ProcessWatch> start(std::int32_t pid);

  /// Readable once the process has ended.
  int descriptor() const { return pidfd_.get(); }

 private:
  explicit ProcessWatch(Fd pidfd) : pidfd_(std::move(pidfd)) {}

  Fd pidfd_;
};

}  // namespace portway
