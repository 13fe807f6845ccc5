#include "lifecycle/process_watch.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>

namespace portway {
namespace {

struct ProcessStat {
  char state = 0;
  std::uint64_t started = 0;
};

/// nullopt if it cannot be read. A missing file proves nothing: /proc may not be mounted, or may hide
/// other users' processes.
std::optional<ProcessStat> read_stat(std::int32_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // The second field, the program's name, may hold anything: count from its closing parenthesis.
  const auto name_end = text.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  ProcessStat stat;
  fields >> stat.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  if (!(fields >> stat.started)) return std::nullopt;
  return stat;
}

/// True also for a zombie, which has ended but was not waited for.
bool is_readable(const Fd& pidfd) {
  pollfd ended{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  return ::poll(&ended, 1, 0) == 1;
}

}  // namespace

ProcessState ProcessWatch::look() {
  if (!pidfd_) {
    pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0U)));
    if (!pidfd_ && errno == ESRCH) return ProcessState::kEnded;
  }
  if (pidfd_ && is_readable(pidfd_)) return ProcessState::kEnded;
  if (is_the_one_) return ProcessState::kRuns;
  if (!pidfd_ && ::kill(pid_, 0) != 0 && errno == ESRCH) return ProcessState::kEnded;
  // Read after opening the pidfd: it is about the same process, or the descriptor is readable already.
  const auto stat = read_stat(pid_);
  if (!stat) return ProcessState::kUnseen;
  if (started_ != 0 && stat->started != started_) return ProcessState::kEnded;
  if (!pidfd_ && (stat->state == 'Z' || stat->state == 'X')) return ProcessState::kEnded;
  started_ = stat->started;
  is_the_one_ = static_cast<bool>(pidfd_);
  return is_the_one_ ? ProcessState::kRuns : ProcessState::kUnseen;
}

}  // namespace portway
