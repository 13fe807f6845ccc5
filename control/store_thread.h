// The store's thread: works off jobs in their order, so that nobody else waits for the disk. Any thread may
// post; the control thread alone waits.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/fd.h"
#include "control/store.h"

namespace portway {

class StoreThread {
 public:
  /// `prepare` runs first. kResourceExhausted if there can be no thread.
  static Result<std::unique_ptr<StoreThread>> start(const std::function<void()>& prepare);
  /// After the jobs that were posted.
  ~StoreThread();
  StoreThread(const StoreThread&) = delete;
  StoreThread& operator=(const StoreThread&) = delete;

  void post(std::function<void()> job);
  /// Runs `job` there and returns when it is done; until then does what is due here.
  void run_and_wait(const std::function<void()>& job, const Store::Meanwhile& meanwhile);

 private:
  explicit StoreThread(Fd done) : done_(std::move(done)) {}
  void run();

  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<std::function<void()>> jobs_;  // under mutex_; an empty one is the end
  const Fd done_;                           // eventfd(2) for whoever waits
  std::thread thread_;
};

}  // namespace portway
