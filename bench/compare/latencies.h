// Durations of a run, and their percentiles.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace portway::bench {

/// Durations in ns, 4.2 s at most; all are kept, so the percentiles are exact.
class Latencies {
 public:
  using Duration = std::chrono::steady_clock::duration;

  void add(Duration duration) {
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
    values_.push_back(static_cast<std::uint32_t>(
        std::clamp<std::chrono::nanoseconds::rep>(ns, 0, std::numeric_limits<std::uint32_t>::max())));
  }
  void clear() { values_.clear(); }
  std::size_t count() const { return values_.size(); }

  /// `part` of 0 to 1: 0.5 is the median, 1 the worst. 0 if there are none. Reorders the durations.
  double percentile_us(double part) {
    if (values_.empty()) return 0;
    const auto at =
        values_.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(values_.size() - 1));
    std::nth_element(values_.begin(), at, values_.end());
    return *at / 1e3;
  }

 private:
  std::vector<std::uint32_t> values_;
};

}  // namespace portway::bench
