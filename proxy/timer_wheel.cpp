#include "proxy/timer_wheel.h"

#include <algorithm>
#include <bit>

namespace portway {

void TimerWheel::set(std::uint32_t index, Nanos deadline) {
  if (index >= entries_.size()) {
    if (deadline == kNever) return;
    entries_.resize(index + 1);
  }
  // A deadline in a bucket that is done would wait a whole turn: use the next bucket instead.
  deadline = std::max(deadline, kTick * static_cast<std::int64_t>(tick_));
  if (entries_[index].deadline == deadline) return;
  if (entries_[index].deadline != kNever) unlink(index);
  entries_[index].deadline = deadline;
  if (deadline != kNever) link(index);
}

Nanos TimerWheel::until_next(Nanos now) const {
  if (occupied_words_ == 0) return kNever;
  const std::uint64_t from = (tick_ + 1) % kBuckets;
  const std::uint64_t distance = (next_occupied(from) - from) % kBuckets + 1;
  const Nanos due = kTick * static_cast<std::int64_t>(tick_ + distance);
  return due > now ? due - now : Nanos::zero();
}

/// The first non-empty bucket from this one on, round the wheel; there must be one.
std::uint64_t TimerWheel::next_occupied(std::uint64_t from) const {
  const std::uint64_t word = from / 64;
  if (const std::uint64_t rest = occupied_[word] >> (from % 64); rest != 0) {
    return from + static_cast<std::uint64_t>(std::countr_zero(rest));
  }
  const std::uint64_t after = word + 1;  // and last, the beginning of this word
  const auto words =
      static_cast<std::uint64_t>(std::countr_zero(std::rotr(occupied_words_, static_cast<int>(after % 64))));
  const std::uint64_t next = (after + words) % 64;
  return next * 64 + static_cast<std::uint64_t>(std::countr_zero(occupied_[next]));
}

void TimerWheel::unlink(std::uint32_t index) {
  const Entry& entry = entries_[index];
  const std::uint64_t bucket = bucket_of(entry.deadline);
  if (entry.next != kNone) entries_[entry.next].previous = entry.previous;
  if (entry.previous != kNone) {
    entries_[entry.previous].next = entry.next;
  } else {
    heads_[bucket] = entry.next;
    if (entry.next == kNone) {
      std::uint64_t& word = occupied_[bucket / 64];
      word &= ~(std::uint64_t{1} << (bucket % 64));
      if (word == 0) occupied_words_ &= ~(std::uint64_t{1} << (bucket / 64));
    }
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
  occupied_words_ |= std::uint64_t{1} << (bucket / 64);
}

}  // namespace portway
