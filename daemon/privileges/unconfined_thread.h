// A thread that is in no sandbox (daemon/privileges/sandbox.h), and does what a confined one needs and may
// not do itself: start the process of an upgrade, and open another process's network namespace, which
// Landlock refuses as it refuses ptrace(2). It handles no byte from outside.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace portway {

class UnconfinedThread {
 public:
  /// While the calling thread is not confined: the new one would be, too. If there can be no more threads,
  /// the calling ones do it themselves, and are refused if they are confined.
  UnconfinedThread();
  ~UnconfinedThread();
  UnconfinedThread(const UnconfinedThread&) = delete;
  UnconfinedThread& operator=(const UnconfinedThread&) = delete;

  /// Runs the job there and returns when it is done. Any thread, one at a time; not from a job.
  void run_and_wait(std::function<void()> job);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> job_;  // under mutex_
  bool ending_ = false;        // under mutex_
  std::thread thread_;
};

}  // namespace portway
