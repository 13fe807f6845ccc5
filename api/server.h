// The HTTP/1.1 server behind the API and the metrics listener (RFC 9110, RFC 9112).
//
// A client may send anything at any speed: every size and every wait has a bound, what two readers could
// understand differently is refused, and what the server refuses by itself it answers with a problem document
// before it closes. It knows nothing of routes or keys: one handler turns a request into an answer.
//
// Everything runs on the thread of one Asio io_context, which also makes all calls here.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "api/message.h"
#include "config/endpoint.h"
#include "config/error.h"

namespace portway {

struct ServerOptions {
  Endpoint listen = {};  // port 0: any free one
  std::size_t body_max_bytes = 64 * 1024;
  std::size_t header_max_bytes = 16 * 1024;  // request line and header fields together
  unsigned connections_max = 1024;           // beyond it the longest idle one goes, or the new one
  std::chrono::milliseconds header_timeout = std::chrono::seconds(10);  // from a request's first byte
  std::chrono::milliseconds body_timeout = std::chrono::seconds(10);    // for all of it
  std::chrono::milliseconds write_timeout = std::chrono::seconds(30);   // for a whole answer
  std::chrono::milliseconds idle_timeout = std::chrono::seconds(60);    // between two requests
  std::vector<Cidr> refused_networks =
      {};  // peers from there are closed at once: guests have no business here
};

/// Since start; `connections` is what is open now.
struct ServerStats {
  std::uint64_t connections = 0;
  std::uint64_t connections_total = 0;            // accepted, whatever became of them
  std::uint64_t connections_refused_network = 0;  // came from a refused network
  std::uint64_t connections_refused_limit = 0;    // over connections_max, with none idle
  std::uint64_t connections_evicted = 0;          // idle ones that made room for new ones
  std::uint64_t requests_refused = 0;             // answered with 4xx by the server itself
  std::uint64_t accept_pauses = 0;                // descriptors or memory had run out
};

class Server {
 public:
  /// Does not block. What it throws is logged and answered with 500.
  using Handler = std::function<Response(const Request&)>;

  /// Listens when it returns. `context` outlives the server. kHostPortTaken, kInvalidConfig (an address that
  /// is not this host's, a port without permission) or kResourceExhausted, with the address and the remedy.
  static Result<std::unique_ptr<Server>> start(boost::asio::io_context& context, const ServerOptions& options,
                                               Handler handler);
  /// Cuts what is still open; the handler is not called any more.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Where it listens, with the port that 0 became.
  Endpoint endpoint() const;

  /// Accepts no more and closes idle connections. Requests under way are answered first, within their time
  /// limits; then nothing of the server keeps the context running.
  void stop();

  ServerStats stats() const;

 private:
  class Core;
  explicit Server(std::shared_ptr<Core> core);

  const std::shared_ptr<Core> core_;  // shared with the connections
};

}  // namespace portway
