// What the daemon's threads are confined to, by its configuration (process.sandbox): the system calls of
// their kind (seccomp.h), and, where the kernel has Landlock, for the control thread writing in the
// directories of the store, the key, the logs and the Unix sockets, for a worker writing nowhere
// (landlock.h). Both end with the process: what an upgrade starts has a configuration of its own, and is
// started by a thread that is in neither (unconfined_thread.h).
#pragma once

#include "config/config.h"
#include "daemon/privileges/seccomp.h"
#include "daemon/privileges/unconfined_thread.h"

namespace portway {

/// Has what confined threads may not do be done there. Before they start; it outlives them.
void prepare_sandbox(UnconfinedThread& unconfined);

/// Confines the calling thread for good, or logs why it cannot be, and it continues as it is. Nothing if the
/// configuration says so, or in a build with sanitizers: their runtimes make calls of their own.
void enter_sandbox(const Config& config, ConfinedThread thread);

/// Logs each call that has been refused for the first time. Control thread.
void log_refused_calls();

}  // namespace portway
