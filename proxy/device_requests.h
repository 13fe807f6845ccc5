// Instances whose clients wait for their tap's carrier. The kernel reports a carrier up to a second late
// while other links change: a worker that has a client for a session without a device asks the control thread
// to look.
//
// ask() from any worker, take() from the control thread, often.
#pragma once

#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace portway {

class DeviceRequests {
 public:
  void ask(const std::string& instance_id) {
    const std::lock_guard lock(mutex_);
    instances_.insert(instance_id);
  }

  /// Those asked for since the last call; each once.
  std::set<std::string> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(instances_, {});
  }

 private:
  std::mutex mutex_;
  std::set<std::string> instances_;  // no more than there are with forwards
};

}  // namespace portway
