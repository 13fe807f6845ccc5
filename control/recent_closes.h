// The last connections that have ended, in memory: why did it close? Control thread only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "proxy/close_record.h"

namespace portway {

class RecentCloses {
 public:
  /// Keeps the last `capacity` ones; 0: none. A record is about 200 bytes, and keeps its forward's counters
  /// in memory.
  explicit RecentCloses(std::size_t capacity) : capacity_(capacity) {}

  void add(CloseRecord record) {
    if (capacity_ == 0) return;
    if (records_.size() < capacity_) {
      records_.push_back(std::move(record));
    } else {
      records_[next_] = std::move(record);
    }
    next_ = (next_ + 1) % capacity_;
  }

  /// At most `limit` records that `wanted` is true of, the latest first. Valid until the next add().
  template <class Wanted>
  std::vector<const CloseRecord*> latest(std::size_t limit, Wanted wanted) const {
    std::vector<const CloseRecord*> found;
    for (std::size_t i = 1; i <= records_.size() && found.size() < limit; ++i) {
      const CloseRecord& record = records_[(next_ + records_.size() - i) % records_.size()];
      if (wanted(record)) found.push_back(&record);
    }
    return found;
  }

 private:
  const std::size_t capacity_;
  std::vector<CloseRecord> records_;
  std::size_t next_ = 0;  // where the next one goes
};

}  // namespace portway
