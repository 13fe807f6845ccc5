// Opens the sockets that forwards listen on.
#pragma once

#include <chrono>

#include "config/endpoint.h"
#include "config/error.h"
#include "proxy/fd.h"

namespace portway {

/// A non-blocking socket, bound and listening. Accepted sockets inherit what is set here: TCP_NODELAY, and
/// keepalive probes after `keepalive` of silence (0: none). Errors: kHostPortTaken (EADDRINUSE),
/// kPrivilegedPort (EACCES), kInvalidConfig (EADDRNOTAVAIL: not an address of this host), kResourceExhausted
/// (descriptors, memory).
Result<Fd> open_listen_socket(const Endpoint& endpoint, std::chrono::seconds keepalive);

}  // namespace portway
