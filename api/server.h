// The HTTP server in front of the handlers: connections, limits and time-outs (RFC 9110, RFC 9112).
//
// Runs on the control thread's io_context. A client may be slow, silent, greedy or malformed; none of it
// reaches a handler, and none of it holds more than a bounded buffer for a bounded time.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "api/message.h"
#include "config/endpoint.h"
#include "config/error.h"

namespace portway {

struct ServerOptions {
  Endpoint listen;                                    // port 0: any free one
  std::size_t body_max_bytes = 64 * 1024;             // 413 beyond
  std::size_t header_max_bytes = 16 * 1024;           // 431 beyond
  unsigned connections_max = 1024;                    // 503 and closed beyond
  std::chrono::milliseconds request_timeout{10'000};  // from a request's first byte to its last: 408 beyond
  std::chrono::milliseconds write_timeout{30'000};    // for the client to take an answer
  std::chrono::milliseconds idle_timeout{60'000};     // between two requests
  std::vector<Cidr> refused_networks;  // clients in these are closed at once: guests do not reach the API
};

class Server {
 public:
  /// Runs on the io_context's thread and does not block. An exception from it is answered 500.
  using Handler = std::function<Response(const Request&)>;

  /// Listens. kInvalidConfig where the address cannot be bound, with the reason and the remedy.
  static Result<std::unique_ptr<Server>> start(boost::asio::io_context& context, const ServerOptions& options,
                                               Handler handler);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Where it listens, with the port that 0 became.
  Endpoint endpoint() const;
  /// Accepts nothing more and closes idle connections; requests under way are answered first. The io_context
  /// runs out of work when the last one is done.
  void stop();

 private:
  class Impl;
  explicit Server(std::shared_ptr<Impl> impl);

  std::shared_ptr<Impl> impl_;  // shared with its coroutines
};

}  // namespace portway
