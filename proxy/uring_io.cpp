#include "proxy/uring_io.h"

#include <fmt/format.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>
#include <vector>

#include "config/fd.h"
#include "proxy/kernel_io.h"

namespace portway {
namespace {

// Sizes that worked under load: an entry for every connection event of a busy turn. Both are bounds for one
// batch only: a full submission queue is submitted early, and the kernel keeps completions that do not fit.
constexpr unsigned kSubmissions = 2048;
constexpr unsigned kCompletions = 16384;

// Our own operations carry this bit; a cancellation has the token below it.
constexpr std::uint64_t kOwn = std::uint64_t{1} << 63;
constexpr std::uint64_t kWake = kOwn | (std::uint64_t{1} << 62);

/// A ring with the best flags that this kernel knows. Disabled: it belongs to the thread that enables it.
int set_up(io_uring& ring, unsigned submissions, unsigned completions) {
  // SINGLE_ISSUER (6.0) and DEFER_TASKRUN (6.1): completions are worked off only when we ask, on our own
  // thread, so a wake-up never interrupts a relay. COOP_TASKRUN (5.19) is the older, weaker form of it.
  // NO_SQARRAY (6.6) would save a cache line but needs liburing 2.5.
  const unsigned preferred[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED,
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_R_DISABLED,
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_R_DISABLED, IORING_SETUP_R_DISABLED};
  int result = -EINVAL;
  for (const unsigned flags : preferred) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CQSIZE;
    params.cq_entries = completions;
    result = io_uring_queue_init_params(submissions, &ring, &params);
    if (result != -EINVAL) return result;
  }
  return result;
}

/// io_uring_enable_rings(): liburing 2.3 declares it but, as Debian 12 builds it, does not export it.
int enable_ring(const io_uring& ring) {
  const long result =
      ::syscall(__NR_io_uring_register, ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  return result < 0 ? -errno : 0;
}

/// Arms a multishot poll and cancels it by descriptor, which came with Linux 5.19 as multishot accept did.
int try_out() {
  io_uring ring;
  if (const int result = set_up(ring, 8, 16); result < 0) return result;
  Fd event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  int result = enable_ring(ring);
  if (result >= 0) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring);
    io_uring_prep_poll_multishot(sqe, event.get(), POLLIN);
    io_uring_sqe_set_data64(sqe, 1);
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_cancel_fd(sqe, event.get(), 0);
    io_uring_sqe_set_data64(sqe, 2);
    result = io_uring_submit_and_wait(&ring, 2);
    io_uring_cqe* cqe = nullptr;
    while (result >= 0 && io_uring_peek_cqe(&ring, &cqe) == 0) {
      if (cqe->user_data == 2 && cqe->res < 0) result = cqe->res;
      io_uring_cqe_seen(&ring, cqe);
    }
  }
  io_uring_queue_exit(&ring);
  return result < 0 ? result : 0;
}

Error refused(int result) {
  std::string_view cause;
  switch (-result) {
    case EPERM:
    case EACCES:
      cause = "a seccomp profile (Docker's default one does) or kernel.io_uring_disabled forbids it";
      break;
    case ENOSYS:
      cause = "this kernel is built without it";
      break;
    case ENOMEM:
      cause = "RLIMIT_MEMLOCK or the memory cgroup is too small";
      break;
    case EINVAL:
      cause = "this kernel is older than 5.19";
      break;
    default:
      cause = "unexpected";
      break;
  }
  return {.code = ErrorCode::kResourceExhausted,
          .detail = fmt::format("io_uring: {}: {}", std::strerror(-result), cause),
          .field = "proxy.io_backend"};
}

class UringIo final : public KernelIo {
 public:
  UringIo(const io_uring& ring, Fd event) : ring_(ring), event_(std::move(event)) {
    completions_.reserve(kCompletions);
  }
  ~UringIo() override { io_uring_queue_exit(&ring_); }

  std::string_view name() const override { return "uring"; }

  void accept(Token token, int listener) override {
    io_uring_sqe* sqe = next_sqe(token);
    io_uring_prep_multishot_accept(sqe, listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, token);
  }

  void poll(Token token, int fd) override {
    io_uring_sqe* sqe = next_sqe(token);
    io_uring_prep_poll_multishot(sqe, fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI);
    io_uring_sqe_set_data64(sqe, token);
  }

  void cancel(Token token, int) override {
    // Not POLL_REMOVE: it can answer -EALREADY just after a shutdown(2) and then leaves the poll, and the
    // file, behind. Not by descriptor: the kernel would look at every armed operation, ten thousand listeners
    // among them.
    io_uring_sqe* sqe = next_sqe(0);
    io_uring_prep_cancel64(sqe, token, 0);
    io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
    io_uring_sqe_set_data64(sqe, kOwn | token);
  }

  std::span<const Completion> wait(Nanos timeout) override {
    if (!enabled_) enable();
    enter(timeout);
    completions_.clear();
    unsigned head;
    unsigned seen = 0;
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      ++seen;
      if ((cqe->user_data & kOwn) != 0) {
        on_own(*cqe);
      } else {
        completions_.push_back({cqe->user_data, cqe->res, (cqe->flags & IORING_CQE_F_MORE) != 0});
      }
      if (seen == kCompletions) break;
    }
    io_uring_cq_advance(&ring_, seen);
    return completions_;
  }

  void wake() override {
    const std::uint64_t one = 1;
    // EAGAIN means that 2^64-1 wake-ups are pending: as good as done.
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
  }

 private:
  io_uring_sqe* next_sqe(Token token) {
    assert((token & (kOwn | kWake)) == 0);
    (void)token;
    if (!enabled_) enable();
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    while (sqe == nullptr) {
      io_uring_submit(&ring_);
      sqe = io_uring_get_sqe(&ring_);
    }
    return sqe;
  }

  /// The ring becomes this thread's.
  void enable() {
    enabled_ = true;
    enable_ring(ring_);
    io_uring_register_ring_fd(&ring_);  // saves the look-up of the ring's descriptor; harmless where it fails
    watch_event();
  }

  void watch_event() {
    io_uring_sqe* sqe = next_sqe(0);
    io_uring_prep_poll_multishot(sqe, event_.get(), POLLIN);
    io_uring_sqe_set_data64(sqe, kWake);
  }

  void enter(Nanos timeout) {
    if (timeout == Nanos::zero()) {
      io_uring_submit_and_get_events(&ring_);
    } else if (timeout < Nanos::zero()) {
      io_uring_submit_and_wait(&ring_, 1);
    } else {
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout);
      __kernel_timespec limit{.tv_sec = seconds.count(), .tv_nsec = (timeout - seconds).count()};
      io_uring_cqe* cqe = nullptr;
      io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &limit, nullptr);
    }
  }

  void on_own(const io_uring_cqe& cqe) {
    if (cqe.user_data == kWake) {
      std::uint64_t count;
      [[maybe_unused]] const auto got = ::read(event_.get(), &count, sizeof count);
      if ((cqe.flags & IORING_CQE_F_MORE) == 0) watch_event();
    } else if (cqe.res == -EALREADY) {
      cancel(cqe.user_data & ~kOwn, -1);  // it was running just then: try again
    }
    // -ENOENT: the operation had ended by itself; its last completion has been or will be seen.
  }

  io_uring ring_;
  Fd event_;
  bool enabled_ = false;
  std::vector<Completion> completions_;
};

}  // namespace

Result<std::unique_ptr<Io>> make_uring_io() {
  if (const int result = try_out(); result < 0) return refused(result);
  Fd event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!event) return refused(-errno);
  io_uring ring;
  if (const int result = set_up(ring, kSubmissions, kCompletions); result < 0) return refused(result);
  return std::unique_ptr<Io>(std::make_unique<UringIo>(ring, std::move(event)));
}

}  // namespace portway
