#include "control/store_thread.h"

#include <pthread.h>

#include <string>
#include <system_error>
#include <utility>

#include "base/blocked_signals.h"

namespace portway {
namespace {

Error no_thread(const char* call, int number) {
  return {ErrorCode::kResourceExhausted, std::string("The store's thread: ") + call + ": " +
                                             std::generic_category().message(number) +
                                             "; raise the daemon's limits (LimitNOFILE=, TasksMax=)."};
}

}  // namespace

Result<std::unique_ptr<StoreThread>> StoreThread::start(const char* name,
                                                        const std::function<void()>& prepare) {
  std::unique_ptr<StoreThread> thread(new StoreThread());
  try {
    const BlockedSignals blocked;
    thread->thread_ = std::thread([self = thread.get(), prepare] {
      if (prepare) prepare();
      self->run();
    });
  } catch (const std::system_error& error) {
    return no_thread("thread", error.code().value());
  }
  ::pthread_setname_np(thread->thread_.native_handle(), name);
  return thread;
}

StoreThread::~StoreThread() {
  if (!thread_.joinable()) return;
  post(nullptr);
  thread_.join();
}

void StoreThread::post(std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
  more_.notify_one();
}

void StoreThread::run_and_wait(const std::function<void()>& job) {
  std::mutex mutex;
  std::condition_variable is_done;
  bool done = false;
  post([&] {
    job();
    const std::lock_guard lock(mutex);  // held while it is notified: it ends with this call
    done = true;
    is_done.notify_one();
  });
  std::unique_lock lock(mutex);
  is_done.wait(lock, [&] { return done; });
}

void StoreThread::run() {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      more_.wait(lock, [this] { return !jobs_.empty(); });
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    if (!job) return;
    job();
  }
}

}  // namespace portway
