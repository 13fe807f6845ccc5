// What a server is started with: where it listens, its limits, and what it asks its owner.
#pragma once

#include <any>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

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

/// Turns a request into an answer: a coroutine on the server's thread, which does not block it. The request
/// lives until it is done; the connection may have ended by then. What it throws is logged and answered with
/// 500.
using RequestHandler = std::function<boost::asio::awaitable<Response>(const Request&)>;

/// For a handler that has its answer already.
inline boost::asio::awaitable<Response> answer_at_once(Response response) {
  co_return response;
}

/// What is decided about a request before its body is read.
struct RequestAdmission {
  /// The answer, if the request is refused: its body is not read.
  std::optional<Response> refusal = std::nullopt;
  /// Whose share of ServerOptions::bodies its body takes, as Response::payer.
  std::string payer = {};
  /// What is known about the caller, for the handler: Request::pass.
  std::any pass = {};
};

/// Is asked when the header of a request with a body has been read. As RequestHandler.
using RequestGate = std::function<RequestAdmission(const Request&)>;

struct ServerOptions {
  /// Port 0: any free one.
  ListenAddress listen = Endpoint();
  /// Which of its owner's listeners it is: Request::listener.
  std::size_t listener = 0;
  /// For TCP; empty: clear text.
  TlsFiles tls = {};
  std::size_t body_max_bytes = 64 * 1024;
  /// Request line and header fields together.
  std::size_t header_max_bytes = 16 * 1024;
  /// Of one source (an address, an IPv6 client's network, a user of the Unix socket) three quarters at most.
  /// Beyond either, a connection that waits without a complete request is closed: of the source with the most
  /// such ones the longest idle one, or else the one that has been sending its request for longest. If there
  /// is none, the new one is turned away.
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
  /// The same for bodies that are being read or handled.
  AnswerBudget* bodies = nullptr;
  /// Null: admits every request.
  RequestGate gate = nullptr;
  /// TCP clients for which it returns true are closed without an answer: guests must not reach this server.
  /// Called when a client connects, before each request, and by Server::drop_refused(). Null: refuses nobody.
  std::function<bool(const ClientOrigin&)> refuses = nullptr;
};

}  // namespace portway
