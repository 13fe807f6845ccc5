// The process's own settings: descriptor limit, scheduling, signals that it must survive, and the heap.
// Called by main before there are other threads, unless stated otherwise.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace portway {

/// Makes the heap return large blocks to the system as soon as they are freed.
void return_large_blocks();

/// Makes failing writes report an error instead of ending the process.
void ignore_signals_of_writes();

/// Raises RLIMIT_NOFILE as far as permitted. If that is not enough, lowers connections_max and pipes_max
/// in `config`, so nothing fails later. Returns how many descriptors are kept for listeners. May be called
/// at any time.
std::uint32_t raise_descriptor_limit(Config& config);

/// Lets rings of io_uring be as large as they are, if permitted: they count against RLIMIT_MEMLOCK.
void raise_memory_lock_limit();

/// Lets the calling thread (the control thread or the store's) answer while the workers keep every core
/// busy. A short slice (Linux 6.12, sched_setattr(2)) lets it run as soon as it has something to do; the
/// nice value needs CAP_SYS_NICE. Without both it is scheduled like the others.
void prefer_this_thread();

}  // namespace portway
