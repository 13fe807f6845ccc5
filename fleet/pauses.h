// How long to wait between two tries.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>

#include "base/random.h"

namespace portway {

/// Between half and all of it, so that many nodes do not do the same at once.
inline std::chrono::milliseconds jittered(std::chrono::milliseconds time) {
  const auto half = static_cast<std::uint32_t>(std::max<std::int64_t>(time.count() / 2, 1));
  return std::chrono::milliseconds(half + random_below(half + 1));
}

/// The longest pause doubles with each try, from `min` to `max`. Each is jittered().
class Pauses {
 public:
  Pauses(std::chrono::milliseconds min, std::chrono::milliseconds max) : min_(min), max_(max) {}

  std::chrono::milliseconds next() { return jittered(std::exchange(next_, std::min(2 * next_, max_))); }
  /// A try has succeeded.
  void reset() { next_ = min_; }

 private:
  const std::chrono::milliseconds min_;
  const std::chrono::milliseconds max_;
  std::chrono::milliseconds next_ = min_;
};

}  // namespace portway
