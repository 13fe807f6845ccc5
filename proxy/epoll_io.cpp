#include "proxy/epoll_io.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/fd.h"
#include "proxy/kernel_io.h"

namespace portway {
namespace {

constexpr int kEvents = 1024;  // taken from the kernel at a time

class EpollIo final : public KernelIo {
 public:
  EpollIo(Fd epoll, Fd event) : epoll_(std::move(epoll)), event_(std::move(event)) {}

  std::string_view name() const override { return "epoll"; }

  void poll(Token token, int fd) override {
    operation(fd) = {token, true};
    epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET, .data = {.fd = fd}};
    // The kernel still has a descriptor whose operation was cancelled but that is still open.
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0 &&
        (errno != EEXIST || ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) < 0)) {
      operation(fd) = {};
      pending_.push_back({token, -errno, false});
    }
  }

  void cancel(Token, int fd) override {
    // Not EPOLL_CTL_DEL: a cancelled descriptor is closed next, which does the same. Until then its events
    // are ignored.
    if (!operation(fd).armed) return;
    pending_.push_back({operation(fd).token, -ECANCELED, false});
    operation(fd) = {};
  }

  std::span<const Completion> wait(Nanos timeout) override {
    completions_.clear();
    completions_.swap(pending_);
    const int count =
        ::epoll_wait(epoll_.get(), events_.data(), kEvents, completions_.empty() ? milliseconds(timeout) : 0);
    for (int i = 0; i < count; ++i) {
      const int fd = events_[i].data.fd;
      if (fd == event_.get()) {
        std::uint64_t wakes;
        [[maybe_unused]] const auto got = ::read(fd, &wakes, sizeof wakes);
      } else if (operation(fd).armed) {
        // The bits of epoll and poll are the same.
        completions_.push_back({operation(fd).token, static_cast<std::int32_t>(events_[i].events), true});
      }
    }
    completions_.insert(completions_.end(), pending_.begin(), pending_.end());
    pending_.clear();
    return completions_;
  }

  void wake() override {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
  }

 private:
  struct Operation {
    Token token = 0;
    bool armed = false;
  };

  Operation& operation(int fd) {
    const auto index = static_cast<std::size_t>(fd);
    if (index >= operations_.size()) operations_.resize(index + 1);
    return operations_[index];
  }

  static int milliseconds(Nanos timeout) {
    if (timeout < Nanos::zero()) return -1;
    return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(timeout).count());
  }

  Fd epoll_;
  Fd event_;
  std::vector<Operation> operations_;  // by descriptor
  std::vector<Completion> completions_;
  std::vector<Completion> pending_;  // made between two waits
  std::array<epoll_event, kEvents> events_;
};

}  // namespace

Result<std::unique_ptr<Io>> make_epoll_io() {
  Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  Fd event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  epoll_event wake{.events = EPOLLIN, .data = {.fd = event.get()}};
  if (!epoll || !event || ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, event.get(), &wake) < 0) {
    return Error{.code = ErrorCode::kResourceExhausted,
                 .detail = fmt::format("epoll: {}: raise RLIMIT_NOFILE", std::strerror(errno)),
                 .field = "proxy.io_backend"};
  }
  return std::unique_ptr<Io>(std::make_unique<EpollIo>(std::move(epoll), std::move(event)));
}

}  // namespace portway
