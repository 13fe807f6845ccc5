// A thread that has started may be confined to the system calls that it needs (seccomp(2)): those of the
// threads that parse what strangers send, of the workers, and of the store's thread, which are listed in
// allowed_calls.h.
//
// Any other call is refused with EPERM, counted, and reported once by its name; the daemon continues. The
// kernel raises SIGSYS in place of the call, and its handler notes the number and makes the call return
// EPERM. That needs no supervisor, and no audit daemon. A call by another architecture's numbers (int 0x80,
// x32) ends the process: nothing here makes one.
//
// A filter is a thread's own, and of all threads and processes that it starts from then on. So the control
// thread is confined last, and processes are started by a thread that is not confined
// (daemon/child_process.h): a new binary has filters of its own. Threads share their memory: whoever can make
// one of them write anywhere, can make another, unconfined one do what this one may not. The filter makes
// that a second thing to be found.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace portway {

enum class ConfinedThread : std::uint8_t { kControl, kWorker, kStore };
std::string_view to_string(ConfinedThread thread);

/// Confines the calling thread for good. Any thread, once; SIGSYS gets through to it from then on. kInternal
/// if the kernel has no seccomp filters; then nothing has changed.
Result<void> confine_this_thread(ConfinedThread thread);

/// How often a call was refused in this process. Any thread.
std::uint64_t refused_calls();

struct RefusedCall {
  std::string name;  // or its number
  ConfinedThread thread;
};
/// Those that have been refused for the first time since the last call of this function. One thread at a
/// time.
std::vector<RefusedCall> take_refused_calls();

}  // namespace portway
