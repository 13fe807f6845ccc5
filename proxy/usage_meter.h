// What a forward, or an instance with all its forwards, has carried: the numbers that bills and idle sweepers
// are made from. They outlive the process: a meter that is in the SlotArena is read by a successor, also
// after SIGKILL, and what the store has of it is the base of the next one (control/usage.h).
//
// A worker adds to its own cell with plain loads and stores (no locked instruction). The control thread
// makes, reads and ends meters; a worker may hold the last reference to one.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "base/counter.h"

namespace portway {

/// Cumulative: no number ever decreases.
struct UsageTotals {
  std::uint64_t connections = 0;     // accepted, and admitted by the forward's limits
  std::uint64_t received_bytes = 0;  // client to guest: what the guest's socket has taken
  std::uint64_t sent_bytes = 0;      // guest to client
  std::uint64_t connection_us = 0;   // how long connections have been open, all together; open ones included
  std::int64_t last_byte_at_ms = 0;  // Unix time; 0: never
  std::int64_t last_connection_at_ms = 0;

  /// The greater of each number.
  void raise_to(const UsageTotals& others);
  friend bool operator==(const UsageTotals&, const UsageTotals&) = default;
};

struct UsageReading {
  UsageTotals totals;
  // Open now: also those on their way to the guest, and those that one side has ended.
  std::uint64_t connections_now = 0;
};

/// One worker's part of a meter. `version` is odd while `open` and `open_us` change.
struct alignas(64) MeterCell {
  std::atomic<std::uint64_t> version;
  std::atomic<std::uint64_t> open;     // connections
  std::atomic<std::uint64_t> open_us;  // the sum of their ends less the sum of their begins, modulo 2^64
  Counter connections;
  Counter received_bytes;
  Counter sent_bytes;
  std::atomic<std::int64_t> last_byte_ns;  // on the monotonic clock; 0: never
  std::atomic<std::int64_t> last_connection_ns;
};
static_assert(sizeof(MeterCell) == 64);

/// Written by the control thread.
struct alignas(64) MeterHead {
  std::array<char, 112> key{};    // with a zero at its end; empty: the row is free
  UsageTotals base;               // of earlier processes
  UsageTotals reported;           // the latest reading
  std::int64_t resumed_us = 0;    // adopted connections count from here on; what came before is in `base`
  std::int64_t byte_seen_ns = 0;  // what `reported` has the times of
  std::int64_t connection_seen_ns = 0;
};
static_assert(sizeof(MeterHead) == 256);
static_assert(std::is_standard_layout_v<MeterHead> && std::is_standard_layout_v<MeterCell>);

/// The bytes of a meter in the arena: a head, then a cell for each worker.
constexpr std::size_t meter_bytes(std::size_t workers) {
  return sizeof(MeterHead) + workers * sizeof(MeterCell);
}

class UsageMeters;

class UsageMeter {
 public:
  /// In memory that ends with the process, and for nobody.
  explicit UsageMeter(std::size_t workers);
  /// Gives its row back.
  ~UsageMeter();
  UsageMeter(const UsageMeter&) = delete;
  UsageMeter& operator=(const UsageMeter&) = delete;

  // --- From the thread of `worker`; times are on the monotonic clock.

  void opened(std::size_t worker, std::int64_t at_ns);
  /// A predecessor has counted it.
  void adopted(std::size_t worker);
  void closed(std::size_t worker, std::int64_t at_ns);
  void moved(std::size_t worker, bool from_client, std::uint64_t bytes, std::int64_t at_ns) {
    MeterCell& cell = cells_[worker];
    (from_client ? cell.received_bytes : cell.sent_bytes).add(bytes);
    cell.last_byte_ns.store(at_ns, std::memory_order_relaxed);
  }

  // --- From the control thread.

  /// No less than any earlier reading, whatever the clocks do. Stops nobody, and costs a cache line a worker.
  UsageReading read();

 private:
  friend class UsageMeters;
  struct Rows;
  UsageMeter(std::shared_ptr<Rows> rows, std::uint32_t row);

  struct Memory {
    explicit Memory(std::size_t workers) : cells(workers) {}
    MeterHead head;
    std::vector<MeterCell> cells;
  };

  const std::unique_ptr<Memory> own_;  // null: it is in the arena
  const std::shared_ptr<Rows> rows_;
  const std::uint32_t row_ = 0;
  MeterHead* head_;
  std::span<MeterCell> cells_;
  std::uint64_t connections_now_ = 0;  // at the last reading
};
using UsageMeterPtr = std::shared_ptr<UsageMeter>;

/// What a predecessor's meters said, by their keys.
struct InheritedUsage {
  std::unordered_map<std::string, UsageTotals> totals = {};
  std::int64_t at_us = 0;  // when they were read, on the monotonic clock
};

/// The part of the arena that has the meters. Belongs to the control thread.
class UsageMeters {
 public:
  /// Without memory that outlives the process.
  explicit UsageMeters(std::size_t workers) : UsageMeters({}, workers, nullptr, {}) {}
  /// `memory` has rows of meter_bytes(workers), all of them free; it must outlive this object, not the
  /// meters. `rows_used` is where a successor reads how many of them have ever been in use.
  UsageMeters(std::span<std::byte> memory, std::size_t workers, std::uint32_t* rows_used,
              const InheritedUsage& inherited);
  /// From now on no meter touches the memory.
  ~UsageMeters();
  UsageMeters(const UsageMeters&) = delete;
  UsageMeters& operator=(const UsageMeters&) = delete;

  /// A meter that goes on from what the store has `saved`, or from what a predecessor has left under this key
  /// if that is more. One at a time of each key. If no row is free, its memory ends with the process.
  UsageMeterPtr make(std::string_view key, const UsageTotals& saved);
  /// All that goes on has its meter: the rest of what a predecessor has left is not needed any more.
  void forget_inherited() { inherited_.clear(); }

  /// What the meters in another process's memory say.
  static InheritedUsage read(std::span<std::byte> memory, std::size_t workers, std::uint32_t rows_used);

 private:
  UsageMeterPtr make_new(std::string_view key, const UsageTotals& base);

  const std::size_t workers_;
  const std::shared_ptr<UsageMeter::Rows> rows_;
  // In this memory from the beginning: if this process dies before make(), its successor finds them here.
  std::unordered_map<std::string, UsageMeterPtr> inherited_;
};

}  // namespace portway
