#include "handover/keeper.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <iterator>
#include <new>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "base/sealed_memory.h"
#include "base/socket.h"
#include "handover/descriptors.h"
#include "handover/transfer.h"

namespace portway {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// A successor that has come gets as much time again, at most this often.
constexpr int kTimeoutsMax = 4;
constexpr milliseconds kLookAfter(200);
constexpr timeval kSendMax{.tv_sec = 5, .tv_usec = 0};

/// The keeper's process once the daemon has died. Its table of descriptors is its own then.
class Watch {
 public:
  Watch(const KeeperControl& control, const Fd& memory)
      : control_(control),
        control_memory_(memory.get()),
        began_(steady_clock::now()),
        deadline_(began_ + timeout()),
        successor_(control.successor.load()) {}

  void run() {
    int error = 0;
    listener_ = listen_for_successor(control_.path.data(), error);
    if (control_.taken.load() != 0) ::unlink(control_.path.data());  // too late for take() to do it
    sort_descriptors();
    say(fmt::format("the daemon has died: {} descriptors wait for the next one{}", kept_.size(),
                    error == 0 ? fmt::format(", for up to {} s", timeout().count() / 1000)
                               : fmt::format(", which cannot have them: {}: {}", control_.path.data(),
                                             std::system_category().message(error))));
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::close(fd);
    if (listener_) wait_for_successor();
    if (control_.taken.load() == 0) give_up();
  }

 private:
  milliseconds timeout() const { return milliseconds(control_.timeout_ms.load()); }

  static void say(std::string_view text) {
    const std::string line = fmt::format("{} warning {}\n", to_rfc3339(now()), text);
    (void)!::write(STDERR_FILENO, line.data(), line.size());
  }

  /// What no successor can use is closed now: the store's files with their locks above all, and namespaces.
  /// Only after listen_for_successor(): whoever gets the store's lock then finds the keeper.
  void sort_descriptors() {
    const int memory = control_.memory.load();
    const std::vector<Descriptor> open = open_descriptors();
    kept_ = descriptors_to_hand_over(open);
    for (const auto& [fd, kind, device, inode] : open) {
      const bool own = fd <= STDERR_FILENO || fd == memory || fd == control_memory_ ||
                       fd == listener_.get() || fd == successor_.get();
      // A program on a tap works on until the successor has its own.
      if (own || std::ranges::binary_search(kept_, fd) || kind == DescriptorKind::kBpf) continue;
      ::close(fd);
    }
  }

  void wait_for_successor() {
    sigset_t ends;
    sigemptyset(&ends);
    for (const int signal : {SIGTERM, SIGINT}) sigaddset(&ends, signal);
    const Fd signals(::signalfd(-1, &ends, SFD_CLOEXEC));
    const Fd mounts(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
    std::vector<std::uint64_t> namespaces = named_namespaces();
    bool looked = false;
    for (;;) {
      auto left = std::chrono::duration_cast<milliseconds>(deadline_ - steady_clock::now());
      if (left <= milliseconds::zero()) return;
      if (!looked && steady_clock::now() - began_ >= kLookAfter) {
        looked = true;
        leave_deserted(namespaces);
      }
      if (!looked) left = std::min(left, kLookAfter);
      std::array<pollfd, 4> polled{pollfd{.fd = signals.get(), .events = POLLIN, .revents = 0},
                                   pollfd{.fd = listener_.get(), .events = POLLIN, .revents = 0},
                                   pollfd{.fd = successor_.get(), .events = POLLIN, .revents = 0},
                                   pollfd{.fd = mounts.get(), .events = POLLPRI, .revents = 0}};
      if (::poll(polled.data(), polled.size(), static_cast<int>(left.count()) + 1) < 0) continue;
      if (polled[0].revents != 0) return;
      if (polled[1].revents != 0 && !successor_) meet_successor();
      if (polled[2].revents != 0) {
        successor_.reset();  // it has all that it needs, or has died
        if (control_.taken.load() != 0) return;
      }
      if ((polled[3].revents & POLLPRI) != 0) {
        std::vector<std::uint64_t> named = named_namespaces();
        std::vector<std::uint64_t> gone;
        std::ranges::set_difference(namespaces, named, std::back_inserter(gone));
        if (!gone.empty()) leave(gone);
        namespaces = std::move(named);
      }
    }
  }

  void meet_successor() {
    Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket || user_of_peer(socket.get()) != ::geteuid()) return;
    ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendMax, sizeof kSendMax);
    deadline_ =
        std::max(deadline_, std::min(steady_clock::now() + timeout(), began_ + kTimeoutsMax * timeout()));
    if (send_estate(socket.get(), control_memory_, control_.memory.load(), kept_) == 0)
      successor_ = std::move(socket);
  }

  /// A name may have gone before this process could know it. A namespace that has neither a name nor a
  /// process is nobody's. Takes a while: not before a successor has had the time to come.
  void leave_deserted(std::span<const std::uint64_t> named) {
    std::set<std::uint64_t> deserted;
    for (const int fd : kept_) {
      if (kind_of(fd) == DescriptorKind::kPipe) continue;
      const std::uint64_t netns = netns_of_socket(fd);
      if (netns != 0 && !std::ranges::binary_search(named, netns)) deserted.insert(netns);
    }
    for (const std::uint64_t inhabited : namespaces_of_processes()) deserted.erase(inhabited);
    if (!deserted.empty()) leave(std::vector(deserted.begin(), deserted.end()));
  }

  /// A namespace without a name ends: nothing here may keep it.
  void leave(std::span<const std::uint64_t> namespaces) {
    std::erase_if(kept_, [&](int fd) {
      if (kind_of(fd) == DescriptorKind::kPipe) return false;
      if (!std::ranges::binary_search(namespaces, netns_of_socket(fd))) return false;
      close_with_reset(fd);
      return true;
    });
  }

  void give_up() {
    ::unlink(control_.path.data());
    for (const int fd : kept_) {
      if (kind_of(fd) == DescriptorKind::kConnection) close_with_reset(fd);
    }
  }

  const KeeperControl& control_;
  const int control_memory_;
  const steady_clock::time_point began_;
  steady_clock::time_point deadline_;
  Fd listener_;
  Fd successor_;
  std::vector<int> kept_;
};

/// Whether this process's descriptors are still its predecessor's keeper's to give.
bool predecessor_has_them(const KeeperControl& control) {
  const int fd = control.predecessor.load();
  if (fd < 0) return false;
  const Fd memory(fd);
  const MappedControl predecessor(memory);
  return predecessor && predecessor->taken.load() == 0;
}

[[noreturn]] void run_keeper(const Fd& control_memory, int daemon, const std::function<void()>& prepare) {
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_BLOCK, &all, nullptr);
  ::setsid();  // out of the reach of the terminal's signals
  ::prctl(PR_SET_NAME, Keeper::kProcessName.data());
  if (const Fd score(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC)); score)
    (void)!::write(score.get(), "-1000", 5);  // it has no memory worth freeing; EACCES without privileges
  if (prepare) prepare();
  pollfd death{.fd = daemon, .events = POLLIN, .revents = 0};
  while (::poll(&death, 1, -1) != 1) {
  }
  const MappedControl control(control_memory);
  if (control && control->memory.load() >= 0 && control->taken.load() == 0 &&
      !predecessor_has_them(*control)) {
    Watch(*control, control_memory).run();
  }
  ::_exit(0);
}

}  // namespace

MappedControl::MappedControl(const Fd& memory) {
  struct stat status {};
  if (::fstat(memory.get(), &status) != 0 || static_cast<std::size_t>(status.st_size) < sizeof(KeeperControl))
    return;
  void* mapped = ::mmap(nullptr, sizeof(KeeperControl), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (mapped != MAP_FAILED) control_ = static_cast<KeeperControl*>(mapped);
}

MappedControl::~MappedControl() {
  if (control_ != nullptr) ::munmap(control_, sizeof(KeeperControl));
}

Keeper::Keeper(Fd control_memory, pid_t process)
    : control_memory_(std::move(control_memory)), control_(control_memory_), process_(process) {}

std::unique_ptr<Keeper> Keeper::start(int& error, const std::function<void()>& prepare) {
  Fd memory = make_sealed_memory("portway-keeper", sizeof(KeeperControl));
  Fd daemon(memory ? static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)) : -1);
  if (!daemon) {
    error = errno;
    return nullptr;
  }
  if (const MappedControl control(memory); control) {
    new (&*control) KeeperControl();
  } else {
    error = ENOMEM;
    return nullptr;
  }
  const auto process = static_cast<pid_t>(::syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
  if (process == 0) run_keeper(memory, daemon.get(), prepare);
  if (process < 0) {
    error = errno;
    return nullptr;
  }
  daemon.release();  // the table is the keeper's too, which waits with it
  return std::unique_ptr<Keeper>(new Keeper(std::move(memory), process));
}

Keeper::~Keeper() {
  if (!alive()) return;
  ::kill(process_, SIGKILL);
  ::waitpid(process_, nullptr, 0);
}

bool Keeper::alive() {
  if (process_ != 0 && ::waitpid(process_, nullptr, WNOHANG) != 0) process_ = 0;
  return process_ != 0;
}

void Keeper::prepare() {
  known_ = open_descriptors();
}

int Keeper::hand_over(int successor, milliseconds patience) {
  const int memory = control_->memory.load();
  const std::vector<int> others = descriptors_to_hand_over(open_descriptors(std::exchange(known_, {})));
  ::setsockopt(successor, SOL_SOCKET, SO_SNDTIMEO, &kSendMax, sizeof kSendMax);
  control_->successor.store(
      successor);  // if this process is killed from now on, its keeper waits in its place
  int error = send_estate(successor, control_memory_.get(), memory, others);
  if (error == 0) {
    pollfd end{.fd = successor, .events = POLLIN, .revents = 0};
    const int polled = ::poll(&end, 1, static_cast<int>(patience.count()));
    if (!handed_over()) error = polled == 0 ? ETIMEDOUT : ECONNRESET;
  }
  control_->successor.store(-1);
  return error;
}

bool Keeper::keep(int memory, int predecessor, const std::string& path, milliseconds timeout) {
  if (!control_ || path.size() > KeeperControl::kPathMax) return false;
  std::ranges::copy(path, control_->path.begin());
  control_->timeout_ms.store(timeout.count());
  control_->predecessor.store(predecessor);
  control_->memory.store(memory);
  return true;
}

}  // namespace portway
