// Where a thread may write files (Landlock, Linux 5.13, Documentation/userspace-api/landlock.rst). What it
// may read stays as it is, and what is open already. The restriction is the thread's own, and that of threads
// and processes that it starts from then on; it also keeps the thread from looking into processes that are
// not restricted, as with ptrace(2).
#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace portway {

/// Restricts the calling thread for good: it makes, changes and removes files only beneath these directories,
/// of which those that do not exist count for nothing, and executes none. Nothing happens if the kernel has
/// no Landlock. Needs no_new_privs. kInternal if the kernel refuses.
Result<void> restrict_writing(const std::vector<std::string>& directories);

}  // namespace portway
