// What the kernel says of this process, under the names that every Prometheus client uses.
#pragma once

#include <cstdint>

namespace portway {

struct ProcessStats {
  std::uint64_t open_fds = 0;
  std::uint64_t max_fds = 0;         // the soft RLIMIT_NOFILE
  std::uint64_t resident_bytes = 0;  // of user space: sockets' and pipes' buffers are the kernel's
  double cpu_seconds = 0;            // user and system, all threads
  double start_time_seconds = 0;     // since the epoch
};

/// Read now, from getrlimit(2), clock_gettime(2) and proc(5); what cannot be read is 0. Any thread.
ProcessStats read_process_stats();

}  // namespace portway
