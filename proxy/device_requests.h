// Instances whose clients wait for their tap's carrier. While other links change, the kernel reports a
// carrier up to a second late. So a worker that has a client for a session without a device asks the
// control thread to check.
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

  /// The instances requested since the last call, each once.
  std::set<std::string> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(instances_, {});
  }

 private:
  std::mutex mutex_;
  std::set<std::string> instances_;  // at most the instances with forwards
};

}  // namespace portway
