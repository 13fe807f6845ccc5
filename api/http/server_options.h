// What a server is started with: where it listens, its limits, and what it asks its owner.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "api/http/answer_budget.h"
#include "api/http/message.h"
#include "base/endpoint.h"
#include "base/listen_address.h"
#include "base/tls_files.h"

namespace portway {

/// Where a TCP client comes from.
struct ClientOrigin {
  IpAddress address;      // an IPv4-mapped one is folded
  std::int32_t link = 0;  // index of the interface that its connection came in by; 0: not known
};

/// Turns a request into an answer. It does not block. What it throws is logged and answered with 500.
using RequestHandler = std::function<Response(const Request&)>;

struct ServerOptions {
  /// Port 0: any free one.
  ListenAddress listen = Endpoint();
  /// For TCP; empty: clear text.
  TlsFiles tls = {};
  std::size_t body_max_bytes = 64 * 1024;
  /// Request line and header fields together.
  std::size_t header_max_bytes = 16 * 1024;
  /// Beyond it the longest idle connection is closed; if none is idle, the new one is turned away.
  unsigned connections_max = 1024;
  /// Answers without an end, of those connections.
  unsigned streams_max = 64;
  /// From a request's first byte to the end of its header. Also for a TLS handshake.
  std::chrono::milliseconds header_timeout = std::chrono::seconds(10);
  /// For the whole body.
  std::chrono::milliseconds body_timeout = std::chrono::seconds(10);
  /// For a whole answer, or for one piece of a stream.
  std::chrono::milliseconds write_timeout = std::chrono::seconds(30);
  /// Between two requests.
  std::chrono::milliseconds idle_timeout = std::chrono::seconds(60);
  /// After this much silence on a stream, BodyStream::heartbeat() is sent.
  std::chrono::milliseconds stream_heartbeat = std::chrono::seconds(15);
  /// Bounds the memory of unread answers. Shared with other servers; outlives this one. Null: no bound.
  AnswerBudget* answers = nullptr;
  /// TCP clients for which it returns true are closed without an answer: guests must not reach this server.
  /// Called when a client connects, before each request, and by Server::drop_refused(). Null: refuses nobody.
  std::function<bool(const ClientOrigin&)> refuses = nullptr;
};

}  // namespace portway
