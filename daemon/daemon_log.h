// The daemon's own log: spdlog's default logger, on standard error, where a terminal, a file, journald or a
// container's runtime reads it.
//
// Logging never waits for that reader (control/line_writer.h). Lines lost while the reader stalls are
// counted, and a line in their place says how many.
#pragma once

#include <memory>

namespace portway {

class LineWriter;

class DaemonLog {
 public:
  /// spdlog logs here from now on.
  DaemonLog();
  /// Waits at most half a second for the reader to take the queued lines. Nothing is logged afterwards.
  ~DaemonLog();
  DaemonLog(const DaemonLog&) = delete;
  DaemonLog& operator=(const DaemonLog&) = delete;

  /// Waits, at most half a second, until the reader has everything. Call it before other output.
  void drain();

  /// Null: no thread could be started, and lines are written directly.
  const LineWriter* writer() const { return writer_.get(); }

 private:
  const std::shared_ptr<LineWriter> writer_;
};

}  // namespace portway
