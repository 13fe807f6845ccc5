// The HTTP/1.1 server behind the API and the metrics listener (RFC 9110, RFC 9112), over TCP, TLS or a Unix
// socket.
//
// A client may send anything at any speed. Every size and every wait has a bound. A request that two readers
// could understand differently is refused. What the server refuses by itself it answers with a problem
// document before it closes. It knows no routes and no keys: one handler turns a request into an answer.
//
// With TLS the process must ignore SIGPIPE (api/http/tls.h). Everything runs on the thread of one Asio
// io_context, which also makes all calls here.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>

#include "api/http/server_options.h"
#include "api/http/server_stats.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/listen_address.h"

namespace portway {

class Server {
 public:
  /// Listens when it returns. `context` outlives the server. A Unix socket is made with mode 0660 and
  /// replaces the one that a dead daemon has left. kHostPortTaken, kInvalidConfig (an address that is not
  /// this host's, a port or a path without permission, TLS files that do not fit) or kResourceExhausted, with
  /// the address and the remedy. `inherited`: a predecessor's socket that listens there already; its clients
  /// notice nothing.
  static Result<std::unique_ptr<Server>> start(boost::asio::io_context& context, const ServerOptions& options,
                                               RequestHandler handler, Fd inherited = Fd());
  /// Cuts what is still open; the handler is not called any more.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Where it listens, with the port that the kernel chose for port 0.
  ListenAddress address() const;

  /// Stops accepting, removes the Unix socket, ends streams and closes idle connections. Requests under way
  /// are answered first, within their timeouts; then nothing of the server keeps the context running.
  void stop();

  /// Reads the TLS files again. New connections get the new certificate; open ones keep theirs. On an error
  /// (kInvalidConfig, with the file and the remedy) nothing changes. Does nothing without TLS.
  Result<void> reload_tls();

  /// Closes the connections of clients that are refused by now, whatever they are doing. Call it after
  /// something has changed that ServerOptions::refuses depends on.
  void drop_refused();

  ServerStats stats() const;

 private:
  class Core;
  explicit Server(std::shared_ptr<Core> core);

  const std::shared_ptr<Core> core_;  // shared with the connections
};

}  // namespace portway
