// Pipes for relays: opened when first needed, kept for the next relay, bounded.
//
// A relay holds a pipe only while bytes are in it. An empty pipe takes what fits into it, unless the
// kernel has no page for it (the memory cgroup is full). The rest then waits in the pool's only spare
// buffer. Until the buffer has been emptied, into the sink or into a pipe, relays read nothing that they
// might have to keep.
//
// Clients that read nothing hold the pipes of their relays for as long as they like. So a part of the pool is
// kept for instances that hold few (proxy/fair_share.h); the relays of the others copy.
//
// Belongs to one worker's thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "proxy/connection_table.h"
#include "proxy/io.h"
#include "proxy/relay_memory.h"
#include "proxy/stats.h"

namespace portway {

class FairShare;

struct Pipe {
  std::int32_t read_end;
  std::int32_t write_end;
  std::uint32_t capacity;  // bytes; the kernel counts in pages, so many small segments fill it sooner
};

class PipePool {
 public:
  /// 256 KiB: 64 KiB costs 18 % of the bulk throughput, 1 MiB adds nothing (measured on Linux 6.18).
  static constexpr std::uint32_t kPipeSize = 256 * 1024;

  /// Without a `share`, pipes go to whoever comes first.
  PipePool(Io& io, std::uint32_t pipes_max, WorkerCounters& counters, RelayMemory& memory,
           const FairShare* share = nullptr);
  ~PipePool();
  PipePool(const PipePool&) = delete;
  PipePool& operator=(const PipePool&) = delete;

  /// Whether a relay may have a pipe whose instance holds `of_instance` between its relays' turns. False is
  /// counted as a pipe that was wanted in vain.
  bool is_open_to(const std::atomic<std::uint32_t>& of_instance) {
    return !is_short_ || keeps_one_for(of_instance);
  }
  /// Makes sure that the next take() succeeds. False, and counted, if the bound or the system refuses
  /// another pipe.
  bool reserve();
  std::optional<Pipe> take();
  /// Gives the relay a pipe if it has none; false as in reserve().
  bool lend(RelayState& to);
  /// Counts the pipe of a predecessor's relay, if it has one.
  void adopt(const RelayState& relay);
  /// `drained`: the pipe is empty. Otherwise it is closed: its bytes must not reach another connection.
  void give_back(const Pipe& pipe, bool drained);

  /// The capacity of the pipe that take() would give after reserve().
  std::uint32_t next_capacity() const { return idle_.empty() ? 0 : idle_.back().capacity; }

  /// There is room for what a pipe may not take: a relay may read bytes that the sink does not take at
  /// once.
  bool may_keep();
  /// Bytes that come after those in the relay's pipe, at most RelayMemory::kBufferBytes; only after
  /// may_keep().
  void put_in_spare(RelayState& owner, std::span<const std::byte> bytes);
  void take_from_spare(std::size_t size);
  void empty_spare() { take_from_spare(memory_.in_spare().size()); }

 private:
  static constexpr std::size_t kIdleMax = 256;

  bool keeps_one_for(const std::atomic<std::uint32_t>& of_instance);
  void count_in_use(bool more);
  void close(const Pipe& pipe);
  void move_spare_to_pipe();

  Io& io_;
  const std::uint32_t pipes_max_;
  const std::uint32_t for_all_;  // beyond these in use, the rest is kept for instances that have few
  const FairShare* const share_;
  bool is_short_ = false;  // those for all are in use
  WorkerCounters& counters_;
  std::vector<Pipe> idle_;
  std::uint32_t open_ = 0;
  RelayMemory& memory_;
  RelayState* spare_owner_ = nullptr;  // has in_spare set; null: the buffer is empty
  Nanos keep_again_at_{0};             // a pipe did not take everything; 0: not lately
};

}  // namespace portway
