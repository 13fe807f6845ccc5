#include "proxy/busy_poll.h"

#include <algorithm>

namespace portway {

void BusyPoll::happened(Nanos idle) {
  if (max_ == Nanos::zero()) return;
  if (idle <= window_) {
    credit_ = std::min(credit_ + 1, kCreditMax);
    return;
  }
  if (idle > 2 * max_) {  // a sleep and a wake-up take little time in comparison
    window_ = Nanos::zero();
    return;
  }
  if (rest_ > 0) {
    --rest_;
    return;
  }
  if (window_ == max_) {
    credit_ -= kCost;
    if (credit_ >= 0) return;
    credit_ = 0;
    rest_ = kRest;
    window_ = Nanos::zero();
    return;
  }
  // The sleep was short, including the wake-up.
  window_ = std::clamp(2 * window_, std::min(kFirst, max_), max_);
}

}  // namespace portway
