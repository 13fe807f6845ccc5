// What sessions whose guests are in network namespaces of their own still hold of them when they end: sockets
// that are being reset, and the return path. As soon as the last connection is gone, both go, so that the
// namespace can end.
//
// Control thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <vector>

#include "base/forward.h"
#include "network/namespace.h"
#include "proxy/dataplane.h"

namespace portway {

class SessionRemains {
 public:
  /// `on_over` is called when a session has no connection left.
  SessionRemains(boost::asio::io_context& context, Dataplane& dataplane,
                 std::function<void(const Uuid& session_id)> on_over)
      : dataplane_(dataplane), timer_(context), on_over_(std::move(on_over)) {}
  SessionRemains(const SessionRemains&) = delete;
  SessionRemains& operator=(const SessionRemains&) = delete;

  /// Call it after the data plane was told that the session is over. `link`: the interface that its
  /// connections were bound to; 0: none.
  void add(const Instance& stopped, NetworkNamespace::Ptr netns, int link);

 private:
  struct Remains {
    Uuid session_id;
    std::vector<IpAddress> guests;
    NetworkNamespace::Ptr netns;
    int link;
    std::chrono::steady_clock::time_point since;
  };

  void look();
  void look_soon();

  Dataplane& dataplane_;
  boost::asio::steady_timer timer_;
  const std::function<void(const Uuid&)> on_over_;
  std::vector<Remains> remains_;
};

}  // namespace portway
