// The daemon's own log: spdlog's default logger, on standard error, for who reads it there: a terminal, a
// file, journald, a container's runtime.
//
// Whoever logs never waits for that reader (control/line_writer.h). What is lost while it stalls is counted,
// and a line says so where it is missing.
#pragma once

#include <cstdint>
#include <memory>

namespace portway {

class LineWriter;

class DaemonLog {
 public:
  /// spdlog logs here from now on.
  DaemonLog();
  /// Gives the reader half a second for what is queued. Nothing is logged afterwards.
  ~DaemonLog();
  DaemonLog(const DaemonLog&) = delete;
  DaemonLog& operator=(const DaemonLog&) = delete;

  /// Waits, half a second at most, until the reader has all of it: before something is said elsewhere.
  void drain();

  /// Lines lost. Any thread.
  std::uint64_t lines_dropped() const;

 private:
  const std::shared_ptr<LineWriter> writer_;  // null: no thread could be had, and lines are written at once
};

}  // namespace portway
