// Numbers that one thread writes and any thread reads, at any time: a relaxed load and store, no locked
// instruction.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace portway {

/// A number with exactly one writing thread.
class Counter {
 public:
  void add(std::uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  void sub(std::uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) - n, std::memory_order_relaxed);
  }
  std::uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

/// A histogram of durations with fixed buckets (upper bounds in seconds, the last is +Inf).
template <std::size_t N>
struct Histogram {
  std::array<Counter, N + 1> buckets;  // not cumulative
  Counter sum_us;

  void observe_us(std::uint64_t us, const std::array<double, N>& bounds_s) {
    const auto value = static_cast<double>(us);
    std::size_t i = 0;
    while (i < N && bounds_s[i] * 1e6 < value) ++i;
    buckets[i].add();
    sum_us.add(us);
  }
};

}  // namespace portway
