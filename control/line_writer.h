// The lines of a log on their way to a descriptor: handed over by threads that must not wait, and written by
// a thread of the writer's own, which may.
//
// A log's reader can stall: a pipe that is full, a terminal that is stopped, a disk. Between the two sides is
// a bounded queue; if it is full the oldest lines are dropped and counted. Lines keep their order, and
// whole lines share a write(2) as long as that stays atomic on a pipe (PIPE_BUF). Where the disk takes a part
// of a line that line is lost, and the next one begins on a line of its own: each line is either there,
// whole, or counted. The descriptor may be of any kind and shared with other processes: it stays in the mode
// it is in.
//
// All functions may be called by any thread, and none but drain() and the destructor waits.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace portway {

struct LineWriterOptions {
  std::size_t lines_max = 8192;             // queued
  std::size_t bytes_max = 4 * 1024 * 1024;  // of them together
  // For the lines in the queue when the writer is destroyed; what is not written by then is lost.
  std::chrono::milliseconds end_wait{500};
  // Each line is a write(2) of its own: a message, where the descriptor is a datagram socket.
  bool one_by_one = false;
  // Makes the line that says how many are missing where it stands; null: none is written.
  std::function<std::string(std::uint64_t lost)> lost_note = nullptr;
};

class LineWriter {
 public:
  /// `target` may be invalid: every line is lost then. kResourceExhausted if no thread can be had.
  static Result<std::unique_ptr<LineWriter>> start(Fd target, LineWriterOptions options = {});
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  /// With its line feed.
  void write(std::string line);

  /// The lines from now on go there; those in the queue still go where they were meant to.
  void redirect(Fd target);
  /// The same to what `open` returns, which the writer's thread calls, since it may wait: once what was
  /// queued before is written. If it fails the lines go where they went before. `done` gets what came
  /// of it, on that thread; it must not wait nor call this writer. A repeated call that finds the first one
  /// waiting is the same one. Neither is called any more once the writer is destroyed.
  using Open = std::function<Result<Fd>()>;
  using Opened = std::function<void(const Result<void>&)>;
  void reopen(Open open, Opened done);

  /// Waits until everything is written; false when `timeout` has passed before.
  bool drain(std::chrono::milliseconds timeout);

  /// Lines lost: the queue was full, or the descriptor refused them.
  std::uint64_t dropped() const;

 private:
  class Core;
  LineWriter(std::shared_ptr<Core> core, std::chrono::milliseconds end_wait);

  const std::shared_ptr<Core> core_;  // shared with the thread, which may be stuck in a write for ever
  const std::chrono::milliseconds end_wait_;
};

}  // namespace portway
