// Who is at the other end of a connection, as the kernel knows it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "api/http/message.h"
#include "api/http/server_options.h"
#include "api/http/transport.h"

namespace portway {

struct Peer {
  ClientOrigin origin;                                        // unspecified for a Unix socket
  std::optional<PeerCredentials> credentials = std::nullopt;  // of a Unix socket only
};

/// Who has a share of what clients share: the address, of IPv6 its network, or the user.
std::string source_name(const Peer& peer);

/// Nothing if the client has gone already. The origin is without its link.
std::optional<Peer> tcp_peer(const StreamSocket& socket);

/// Nothing if the kernel does not say who has connected.
std::optional<Peer> unix_peer(int socket);

/// Index of the interface that a TCP connection came in by; 0: not known.
std::int32_t incoming_link(int socket);

}  // namespace portway
