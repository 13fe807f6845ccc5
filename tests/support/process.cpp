#include "tests/support/process.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <system_error>

namespace portway::test {
namespace {

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

/// The call fails with EPERM from now on.
bool deny(unsigned call) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{std::size(filter), filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

bool mount_tmpfs(const char* path, const char* mount_options) {
  return unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         mount("tmpfs", path, "tmpfs", 0, mount_options) == 0;
}

/// Runs between fork and exec: only calls that are safe there. Returns what failed.
const char* become(const SpawnOptions& options, const char* mount_options, char* const* argv) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return "prctl";
  if (options.network != nullptr && setns(options.network->fd(), CLONE_NEWNET) != 0) return "setns";
  if (!options.tmpfs_path.empty() && !mount_tmpfs(options.tmpfs_path.c_str(), mount_options))
    return "mount tmpfs";
  if (options.hide_proc && !mount_tmpfs("/proc", nullptr)) return "mount tmpfs on /proc";
  // exec(2) gives no capability outside the bounding set, not even to root; EINVAL comes after the last
  // capability.
  for (int capability = 0; options.no_capabilities && prctl(PR_CAPBSET_DROP, capability) == 0; ++capability) {
  }
  if (options.deny_io_uring && !deny(SYS_io_uring_setup)) return "seccomp";
  if (options.deny_pidfd && !deny(SYS_pidfd_open)) return "seccomp";
  execvp(argv[0], argv);
  return argv[0];
}

}  // namespace

Process::Process(const SpawnOptions& options) {
  std::vector<char*> argv;
  for (const std::string& argument : options.command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const std::string mount_options = "mode=0755,size=" + std::to_string(options.tmpfs_bytes);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) fail("pipe2");
  output_end_.reset(ends[0]);
  Fd child_end(ends[1]);
  Fd null(open("/dev/null", O_RDONLY | O_CLOEXEC));

  pid_ = fork();
  if (pid_ < 0) fail("fork");
  if (pid_ == 0) {
    dup2(null.get(), STDIN_FILENO);
    dup2(child_end.get(), STDOUT_FILENO);
    dup2(child_end.get(), STDERR_FILENO);
    const char* failed = become(options, mount_options.c_str(), argv.data());
    perror(failed);
    _exit(127);
  }
  pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  reader_ = std::thread([this] { read_output(); });
}

Process::~Process() {
  if (!exit_code_) {
    signal(SIGKILL);
    wait(std::chrono::milliseconds(-1));
  }
  reader_.join();
}

void Process::read_output() {
  char buffer[4096];
  for (;;) {
    const ssize_t size = read(output_end_.get(), buffer, sizeof buffer);
    const std::lock_guard lock(mutex_);
    if (size > 0) output_.append(buffer, static_cast<std::size_t>(size));
    if (size <= 0) output_ended_ = true;
    output_changed_.notify_all();
    if (size <= 0) return;
  }
}

std::string Process::output() const {
  const std::lock_guard lock(mutex_);
  return output_;
}

bool Process::wait_for_output(std::string_view text, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto printed = [&] { return output_.find(text) != std::string::npos; };
  output_changed_.wait_for(lock, timeout, [&] { return printed() || output_ended_; });
  return printed();
}

void Process::adopt(pid_t successor) {
  Fd pidfd(static_cast<int>(syscall(SYS_pidfd_open, successor, 0)));
  if (!pidfd) fail("pidfd_open");
  pid_ = successor;
  pidfd_ = std::move(pidfd);
  exit_code_.reset();
}

void Process::signal(int number) {
  if (!exit_code_) kill(pid_, number);
}

std::optional<int> Process::wait(std::chrono::milliseconds timeout) {
  if (exit_code_) return exit_code_;
  pollfd ended{pidfd_.get(), POLLIN, 0};
  if (poll(&ended, 1, static_cast<int>(timeout.count())) != 1) return std::nullopt;
  int status = 0;
  if (waitpid(pid_, &status, 0) != pid_) fail("waitpid");
  exit_code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  // Its last output may still be in the pipe; a child process that continues would keep the pipe open.
  std::unique_lock lock(mutex_);
  output_changed_.wait_for(lock, std::chrono::seconds(1), [this] { return output_ended_; });
  return exit_code_;
}

std::size_t Process::open_descriptors() const {
  const std::filesystem::directory_iterator descriptors("/proc/" + std::to_string(pid_) + "/fd");
  return static_cast<std::size_t>(std::distance(begin(descriptors), end(descriptors)));
}

}  // namespace portway::test
