#include "client/interrupt.h"

#include <pthread.h>
#include <unistd.h>

namespace portway {

EndsWhenInterrupted::EndsWhenInterrupted() {
  struct sigaction ending {};
  ending.sa_handler = [](int) { ::_exit(0); };
  sigemptyset(&ending.sa_mask);
  ::sigaction(SIGINT, &ending, &interrupt_);
  ::sigaction(SIGTERM, &ending, &terminate_);
}

EndsWhenInterrupted::~EndsWhenInterrupted() {
  ::sigaction(SIGINT, &interrupt_, nullptr);
  ::sigaction(SIGTERM, &terminate_, nullptr);
}

WithoutInterrupts::WithoutInterrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &signals, &before_);
}

WithoutInterrupts::~WithoutInterrupts() {
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

}  // namespace portway
