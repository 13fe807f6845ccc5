// What the kernel reports about this process, under the names that every Prometheus client uses.
#pragma once

#include <cstdint>

namespace portway {

struct ProcessStats {
  std::uint64_t open_fds = 0;
  // The soft RLIMIT_NOFILE.
  std::uint64_t max_fds = 0;
  // User space only, without the kernel's buffers of sockets and pipes.
  std::uint64_t resident_bytes = 0;
  // User and system, all threads.
  double cpu_seconds = 0;
  // Since the epoch.
  double start_time_seconds = 0;
};

/// Reads getrlimit(2), clock_gettime(2) and proc(5) now; a value that cannot be read is 0. Any thread.
ProcessStats read_process_stats();

}  // namespace portway
