#include "control/store_thread.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <array>
#include <atomic>
#include <cerrno>
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

Result<std::unique_ptr<StoreThread>> StoreThread::start(const std::function<void()>& prepare) {
  Fd done(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!done) return no_thread("eventfd", errno);
  std::unique_ptr<StoreThread> thread(new StoreThread(std::move(done)));
  try {
    const BlockedSignals blocked;
    thread->thread_ = std::thread([self = thread.get(), prepare] {
      if (prepare) prepare();
      self->run();
    });
  } catch (const std::system_error& error) {
    return no_thread("thread", error.code().value());
  }
  ::pthread_setname_np(thread->thread_.native_handle(), "store");
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

void StoreThread::run_and_wait(const std::function<void()>& job, const Store::Meanwhile& meanwhile) {
  std::atomic<bool> done = false;
  post([&] {
    job();
    done.store(true, std::memory_order_release);
    (void)::eventfd_write(done_.get(), 1);
  });
  while (!done.load(std::memory_order_acquire)) {
    std::array<pollfd, 2> waiting = {{{.fd = done_.get(), .events = POLLIN, .revents = 0},
                                      {.fd = meanwhile.descriptor, .events = POLLIN, .revents = 0}}};
    if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;  // EINTR
    if (waiting[1].revents != 0) meanwhile.dispatch();
    eventfd_t count = 0;
    if (waiting[0].revents != 0) (void)::eventfd_read(done_.get(), &count);
  }
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
