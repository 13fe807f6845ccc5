#include "daemon/supervise.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "base/fd.h"
#include "base/forward.h"
#include "daemon/arguments.h"
#include "daemon/child_process.h"
#include "handover/keeper.h"
#include "process/exit_codes.h"

namespace portway {
namespace {

using std::chrono::milliseconds;

// Before the next start, twice as long each time, unless the daemon has run for longer than that.
constexpr milliseconds kPauseMin(100);
constexpr milliseconds kPauseMax(5000);

void say(const std::string& text) {
  fmt::print(stderr, "{} warning {}\n", to_rfc3339(now()), text);
}

class Supervisor {
 public:
  int run() {
    // An upgrade's process becomes a child of this one when the one that started it has ended.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    sigemptyset(&handled_);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD})
      sigaddset(&handled_, signal);
    ::sigprocmask(SIG_BLOCK, &handled_, nullptr);
    const Fd signals(::signalfd(-1, &handled_, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals || !start()) return kExitFailed;
    while (!exit_code_) {
      pollfd ready{.fd = signals.get(), .events = POLLIN, .revents = 0};
      ::poll(&ready, 1, daemon_ == 0 ? static_cast<int>(pause_.count()) : -1);
      signalfd_siginfo signal{};
      while (::read(signals.get(), &signal, sizeof signal) == sizeof signal)
        on_signal(static_cast<int>(signal.ssi_signo));
      if (daemon_ == 0 && !exit_code_ && steady_clock::now() >= start_at_ && !start()) return kExitFailed;
    }
    return *exit_code_;
  }

 private:
  using steady_clock = std::chrono::steady_clock;

  bool start() {
    daemon_ = successor();  // it may not have been one yet when the daemon ended
    if (daemon_ != 0) return true;
    std::vector<std::string> arguments = command_line_of(::getpid());
    std::erase(arguments, "--supervise");
    int error = 0;
    daemon_ = start_process(program_, std::move(arguments), false, error);
    if (error != 0)
      say(fmt::format("the daemon cannot be started: {}", std::system_category().message(error)));
    started_ = steady_clock::now();
    return error == 0;
  }

  void on_signal(int signal) {
    if (signal == SIGCHLD) return reap();
    if (signal == SIGTERM || signal == SIGINT) {
      stopping_ = true;
      if (daemon_ == 0) exit_code_ = 0;
    }
    if (daemon_ != 0) ::kill(daemon_, signal);
  }

  /// Also keepers, which are nobody's child once their daemon has ended.
  void reap() {
    siginfo_t ended{};
    while (::waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid != 0) {
      const bool was_keeper = is_keeper(ended.si_pid);
      int status = 0;
      ::waitpid(ended.si_pid, &status, 0);
      if (ended.si_pid == daemon_) {
        on_end(status);
      } else if (!was_keeper) {
        successor_died_ = true;
      }
      ended = {};
    }
  }

  void on_end(int status) {
    daemon_ = 0;
    const bool exited = WIFEXITED(status);
    daemon_ = successor();
    if (daemon_ != 0) {
      if (stopping_) ::kill(daemon_, SIGTERM);
      return;
    }
    const bool by_itself = exited && WEXITSTATUS(status) == 0 && !successor_died_;
    successor_died_ = false;
    if (exited && (stopping_ || by_itself || WEXITSTATUS(status) == kExitBadConfig)) {
      exit_code_ = WEXITSTATUS(status);
    } else if (stopping_) {
      exit_code_ = 128 + WTERMSIG(status);
    } else {
      const auto ran = steady_clock::now() - started_;
      pause_ = ran > kPauseMax ? milliseconds::zero() : std::clamp(2 * pause_, kPauseMin, kPauseMax);
      start_at_ = steady_clock::now() + pause_;
      say(exited ? fmt::format("the daemon has ended with {}: it is started again", WEXITSTATUS(status))
                 : fmt::format("the daemon was ended by signal {}: it is started again", WTERMSIG(status)));
    }
  }

  struct Child {
    pid_t process = 0;
    std::vector<std::string> arguments = {};  // empty: it has died
  };
  static bool is_keeper(pid_t process) {
    std::string name;
    std::getline(std::ifstream(fmt::format("/proc/{}/comm", process)), name);
    return name == Keeper::kProcessName;
  }
  /// Without keepers, which have the command lines of their daemons.
  static std::vector<Child> children() {
    std::vector<Child> all;
    std::ifstream file(fmt::format("/proc/self/task/{}/children", ::getpid()));
    for (pid_t child = 0; file >> child;) {
      if (!is_keeper(child)) all.push_back({child, command_line_of(child)});
    }
    return all;
  }
  /// The process that an upgrade has started; 0: none. Notes one that has died.
  pid_t successor() {
    pid_t found = 0;
    for (const Child& child : children()) {
      if (std::ranges::count(child.arguments, "--take-over") != 0) found = child.process;
      successor_died_ = successor_died_ || child.arguments.empty();
    }
    return found;
  }

  // What is installed there by then.
  const std::string program_ = installed_program();
  sigset_t handled_{};
  pid_t daemon_ = 0;             // 0: it is started at start_at_
  bool successor_died_ = false;  // that of an upgrade, before this process knew of it
  steady_clock::time_point started_;
  steady_clock::time_point start_at_;
  milliseconds pause_{0};
  bool stopping_ = false;
  std::optional<int> exit_code_;
};

}  // namespace

int supervise() {
  return Supervisor().run();
}

}  // namespace portway
