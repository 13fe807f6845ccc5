// Forwards as request bodies have them.
//
// Control thread.
#pragma once

#include <cstddef>

#include "api/http/message.h"
#include "base/error.h"
#include "base/forward.h"

namespace portway {

// `now` is when a `ttl_seconds` begins.

/// A body that is one forward.
Result<ForwardSpec> read_forward(const Request& request, Timestamp now);
/// The list "port_forwards", of at least so many entries. One with `host_ports` becomes as many specs, whose
/// guest and host ports count up together.
Result<ForwardList> read_forwards(const Request& request, std::size_t least, Timestamp now);
/// A merge patch (RFC 7396) of one.
Result<ForwardChange> read_forward_change(const Request& request, Timestamp now);

}  // namespace portway
