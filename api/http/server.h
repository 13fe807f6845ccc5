// The HTTP/1.1 server behind the API and the metrics listener (RFC 9110, RFC 9112), over TCP, TLS or a Unix
// socket.
//
// A client may send anything at any speed: every size and every wait has a bound, what two readers could
// understand differently is refused, and what the server refuses by itself it answers with a problem document
// before it closes. It knows nothing of routes or keys: one handler turns a request into an answer.
//
// With TLS the process must ignore SIGPIPE (api/http/tls.h). Everything runs on the thread of one Asio
// io_context, which also makes all calls here.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "api/http/answer_budget.h"
#include "api/http/message.h"
#include "api/http/server_stats.h"
#include "api/http/tls.h"
#include "base/endpoint.h"
#include "base/error.h"
#include "base/listen_address.h"

namespace portway {

/// Where a TCP client comes from.
struct ClientOrigin {
  IpAddress address;      // an IPv4-mapped one is folded
  std::int32_t link = 0;  // the index of the interface that its connection came in by; 0: not known
};

struct ServerOptions {
  ListenAddress listen = Endpoint();  // port 0: any free one
  TlsFiles tls = {};                  // for TCP
  std::size_t body_max_bytes = 64 * 1024;
  std::size_t header_max_bytes = 16 * 1024;  // request line and header fields together
  unsigned connections_max = 1024;           // beyond it the longest idle one goes, or the new one
  unsigned streams_max = 64;                 // answers without an end, of those connections
  std::chrono::milliseconds header_timeout =
      std::chrono::seconds(10);  // from a request's first byte; and for a TLS handshake
  std::chrono::milliseconds body_timeout = std::chrono::seconds(10);  // for all of it
  std::chrono::milliseconds write_timeout =
      std::chrono::seconds(30);  // for a whole answer, or a stream's piece
  std::chrono::milliseconds idle_timeout = std::chrono::seconds(60);  // between two requests
  std::chrono::milliseconds stream_heartbeat =
      std::chrono::seconds(15);  // of silence on a stream, then BodyStream::heartbeat() is sent
  // Of the answers on their way, shared with other servers; must outlive this one. Null: they have no bound.
  AnswerBudget* answers = nullptr;
  // TCP clients of whom it is true are closed without a word: guests have no business here. Asked when one
  // connects, before each of its requests, and by drop_refused(); null: none is.
  std::function<bool(const ClientOrigin&)> refuses = nullptr;
};

class Server {
 public:
  /// Does not block. What it throws is logged and answered with 500.
  using Handler = std::function<Response(const Request&)>;

  /// Listens when it returns. `context` outlives the server. A Unix socket is made with mode 0660, in place
  /// of one that a dead daemon has left. kHostPortTaken, kInvalidConfig (an address that is not this host's,
  /// a port or a path without permission, TLS files that do not fit) or kResourceExhausted, with the address
  /// and the remedy.
  static Result<std::unique_ptr<Server>> start(boost::asio::io_context& context, const ServerOptions& options,
                                               Handler handler);
  /// Cuts what is still open; the handler is not called any more.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Where it listens, with the port that 0 became.
  ListenAddress address() const;

  /// Accepts no more, removes the Unix socket, ends streams and closes idle connections. Requests under way
  /// are answered first, within their time limits; then nothing of the server keeps the context running.
  void stop();

  /// Reads the TLS files again: new connections get the new certificate, those that are open run on with
  /// theirs. On an error everything stays as it was; kInvalidConfig with the file and the remedy. Nothing to
  /// do without TLS.
  Result<void> reload_tls();

  /// Closes the connections of those that are refused by now, whatever they are doing. After what
  /// ServerOptions::refuses looks at has changed.
  void drop_refused();

  ServerStats stats() const;

 private:
  class Core;
  explicit Server(std::shared_ptr<Core> core);

  const std::shared_ptr<Core> core_;  // shared with the connections
};

}  // namespace portway
