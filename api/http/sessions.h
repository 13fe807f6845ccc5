// The open connections of one server and what they share. Belongs to the server's thread.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <utility>

#include "api/http/failure_log.h"
#include "api/http/peer.h"
#include "api/http/server_options.h"
#include "api/http/server_stats.h"

namespace portway {

class Session;

struct Sessions {
  Sessions(const ServerOptions& server_options, RequestHandler request_handler)
      : options(server_options), handler(std::move(request_handler)) {}

  std::size_t open() const { return idle.size() + busy.size() + streaming.size(); }
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
  /// Has a request, and may finish it.
  std::list<Session*> busy;
  /// Sends an answer without an end; ended when the server stops.
  std::list<Session*> streaming;
  /// Gets the answer that there are too many clients; does not count against connections_max.
  std::list<Session*> turned_away;
};

}  // namespace portway
