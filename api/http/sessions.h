// The open connections of one server and what they share. Belongs to the server's thread.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "api/http/failure_log.h"
#include "api/http/peer.h"
#include "api/http/server_options.h"
#include "api/http/server_stats.h"

namespace portway {

class Session;

/// The connections of one source: of an address, of an IPv6 client's network, or of a user of the Unix
/// socket.
struct SessionSource {
  std::size_t all = 0;
  std::size_t seats = 0;    // all but those that are turned away
  std::size_t waiting = 0;  // idle and reading
};
using SessionSources = std::map<std::string, SessionSource>;

struct Sessions {
  Sessions(const ServerOptions& server_options, RequestHandler request_handler)
      : options(server_options), handler(std::move(request_handler)) {}

  std::size_t open() const { return idle.size() + reading.size() + busy.size() + streaming.size(); }
  /// A quarter of the seats is kept for others.
  std::size_t seats_of_one_source() const { return options.connections_max - options.connections_max / 4; }
  bool refuses(const Peer& peer) const {
    return !peer.credentials && options.refuses && options.refuses(peer.origin);
  }

  const ServerOptions options;
  const RequestHandler handler;
  bool stopping = false;
  ServerStats stats;
  FailureLog failures;

  // Each session is in one of these lists, and in none once it is closed; the longest there comes first.

  /// Waits for TLS, a request, or the client's close: may be closed at any time.
  std::list<Session*> idle;
  /// Has a part of a request, and may finish it unless others need its seat.
  std::list<Session*> reading;
  /// Has a request, and may finish it.
  std::list<Session*> busy;
  /// Sends an answer without an end; ended when the server stops.
  std::list<Session*> streaming;
  /// Gets the answer that there are too many clients; does not count against connections_max.
  std::list<Session*> turned_away;

  /// Those that have connections.
  SessionSources sources;
};

}  // namespace portway
