// Whether the threads that the node depends on still run: this one, the control thread, and the workers.
//
// While all do, systemd's watchdog is told so (sd_notify(3), WATCHDOG=1; WatchdogSec= of the unit). If one
// hangs, systemd kills the daemon and starts it again, and the next one continues its connections. Without
// systemd, a worker that hangs is only reported. Control thread only.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <set>
#include <vector>

#include "control/node_faults.h"
#include "process/every.h"

namespace portway {

class Watchdog {
 public:
  /// `silent_workers`: Proxy::silent_workers(). `faults` outlives it.
  Watchdog(boost::asio::io_context& context, NodeFaults& faults,
           std::function<std::vector<std::size_t>()> silent_workers);
  /// Systemd is told no more.
  void stop() { every_.stop(); }

 private:
  void look();

  const std::chrono::microseconds timeout_;  // of systemd's; 0: it does not watch
  NodeFaults& faults_;
  const std::function<std::vector<std::size_t>()> silent_workers_;
  std::set<std::size_t> silent_;
  Every every_;
};

}  // namespace portway
