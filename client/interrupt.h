// How a command ends that runs until it is interrupted.
#pragma once

#include <csignal>

namespace portway {

/// While it exists, SIGINT and SIGTERM end the process with exit code 0: whoever interrupts such a command
/// has got what it wanted. For the only thread of the process.
class EndsWhenInterrupted {
 public:
  EndsWhenInterrupted();
  ~EndsWhenInterrupted();
  EndsWhenInterrupted(const EndsWhenInterrupted&) = delete;
  EndsWhenInterrupted& operator=(const EndsWhenInterrupted&) = delete;

 private:
  struct sigaction interrupt_ {};
  struct sigaction terminate_ {};
};

/// While it exists, these signals wait, so that what is being printed is printed completely.
class WithoutInterrupts {
 public:
  WithoutInterrupts();
  ~WithoutInterrupts();
  WithoutInterrupts(const WithoutInterrupts&) = delete;
  WithoutInterrupts& operator=(const WithoutInterrupts&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace portway
