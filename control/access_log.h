// The access log: one line of JSON for each connection that has ended.
//
// Lines are made on the control thread and written by a LineWriter: if the disk does not keep up, the
// oldest lines are dropped and counted, and nobody waits. Control thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "proxy/close_record.h"

namespace portway {

class LineWriter;

/// The record as a JSON object in one line, without a line feed. `now` and `monotonic_now` are the same
/// moment on the two clocks: records tell the latter.
std::string to_json_line(const CloseRecord& record, std::chrono::system_clock::time_point now,
                         Nanos monotonic_now);
/// The same with what the clocks say.
std::string to_json_line(const CloseRecord& record);

class AccessLog {
 public:
  /// Appends to the file, which is made with mode 0640 when missing. kInvalidConfig when it cannot be opened,
  /// kResourceExhausted if no thread can be had.
  static Result<std::unique_ptr<AccessLog>> open(const std::string& path);
  /// Writes what is queued, for half a second at most.
  ~AccessLog();
  AccessLog(const AccessLog&) = delete;
  AccessLog& operator=(const AccessLog&) = delete;

  void write(const CloseRecord& record);
  /// Goes on in a new file of the same path, for who has moved the old one away (logrotate). What is queued
  /// still goes to the old one, and so does the rest if the new one cannot be opened. The writer's thread
  /// opens it, since a disk may take its time, and calls `done` then, which must not wait; never once this
  /// object is destroyed.
  void reopen(std::function<void(const Result<void>&)> done);

  /// Lines lost: the queue was full, or the disk.
  std::uint64_t dropped() const;

 private:
  AccessLog(std::string path, std::unique_ptr<LineWriter> writer);

  const std::string path_;
  const std::unique_ptr<LineWriter> writer_;
};

}  // namespace portway
