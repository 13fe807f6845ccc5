// Readiness from io_uring (Linux 5.19 or newer: multishot accept and poll, cancel by descriptor).
#pragma once

#include <memory>

#include "config/error.h"
#include "proxy/io.h"

namespace portway {

/// Sets up a ring and tries it. Fails, naming the likely cause, where io_uring is forbidden (EPERM: seccomp
/// or kernel.io_uring_disabled), missing (ENOSYS), short of memory (ENOMEM) or too old (EINVAL). The ring
/// belongs to the thread of its first wait(), which must also make the armed calls from then on.
Result<std::unique_ptr<Io>> make_uring_io();

}  // namespace portway
