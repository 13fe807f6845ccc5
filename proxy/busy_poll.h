// How long a worker looks for events before it sleeps.
//
// A wake-up takes longer than most answers of a guest: tens of microseconds on a virtual machine, twice
// for each request and response. So a worker that repeatedly gets something to do within a window polls
// for it, and lets other threads run between two polls; otherwise it sleeps at once. The window grows if
// sleeps turn out to be short. It closes after a long silence, or if polling fails too often, and then
// stays closed for a while. The same idea as KVM's halt polling (Documentation/virt/kvm/halt-polling.rst).
#pragma once

#include "proxy/io.h"

namespace portway {

class BusyPoll {
 public:
  /// Windows of at most `max`; zero: never.
  explicit BusyPoll(Nanos max) : max_(max) {}

  /// How long to poll before the next sleep.
  Nanos window() const { return window_; }

  /// Something happened; `idle` is the time since there was nothing left to do.
  void happened(Nanos idle);

 private:
  static constexpr Nanos kFirst = std::chrono::microseconds(10);
  static constexpr int kCreditMax = 16;  // at most so many successful windows make up for failed ones
  static constexpr int kCost = 4;        // of a full window that found nothing
  static constexpr int kRest = 64;       // waits without a window once the credit is gone

  const Nanos max_;
  Nanos window_{0};
  int credit_ = 0;
  int rest_ = 0;
};

}  // namespace portway
