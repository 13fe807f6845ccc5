// What the process asks of the kernel for itself: descriptors, its place on the processors, signals that it
// must survive, and what its heap keeps. Called by main, before there are other threads unless it says
// otherwise.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace portway {

/// Large blocks go back to the system as soon as they are freed.
void return_large_blocks();

/// Writes that fail report an error instead of ending the process.
void ignore_signals_of_writes();

/// Raises RLIMIT_NOFILE as far as it may. If that is not enough, it lowers connections_max and pipes_max in
/// `config`, so that nothing fails later. Returns how many descriptors are kept for listeners. At any time.
std::uint32_t raise_descriptor_limit(Config& config);

/// Lets the calling thread, the control thread or the store's, answer while the workers keep every core busy.
/// Short slices (Linux 6.12, sched_setattr(2)) let it run as soon as it has something to do; the nice value
/// needs CAP_SYS_NICE. Without them it is one thread among the others.
void prefer_this_thread();

}  // namespace portway
