// A thread of the store: works off jobs in their order, so that nobody else waits for the disk. Any thread
// may post; the control thread alone waits.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/error.h"

namespace portway {

class StoreThread {
 public:
  /// `name` is the thread's, of 15 bytes at most. `prepare` runs first. kResourceExhausted if there can be no
  /// thread.
  static Result<std::unique_ptr<StoreThread>> start(const char* name, const std::function<void()>& prepare);
  /// After the jobs that were posted.
  ~StoreThread();
  StoreThread(const StoreThread&) = delete;
  StoreThread& operator=(const StoreThread&) = delete;

  void post(std::function<void()> job);
  /// Runs `job` there and returns when it is done.
  void run_and_wait(const std::function<void()>& job);

 private:
  StoreThread() = default;
  void run();

  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<std::function<void()>> jobs_;  // under mutex_; an empty one is the end
  std::thread thread_;
};

}  // namespace portway
