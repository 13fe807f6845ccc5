// The daemon's HTTP servers: one for each address of api.listen, and that of metrics.listen.
//
// One that cannot listen (its port is taken, its certificate has expired) is a fault of the node
// (control/node_faults.h) and is tried again; everything else goes on without it. Control thread only.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/http/server.h"
#include "base/fd.h"
#include "base/listen_address.h"
#include "control/node_faults.h"
#include "process/passed_sockets.h"
#include "proxy/inherited.h"

namespace portway {

class Servers {
 public:
  /// `faults` outlives it. `passed` are sockets that listen already.
  Servers(boost::asio::io_context& context, NodeFaults& faults, PassedSockets passed)
      : context_(context), faults_(faults), passed_(std::move(passed)) {}

  /// Before start(). `part`: kApi or kMetrics.
  void add(FaultPart part, ServerOptions options, RequestHandler handler);
  /// All listen when it returns, but those that cannot. `inherited`: what a predecessor has left; may be
  /// null.
  void start(Inherited* inherited);
  /// Starts those that could not, and reads the files of certificates that have expired again.
  void retry();

  /// Reads all certificates again; one that cannot be read is a fault, and the old one stays.
  void reload_tls();
  void drop_refused();
  /// As Server::stop(). Nothing is started any more.
  void stop();

  /// Of all servers of the API.
  ServerStats api_stats() const;
  /// Of all.
  std::uint64_t open_connections() const;
  /// For the log: "https://0.0.0.0:8443"; those that are up, of this part.
  std::vector<std::string> urls(FaultPart part) const;

 private:
  struct Entry {
    FaultPart part = FaultPart::kApi;
    ServerOptions options;
    RequestHandler handler;
    std::unique_ptr<Server> server = nullptr;  // null: it cannot listen
    Fd socket = {};  // of another process, which listens there; until it has started

    std::string name() const { return to_string(options.listen); }
  };
  void start(Entry& entry);
  void reload_tls(Entry& entry);

  boost::asio::io_context& context_;
  NodeFaults& faults_;
  PassedSockets passed_;
  std::vector<Entry> entries_;
};

}  // namespace portway
