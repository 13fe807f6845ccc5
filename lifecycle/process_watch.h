// Tells when another process has ended, by pidfd_open(2) (Linux 5.3): at once, and never fooled by a reused
// pid.
//
// Not being able to see a process is not its end: descriptors or memory may have run out, a seccomp filter
// may refuse the call, and /proc may be hidden or not mounted. Only what says that it is gone counts: ESRCH,
// a zombie, or another process with its pid.
#pragma once

#include <cstdint>

#include "base/fd.h"

namespace portway {

enum class ProcessState : std::uint8_t {
  kRuns,    // and descriptor() reports its end
  kUnseen,  // nothing says that it has ended, and nothing will tell: look() again
  kEnded,
};

class ProcessWatch {
 public:
  /// `started` as started() was when the process was first watched; 0: it is not known, and the process that
  /// has the pid now is the one.
  ProcessWatch(std::int32_t pid, std::uint64_t started) : pid_(pid), started_(started) {}

  /// How it stands now. Tries again to get what could not be had before.
  ProcessState look();

  /// Readable once the process has ended, also before look() has found that it is the one that is meant; -1
  /// where there is none.
  int descriptor() const { return pidfd_.get(); }

  /// When the process began, in clock ticks since boot (proc(5), field 22 of /proc/PID/stat): with the pid it
  /// names one process for as long as the machine runs. 0: not known yet.
  std::uint64_t started() const { return started_; }

 private:
  std::int32_t pid_;
  std::uint64_t started_;
  bool is_the_one_ = false;  // behind pidfd_ is the process that began then
  Fd pidfd_;
};

}  // namespace portway
