// Processor time, of the processes under test and of the whole machine.
#pragma once

#include <sys/types.h>

#include <vector>

namespace portway::bench {

struct CpuTime {
  double subject_s = 0;  // user and system time of the given processes, all their threads
  double machine_s =
      0;  // time no processor was idle or stolen, softirqs included: what a subject costs others shows here
};

/// The machine's from proc(5), in ticks of 10 ms: single short differences are inexact, but their sum is
/// exact. The processes' from their clocks, in ns. A process that is gone counts 0.
CpuTime read_cpu_time(const std::vector<pid_t>& subject);

}  // namespace portway::bench
