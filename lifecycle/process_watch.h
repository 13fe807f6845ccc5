// Reports when another process has ended, by pidfd_open(2) (Linux 5.3): at once, and never confused by a
// reused pid.
//
// A process that cannot be seen need not have ended: descriptors or memory may have run out, a seccomp
// filter may refuse the call, and /proc may be hidden or not mounted. Only proof counts: ESRCH, a zombie,
// or another process with its pid.
#pragma once

#include <cstdint>

#include "base/fd.h"

namespace portway {

enum class ProcessState : std::uint8_t {
  kRuns,    // and descriptor() reports its end
  kUnseen,  // no proof that it has ended, and no event will report it: look() again
  kEnded,
};

class ProcessWatch {
 public:
  /// `started` is what started() returned when the process was first watched; 0: unknown, watch the
  /// process that has the pid now.
  ProcessWatch(std::int32_t pid, std::uint64_t started) : pid_(pid), started_(started) {}

  /// The current state. Retries what failed before.
  ProcessState look();

  /// Readable once the process has ended, even before look() has found that it is the right one; -1 if
  /// there is none.
  int descriptor() const { return pidfd_.get(); }

  std::int32_t pid() const { return pid_; }

  /// When the process began, in clock ticks since boot (proc(5), field 22 of /proc/PID/stat): with the pid
  /// it identifies one process until the node reboots. 0: not known yet.
  std::uint64_t started() const { return started_; }

 private:
  std::int32_t pid_;
  std::uint64_t started_;
  bool is_the_one_ = false;  // pidfd_ is of the process that started at started_
  Fd pidfd_;
};

}  // namespace portway
