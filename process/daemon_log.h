// The daemon's own log: spdlog's default logger. It goes to standard error, where a terminal, a file or a
// container's runtime reads it, or to systemd-journald.
//
// Logging never waits for that reader (control/line_writer.h). Lines lost while the reader stalls are
// counted, and a line in their place says how many.
#pragma once

#include <cstdint>
#include <memory>

#include "config/config.h"

namespace portway {

class DaemonLog {
 public:
  /// spdlog logs here from now on: text, on standard error.
  DaemonLog();
  /// Waits at most half a second for the reader to take the queued lines. Nothing is logged afterwards.
  ~DaemonLog();
  DaemonLog(const DaemonLog&) = delete;
  DaemonLog& operator=(const DaemonLog&) = delete;

  /// From now on as `log` says. If journald cannot be reached, the log stays on standard error and says why.
  void configure(const Config::Log& log);

  /// Waits, at most half a second, until the reader has everything. Call it before other output.
  void drain();

  /// Lines lost since the start.
  std::uint64_t dropped() const;

 private:
  class Sink;

  const std::shared_ptr<Sink> sink_;
};

}  // namespace portway
