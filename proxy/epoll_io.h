// Readiness from epoll, if io_uring is refused.
#pragma once

#include <memory>

#include "base/error.h"
#include "proxy/io.h"

namespace portway {

Result<std::unique_ptr<Io>> make_epoll_io();

}  // namespace portway
