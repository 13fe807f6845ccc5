#include "proxy/crash_note.h"

#include <csignal>
#include <cstddef>

namespace portway {
namespace {

thread_local RelayMemory* volatile thread_memory = nullptr;

/// Only what is safe in a handler: stores, and raise(3). SA_RESETHAND has restored the default.
void on_fatal(int signal) {
  if (RelayMemory* memory = thread_memory) memory->crashed = 1;
  ::raise(signal);
}

}  // namespace

void note_crashes_in(RelayMemory* memory) {
  thread_memory = memory;
}

void install_crash_notes() {
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) {
    struct sigaction now {};
    if (::sigaction(signal, nullptr, &now) != 0 || now.sa_handler != SIG_DFL) continue;
    struct sigaction wanted {};
    wanted.sa_handler = on_fatal;
    wanted.sa_flags = static_cast<int>(SA_RESETHAND) | SA_NODEFER;
    ::sigaction(signal, &wanted, nullptr);
  }
}

}  // namespace portway
