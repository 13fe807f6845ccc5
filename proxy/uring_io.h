// Readiness from io_uring (Linux 5.19 or newer: multishot poll, cancel by descriptor).
#pragma once

#include <functional>
#include <memory>

#include "base/error.h"
#include "proxy/io.h"

struct io_uring;

namespace portway {

/// Submits what is in the ring's queue and waits as Io::wait() does; -errno if the kernel refuses.
int enter_uring(io_uring& ring, Nanos timeout);
using UringEnter = std::function<int(io_uring& ring, Nanos timeout)>;

/// Sets up a ring and tries it. Fails, naming the likely cause, if io_uring is forbidden (EPERM: seccomp
/// or kernel.io_uring_disabled), missing (ENOSYS), short of memory (ENOMEM) or too old (EINVAL). The ring
/// belongs to the thread of its first wait(), which must also make the armed calls from then on.
Result<std::unique_ptr<Io>> make_uring_io();
/// For tests with a kernel that refuses or loses completions.
Result<std::unique_ptr<Io>> make_uring_io(UringEnter enter);

}  // namespace portway
