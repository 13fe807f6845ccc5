// Opens the sockets that forwards listen on.
#pragma once

#include "base/endpoint.h"
#include "base/error.h"
#include "base/fd.h"
#include "proxy/connection_options.h"

namespace portway {

/// How many clients may wait to be accepted; the kernel bounds it by net.core.somaxconn (4,096 by
/// default).
inline constexpr int kListenBacklog = 4096;

/// A non-blocking socket, bound and listening. Accepted sockets inherit TCP_NODELAY, the options'
/// keepalive and TCP_NOTSENT_LOWAT. The kernel keeps their SYNs for Io::take_client(). Errors:
/// kHostPortTaken (EADDRINUSE), kPrivilegedPort (EACCES), kInvalidConfig (EADDRNOTAVAIL: not an address of
/// this host), kResourceExhausted (descriptors, memory).
Result<Fd> open_listen_socket(const Endpoint& endpoint, const ConnectionOptions& options);

}  // namespace portway
