// What a successor must know of a client that is refused; see RefusalGates.
#pragma once

#include <cstddef>

#include "base/forward.h"
#include "proxy/connection_table.h"

namespace portway {

/// A client gate that is shut. Entries whose `forward` is nil are free.
struct NotedRefusal {
  ForwardId forward{};
  PlainEndpoint client;  // without a port
  PlainEndpoint guest;
  PlainEndpoint local;       // what the client connects to
  bool own_address = false;  // the guest sees the client's address
};

/// A worker has so many gates at most.
inline constexpr std::size_t kGatesMax = 64;

}  // namespace portway
