// Whether one client has most of a forward's connections. If so, it gets no more once they run short
// (proxy/fair_share.h).
#pragma once

#include "proxy/io.h"
#include "proxy/served_forward.h"

namespace portway {

/// Whether most of the forward's latest connections at this worker are from `source` (see source_of());
/// may be 100 ms old. On the worker's thread.
bool has_most(const ServedForward& forward, std::size_t worker, const IpAddress& source, Nanos now);

}  // namespace portway
