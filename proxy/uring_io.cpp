#include "proxy/uring_io.h"

#include <fmt/format.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "proxy/kernel_io.h"

namespace portway {
namespace {

// Sizes proven under load: an entry for every connection event of a busy turn. Both only bound one batch:
// a full submission queue is submitted early, and the kernel keeps completions that do not fit.
constexpr unsigned kSubmissions = 2048;
constexpr unsigned kCompletions = 16384;

// The kernel's user_data of an operation: its descriptor, and above it a number that no earlier operation
// on that descriptor had. A cancellation has the user_data of what it cancels, plus this bit.
constexpr std::uint64_t kCancellation = std::uint64_t{1} << 63;
constexpr unsigned kNumberShift = 32;

// After the kernel has refused, nothing is submitted for this long, doubled each time.
constexpr Nanos kRefusedMin = std::chrono::milliseconds(1);
constexpr Nanos kRefusedMax = std::chrono::milliseconds(100);

// Between two times that everything is armed again. Doubled each time while completions are being lost,
// since every operation armed before has one more completion.
constexpr Nanos kRecoveryMin = std::chrono::milliseconds(20);
constexpr Nanos kRecoveryMax = std::chrono::seconds(1);

/// What a ring does is not a system call, and no seccomp filter sees it: it could open files. So a ring of
/// ours does what it is for, and nothing else (IORING_REGISTER_RESTRICTIONS, Linux 5.10). Before it is
/// enabled.
int restrict_ring(const io_uring& ring) {
  std::array<io_uring_restriction, 5> allowed{};
  auto allow = [next = allowed.begin()](unsigned kind, std::uint8_t value) mutable {
    next->opcode = static_cast<std::uint16_t>(kind);
    next->sqe_op = value;  // also register_op and sqe_flags, of which it is a union
    ++next;
  };
  allow(IORING_RESTRICTION_SQE_OP, IORING_OP_POLL_ADD);
  allow(IORING_RESTRICTION_SQE_OP, IORING_OP_ASYNC_CANCEL);
  allow(IORING_RESTRICTION_SQE_FLAGS_ALLOWED, IOSQE_CQE_SKIP_SUCCESS);
  allow(IORING_RESTRICTION_REGISTER_OP, IORING_REGISTER_ENABLE_RINGS);
  allow(IORING_RESTRICTION_REGISTER_OP, IORING_REGISTER_RING_FDS);
  const long result = ::syscall(__NR_io_uring_register, ring.ring_fd, IORING_REGISTER_RESTRICTIONS,
                                allowed.data(), allowed.size());
  return result < 0 ? -errno : 0;
}

/// Sets up a ring with the best flags that this kernel supports. It is disabled: it belongs to the thread
/// that enables it.
int set_up(io_uring& ring, unsigned submissions, unsigned completions) {
  // SINGLE_ISSUER (6.0) and DEFER_TASKRUN (6.1): completions are processed only when we ask, on our own
  // thread, so a wake-up never interrupts a relay. COOP_TASKRUN (5.19) is the older, weaker form.
  // TASKRUN_FLAG (5.19) shows that there are more; see collect_all(). NO_SQARRAY (6.6) would save a cache
  // line but needs liburing 2.5.
  const unsigned preferred[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
          IORING_SETUP_R_DISABLED,
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
          IORING_SETUP_R_DISABLED,
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED,
      IORING_SETUP_R_DISABLED};
  int result = -EINVAL;
  for (const unsigned flags : preferred) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CQSIZE;
    params.cq_entries = completions;
    result = io_uring_queue_init_params(submissions, &ring, &params);
    if (result < 0 && result != -EINVAL) return result;
    if (result < 0) continue;
    result = restrict_ring(ring);
    if (result < 0) io_uring_queue_exit(&ring);
    return result;
  }
  return result;
}

/// io_uring_enable_rings(): liburing 2.3 declares it but, as Debian 12 builds it, does not export it.
int enable_ring(const io_uring& ring) {
  const long result =
      ::syscall(__NR_io_uring_register, ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  return result < 0 ? -errno : 0;
}

/// Arms a multishot poll and cancels it by descriptor (Linux 5.19).
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

/// Remembers every armed operation by its descriptor. If completions are lost, the kernel does not say
/// which; so everything is armed again, and arming reports the current state.
class UringIo final : public KernelIo {
 public:
  UringIo(const io_uring& ring, Fd event, UringEnter enter)
      : ring_(ring), event_(std::move(event)), enter_(std::move(enter)) {
    completions_.reserve(kCompletions);
  }
  ~UringIo() override { io_uring_queue_exit(&ring_); }

  std::string_view name() const override { return "uring"; }
  void count_in(WorkerCounters& counters) override { counters_ = &counters; }

  void poll(Token token, int fd) override { arm(Kind::kPoll, token, fd); }
  void cancel(Token, int fd) override {
    Operation& operation = operation_of(fd);
    if (operation.kind == Kind::kNone) return;
    operation.cancelled = true;
    request({Kind::kNone, fd, operation.id | kCancellation});
  }

  std::span<const Completion> wait(Nanos timeout) override {
    if (!enabled_) enable();
    completions_.clear();
    if (operation_of(event_.get()).kind == Kind::kNone) {
      // Until it is armed, only a check notices a wake-up.
      if (now() >= watch_again_at_) arm(Kind::kWake, 0, event_.get());
      timeout = earlier(timeout, kRefusedMax);
    }
    if (must_recover_) timeout = earlier(timeout, std::max(Nanos::zero(), recover_again_at_ - now()));
    enter(timeout);
    collect_all();
    must_recover_ = must_recover_ || *ring_.cq.koverflow != lost_;
    if (must_recover_ && now() >= recover_again_at_) recover();
    return completions_;
  }

  void wake() override {
    const std::uint64_t one = 1;
    // EAGAIN means that 2^64-1 wake-ups are pending: nothing to add.
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
  }

 private:
  enum class Kind : std::uint8_t { kNone, kPoll, kWake };
  /// The operation armed on a descriptor.
  struct Operation {
    std::uint64_t id = 0;
    Token token = 0;
    Kind kind = Kind::kNone;
    bool cancelled = false;
  };
  struct Request {
    Kind kind;  // kNone: cancel the operation `id`
    int fd;
    std::uint64_t id;
  };

  static Nanos earlier(Nanos timeout, Nanos limit) {
    return timeout < Nanos::zero() ? limit : std::min(timeout, limit);
  }

  Operation& operation_of(int fd) {
    const auto index = static_cast<std::size_t>(fd);
    if (index >= operations_.size()) operations_.resize(index + 1);
    return operations_[index];
  }

  void arm(Kind kind, Token token, int fd) {
    if (!enabled_) enable();
    Operation& operation = operation_of(fd);
    assert(operation.kind == Kind::kNone);
    number_ = (number_ + 1) & (UINT32_MAX >> 1);
    operation = {std::uint64_t{number_} << kNumberShift | static_cast<std::uint32_t>(fd), token, kind};
    request({kind, fd, operation.id});
  }

  void request(const Request& request) {
    if (waiting_.empty() && put(request)) return;
    // The queue is full.
    if (waiting_.empty() && submit(Nanos::zero()) && put(request)) return;
    waiting_.push_back(request);
  }

  bool put(const Request& request) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return false;
    switch (request.kind) {
      case Kind::kPoll:
        io_uring_prep_poll_multishot(sqe, request.fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI);
        break;
      case Kind::kWake:
        io_uring_prep_poll_multishot(sqe, request.fd, POLLIN);
        break;
      case Kind::kNone:
        // Not POLL_REMOVE: it can answer -EALREADY just after a shutdown(2) and then leaves the poll, and the
        // file, behind. Not by descriptor: the kernel would look at every armed operation, ten thousand
        // listeners among them.
        io_uring_prep_cancel64(sqe, request.id & ~kCancellation, 0);
        io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
        break;
    }
    io_uring_sqe_set_data64(sqe, request.id);
    return true;
  }

  /// Makes the ring this thread's.
  void enable() {
    enabled_ = true;
    enable_ring(ring_);
    io_uring_register_ring_fd(&ring_);  // saves the lookup of the ring's descriptor; harmless if it fails
    arm(Kind::kWake, 0, event_.get());
  }

  void enter(Nanos timeout) {
    std::size_t put_in = 0;
    while (put_in < waiting_.size() && put(waiting_[put_in])) ++put_in;
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(put_in));
    if (submit(waiting_.empty() ? timeout : Nanos::zero())) return;
    // Operations already armed stay armed.
    const Nanos limit = earlier(timeout, std::max(Nanos::zero(), submit_again_at_ - now()));
    __kernel_timespec time{.tv_sec = 0, .tv_nsec = limit.count()};
    io_uring_cqe* cqe = nullptr;
    if (limit == Nanos::zero()) {
      io_uring_get_events(&ring_);
    } else {
      io_uring_wait_cqe_timeout(&ring_, &cqe, &time);
    }
  }

  /// False if the kernel refuses, now or a moment ago.
  bool submit(Nanos timeout) {
    if (submit_again_at_ != Nanos::zero() && now() < submit_again_at_) return false;
    const int result = enter_(ring_, timeout);
    if (result >= 0 || result == -EINTR || result == -ETIME) {
      submit_again_at_ = refused_for_ = Nanos::zero();
      return true;
    }
    if (result == -EBADR) {  // reported once
      must_recover_ = true;
      return true;
    }
    on_refused();  // EAGAIN, ENOMEM: no memory for what is to be armed; EBUSY: completions are to be taken
                   // first
    return false;
  }

  void on_refused() {
    refused_for_ = std::clamp(2 * refused_for_, kRefusedMin, kRefusedMax);
    submit_again_at_ = now() + refused_for_;
    if (counters_ != nullptr) counters_->io_refusals.add();
  }

  /// With DEFER_TASKRUN one call processes at most 20 events (io_uring/io_uring.c,
  /// IO_LOCAL_TW_DEFAULT_MAX, since Linux 6.14). The rest would wait for another turn, under load for
  /// hundreds of turns. The flag alone proves nothing: the kernel sets it after queuing the event, which
  /// may have been processed meanwhile.
  void collect_all() {
    for (bool more = true; more && (IO_URING_READ_ONCE(*ring_.sq.kflags) & IORING_SQ_TASKRUN) != 0;) {
      const unsigned ready = io_uring_cq_ready(&ring_);
      if (ready >= kCompletions / 2 || io_uring_get_events(&ring_) < 0) break;
      more = io_uring_cq_ready(&ring_) > ready;
    }
    collect();
  }

  void collect() {
    unsigned head;
    unsigned seen = 0;
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      ++seen;
      if ((cqe->user_data & kCancellation) != 0) {
        on_cancellation(*cqe);
      } else {
        on_completion(*cqe);
      }
      if (seen == kCompletions) break;
    }
    io_uring_cq_advance(&ring_, seen);
  }

  void on_completion(const io_uring_cqe& cqe) {
    const int fd = static_cast<int>(static_cast<std::uint32_t>(cqe.user_data));
    Operation& operation = operation_of(fd);
    const bool more = (cqe.flags & IORING_CQE_F_MORE) != 0;
    if (operation.id != cqe.user_data || operation.kind == Kind::kNone) return;  // it has been armed again
    if (operation.kind == Kind::kWake) {
      if (!more) operation.kind = Kind::kNone;
      on_wake(cqe.res);
    } else {
      completions_.push_back({operation.token, cqe.res, more});
      if (!more) operation.kind = Kind::kNone;
    }
  }

  void on_wake(int result) {
    std::uint64_t count;
    [[maybe_unused]] const auto got = ::read(event_.get(), &count, sizeof count);
    watch_again_at_ = result < 0 ? now() + kRefusedMax : Nanos::zero();
  }

  void on_cancellation(const io_uring_cqe& cqe) {
    // -ENOENT: the operation has ended by itself; its last completion was or will be seen.
    if (cqe.res == -ENOENT) return;
    // -EALREADY: it was running just then.
    if (cqe.res != -EALREADY) on_refused();
    const int fd = static_cast<int>(static_cast<std::uint32_t>(cqe.user_data));
    request({Kind::kNone, fd, cqe.user_data});
  }

  /// Completions were lost: arms everything again. Pending cancellations count as done.
  void recover() {
    must_recover_ = false;
    lost_ = *ring_.cq.koverflow;
    const bool again = now() - recover_again_at_ < kRecoveryMax;
    recovered_for_ = again ? std::min(2 * recovered_for_, kRecoveryMax) : kRecoveryMin;
    recover_again_at_ = now() + recovered_for_;
    if (counters_ != nullptr) counters_->io_losses.add();
    for (std::size_t fd = 0; fd < operations_.size(); ++fd) {
      const Operation before = operations_[fd];
      if (before.kind == Kind::kNone) continue;
      request({Kind::kNone, static_cast<int>(fd), before.id | kCancellation});
      operations_[fd].kind = Kind::kNone;
      if (before.cancelled) {
        completions_.push_back({before.token, -ECANCELED, false});
      } else {
        arm(before.kind, before.token, static_cast<int>(fd));
      }
    }
  }

  io_uring ring_;
  Fd event_;
  const UringEnter enter_;
  WorkerCounters* counters_ = nullptr;
  bool enabled_ = false;
  std::vector<Operation> operations_;  // by descriptor
  std::uint32_t number_ = 0;           // of the last armed operation
  std::vector<Request> waiting_;       // in order, until the ring's queue has room
  Nanos submit_again_at_{0};           // set when the kernel refuses; 0: it has not
  Nanos refused_for_{0};               // the last time
  Nanos watch_again_at_{0};            // event_
  std::uint32_t lost_ = 0;             // completions lost so far
  bool must_recover_ = false;          // completions were lost since everything was armed
  Nanos recover_again_at_{0};
  Nanos recovered_for_{0};
  std::vector<Completion> completions_;
};

}  // namespace

int enter_uring(io_uring& ring, Nanos timeout) {
  if (timeout == Nanos::zero()) return io_uring_submit_and_get_events(&ring);
  if (timeout < Nanos::zero()) return io_uring_submit_and_wait(&ring, 1);
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout);
  __kernel_timespec limit{.tv_sec = seconds.count(), .tv_nsec = (timeout - seconds).count()};
  io_uring_cqe* cqe = nullptr;
  return io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &limit, nullptr);
}

Result<std::unique_ptr<Io>> make_uring_io() {
  return make_uring_io(enter_uring);
}

Result<std::unique_ptr<Io>> make_uring_io(UringEnter enter) {
  if (const int result = try_out(); result < 0) return refused(result);
  Fd event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!event) return refused(-errno);
  io_uring ring;
  if (const int result = set_up(ring, kSubmissions, kCompletions); result < 0) return refused(result);
  return std::unique_ptr<Io>(std::make_unique<UringIo>(ring, std::move(event), std::move(enter)));
}

}  // namespace portway
