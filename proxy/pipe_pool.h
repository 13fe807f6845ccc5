// Pipes for relays: opened when first needed, kept for the next relay, bounded.
//
// A relay holds a pipe only while bytes are in it. Belongs to one worker's thread.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "metrics/stats.h"
#include "proxy/io.h"

namespace portway {

struct Pipe {
  std::int32_t read_end;
  std::int32_t write_end;
  std::uint32_t capacity;  // bytes; the kernel counts in pages, so many small segments fill it sooner
};

class PipePool {
 public:
  /// 256 KiB: 64 KiB costs 18 % of the bulk throughput, 1 MiB adds nothing (measured on Linux 6.18).
  static constexpr std::uint32_t kPipeSize = 256 * 1024;

  PipePool(Io& io, std::uint32_t pipes_max, WorkerCounters& counters)
      : io_(io), pipes_max_(pipes_max), counters_(counters) {}
  ~PipePool();
  PipePool(const PipePool&) = delete;
  PipePool& operator=(const PipePool&) = delete;

  /// Makes sure that the next take() succeeds. False, and counted, when the bound or the system refuses
  /// another pipe.
  bool reserve();
  std::optional<Pipe> take();
  /// `drained`: the pipe is empty. One that is not must not be used again: its bytes belong to somebody else.
  void give_back(const Pipe& pipe, bool drained);

  /// The capacity of the pipe that take() would give after reserve().
  std::uint32_t next_capacity() const { return idle_.empty() ? 0 : idle_.back().capacity; }

 private:
  static constexpr std::size_t kIdleMax = 256;

  void close(const Pipe& pipe);

  Io& io_;
  const std::uint32_t pipes_max_;
  WorkerCounters& counters_;
  std::vector<Pipe> idle_;
  std::uint32_t open_ = 0;
};

}  // namespace portway
