#include "daemon/privileges/unconfined_thread.h"

#include <pthread.h>

#include <system_error>
#include <utility>

#include "base/blocked_signals.h"

namespace portway {

UnconfinedThread::UnconfinedThread() {
  try {
    const BlockedSignals blocked;
    thread_ = std::thread([this] { run(); });
    ::pthread_setname_np(thread_.native_handle(), "unconfined");
  } catch (const std::system_error&) {
    // See run_and_wait().
  }
}

UnconfinedThread::~UnconfinedThread() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void UnconfinedThread::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || job_; });
    if (ending_) return;
    job_();
    job_ = nullptr;
    changed_.notify_all();
  }
}

void UnconfinedThread::run_and_wait(std::function<void()> job) {
  if (!thread_.joinable()) return job();
  std::unique_lock lock(mutex_);
  job_ = std::move(job);
  changed_.notify_all();
  changed_.wait(lock, [this] { return !job_; });
}

}  // namespace portway
