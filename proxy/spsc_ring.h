// A bounded queue from one thread to one other, without locks. A full queue rejects: the writer never
// waits.
#pragma once

#include <atomic>
#include <cassert>
#include <cstddef>
#include <utility>
#include <vector>

namespace portway {

template <class T>
class SpscRing {
 public:
  /// `capacity` is a power of two.
  explicit SpscRing(std::size_t capacity) : entries_(capacity) {
    assert(capacity != 0 && (capacity & (capacity - 1)) == 0);
  }

  /// The writing thread. False if the ring is full.
  bool push(T&& value) {
    const std::size_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_.load(std::memory_order_acquire) == entries_.size()) return false;
    entries_[tail & (entries_.size() - 1)] = std::move(value);
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }

  /// The reading thread: calls take(T&&) with each entry that was there at the beginning.
  template <class Take>
  void drain(Take take) {
    const std::size_t tail = tail_.load(std::memory_order_acquire);
    std::size_t head = head_.load(std::memory_order_relaxed);
    for (; head != tail; ++head) {
      take(std::exchange(entries_[head & (entries_.size() - 1)], T{}));
      head_.store(head + 1, std::memory_order_release);
    }
  }

 private:
  std::vector<T> entries_;
  alignas(64) std::atomic<std::size_t> tail_{0};  // written by the writer; both count up for ever
  alignas(64) std::atomic<std::size_t> head_{0};  // written by the reader
};

}  // namespace portway
