// One deadline for each connection, set, moved and cleared in constant time.
//
// A wheel of 4,096 buckets of 4 ms: a turn is 16 s, and a deadline further away stays in its bucket for
// another turn. Entries are the indices of connections; the links between them are in an array whose size
// the caller gives, so an entry costs no allocation. Belongs to one worker's thread.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "proxy/io.h"

namespace portway {

class TimerWheel {
 public:
  static constexpr Nanos kTick = std::chrono::milliseconds(4);
  static constexpr Nanos kNever = Nanos::max();

  explicit TimerWheel(Nanos now) : tick_(tick_of(now)) { heads_.fill(kNone); }

  /// Sets or moves the deadline of `index`; kNever clears it.
  void set(std::uint32_t index, Nanos deadline);
  void clear(std::uint32_t index) { set(index, kNever); }

  /// Calls expired(index) for each deadline at or before `now`, rounded up to a tick, after clearing it.
  /// The callback may set that index again, and must touch no other.
  template <class Expired>
  void expire(Nanos now, Expired expired);

  /// How long nothing can expire: until the next bucket that is not empty; kNever if all are.
  Nanos until_next(Nanos now) const;

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  static constexpr std::uint64_t kBuckets = 4096;  // 64 words of 64 bits

  struct Entry {
    Nanos deadline = kNever;
    std::uint32_t next = kNone;
    std::uint32_t previous = kNone;
  };

  static std::uint64_t tick_of(Nanos time) { return static_cast<std::uint64_t>(time / kTick); }
  static std::uint64_t bucket_of(Nanos deadline) { return (tick_of(deadline) + 1) % kBuckets; }
  void unlink(std::uint32_t index);
  void link(std::uint32_t index);
  std::uint64_t next_occupied(std::uint64_t from) const;

  std::vector<Entry> entries_;
  std::array<std::uint32_t, kBuckets> heads_;
  std::array<std::uint64_t, kBuckets / 64> occupied_{};  // one bit per bucket
  std::uint64_t occupied_words_ = 0;                     // one bit per word of it
  std::uint64_t tick_;                                   // buckets up to this tick are done
};

template <class Expired>
void TimerWheel::expire(Nanos now, Expired expired) {
  const std::uint64_t last = tick_of(now);
  // After a pause longer than a turn, every bucket is due once.
  if (last - tick_ > kBuckets) tick_ = last - kBuckets;
  while (tick_ < last) {
    const std::uint64_t bucket = ++tick_ % kBuckets;
    std::uint32_t index = heads_[bucket];
    while (index != kNone) {
      // The callback may set an expired entry again: into this bucket at its head, one turn later at the
      // earliest.
      const std::uint32_t next = entries_[index].next;
      if (entries_[index].deadline <= now) {
        unlink(index);
        entries_[index].deadline = kNever;
        expired(index);
      }
      index = next;
    }
  }
}

}  // namespace portway
