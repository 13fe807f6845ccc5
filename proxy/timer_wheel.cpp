#include "proxy/timer_wheel.h"

#include <algorithm>
#include <bit>

namespace portway {

void TimerWheel::set(std::uint32_t index, Nanos deadline) {
  if (index >= entries_.size()) {
    if (deadline == kNever) return;
    entries_.resize(index + 1);
  }
  // A deadline in a bucket already looked at would wait a whole turn: it is due with the next one instead.
  deadline = std::max(deadline, kTick * static_cast<std::int64_t>(tick_));
  if (entries_[index].deadline == deadline) return;
  if (entries_[index].deadline != kNever) unlink(index);
  entries_[index].deadline = deadline;
  if (deadline != kNever) link(index);
}

Nanos TimerWheel::until_next(Nanos now) const {
  // Walk the bits from the next bucket on, a word at a time.
  for (std::uint64_t distance = 1; distance <= kBuckets;) {
    const std::uint64_t bucket = (tick_ + distance) % kBuckets;
    const std::uint64_t word = occupied_[bucket / 64] >> (bucket % 64);
    if (word == 0) {
      distance += 64 - bucket % 64;
      continue;
    }
    distance += static_cast<std::uint64_t>(std::countr_zero(word));
    if (distance > kBuckets) break;
    const Nanos due = kTick * static_cast<std::int64_t>(tick_ + distance);
    return due > now ? due - now : Nanos::zero();
  }
  return kNever;
}

void TimerWheel::unlink(std::uint32_t index) {
  const Entry& entry = entries_[index];
  const std::uint64_t bucket = bucket_of(entry.deadline);
  if (entry.next != kNone) entries_[entry.next].previous = entry.previous;
  if (entry.previous != kNone) {
    entries_[entry.previous].next = entry.next;
  } else {
    heads_[bucket] = entry.next;
    if (entry.next == kNone) occupied_[bucket / 64] &= ~(std::uint64_t{1} << (bucket % 64));
  }
}

void TimerWheel::link(std::uint32_t index) {
  Entry& entry = entries_[index];
  const std::uint64_t bucket = bucket_of(entry.deadline);
  entry.previous = kNone;
  entry.next = heads_[bucket];
  if (entry.next != kNone) entries_[entry.next].previous = index;
  heads_[bucket] = index;
  occupied_[bucket / 64] |= std::uint64_t{1} << (bucket % 64);
}

}  // namespace portway
