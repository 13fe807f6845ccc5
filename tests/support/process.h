// A child process of a test: started in a namespace, watched, and killed and reaped at the latest by its
// destructor. It also dies with the test's thread that started it. Failures throw std::system_error.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "tests/support/network.h"

namespace portway::test {

struct SpawnOptions {
  std::vector<std::string> command;           // the program, by path or found in PATH, and its arguments
  const NetworkNamespace* network = nullptr;  // null: the test's own
  bool deny_io_uring = false;    // io_uring_setup(2) fails with EPERM, as under a container's seccomp filter
  bool deny_pidfd = false;       // and so does pidfd_open(2)
  bool no_capabilities = false;  // root without capabilities
  bool hide_proc = false;        // /proc is an empty directory
  std::string tmpfs_path = "";   // a directory that becomes a small tmpfs, for this process only
  std::uint64_t tmpfs_bytes = 0;
};

class Process {
 public:
  explicit Process(const SpawnOptions& options);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }

  /// What it has printed so far, standard output and error together.
  std::string output() const;
  /// False if it ends, or the timeout passes, before it has printed `text`.
  bool wait_for_output(std::string_view text, std::chrono::milliseconds timeout);

  /// Another process continues in its place, and prints where it has; it is this one's orphan.
  void adopt(pid_t successor);

  void signal(int number);
  /// The exit code, or 128 + the signal that ended it; nullopt if it still runs after `timeout`.
  std::optional<int> wait(std::chrono::milliseconds timeout);

  /// How many descriptors it has open.
  std::size_t open_descriptors() const;

 private:
  void read_output();

  pid_t pid_ = -1;
  Fd pidfd_;
  std::optional<int> exit_code_;

  Fd output_end_;
  mutable std::mutex mutex_;  // protects the two below
  std::string output_;
  bool output_ended_ = false;
  std::condition_variable output_changed_;
  std::thread reader_;
};

}  // namespace portway::test
