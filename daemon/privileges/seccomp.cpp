#include "daemon/privileges/seccomp.h"

#include <fmt/format.h>
#include <seccomp.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "daemon/privileges/allowed_calls.h"

namespace portway {
namespace {

constexpr std::size_t kCalls = 1024;  // numbers; the last one stands for all beyond
constexpr int kCodeOfSeccomp = 1;     // SYS_SECCOMP (asm-generic/siginfo.h)

// For the handler, which may interrupt anything: it only stores.
struct Refused {
  std::atomic<std::uint32_t> times{0};
  std::atomic<ConfinedThread> first{};
};
std::array<Refused, kCalls> refused_by_number;
std::atomic<std::uint64_t> refused_in_all{0};
thread_local ConfinedThread this_thread{};

static_assert(std::atomic<std::uint32_t>::is_always_lock_free &&
              std::atomic<std::uint64_t>::is_always_lock_free);

void set_result(ucontext_t& interrupted, long result) {
#if defined(__x86_64__)
  interrupted.uc_mcontext.gregs[REG_RAX] = result;
#elif defined(__aarch64__)
  interrupted.uc_mcontext.regs[0] = static_cast<unsigned long long>(result);
#else
#error "seccomp.cpp: say which register has a call's result"
#endif
}

/// The kernel has not made the call, and its registers are as before: what the handler leaves in that of the
/// result is what the caller gets.
void on_refused(int, siginfo_t* info, void* context) {
  if (info->si_code != kCodeOfSeccomp) return;  // somebody has sent the signal
  Refused& refused = refused_by_number[std::min(static_cast<std::size_t>(info->si_syscall), kCalls - 1)];
  if (refused.times.load() == 0) refused.first.store(this_thread);
  refused.times.fetch_add(1);
  refused_in_all.fetch_add(1);
  set_result(*static_cast<ucontext_t*>(context), -EPERM);
}

void catch_refused() {
  struct sigaction wanted {};
  wanted.sa_sigaction = on_refused;
  wanted.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
  ::sigaction(SIGSYS, &wanted, nullptr);
}

std::string_view calls_of(ConfinedThread thread) {
  switch (thread) {
    case ConfinedThread::kControl:
      return kCallsOfTheControlThread;
    case ConfinedThread::kWorker:
      return kCallsOfWorkers;
    case ConfinedThread::kStore:
      return kCallsOfTheStore;
  }
  std::abort();
}

struct Release {
  void operator()(scmp_filter_ctx filter) const { seccomp_release(filter); }
  void operator()(char* name) const { std::free(name); }
};
using Filter = std::unique_ptr<void, Release>;

/// An errno, or 0.
int allow(scmp_filter_ctx filter, std::string_view names) {
  while (!names.empty()) {
    const std::string name(names.substr(0, names.find(' ')));
    names.remove_prefix(std::min(names.size(), name.size() + 1));
    const int number = seccomp_syscall_resolve_name(name.c_str());
    assert(number != __NR_SCMP_ERROR);
    if (number < 0) continue;  // another architecture's
    if (const int error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0); error != 0 && error != -EEXIST)
      return -error;
  }
  return 0;
}

int load_filter(ConfinedThread thread) {
  const Filter filter(seccomp_init(SCMP_ACT_TRAP));
  if (filter == nullptr) return ENOMEM;
  int error = 0;
  const auto set = [&](scmp_filter_attr attribute, std::uint32_t value) {
    if (error == 0) error = -seccomp_attr_set(filter.get(), attribute, value);
  };
  set(SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
  set(SCMP_FLTATR_CTL_OPTIMIZE, 2);  // a binary tree, for kernels without the cache of decisions
  // Before Linux 5.16 a filter turned on the mitigation of speculative store bypass for its thread, against
  // code that reads its own process's memory. This process runs no code of others, and its threads share all
  // they have.
  set(SCMP_FLTATR_CTL_SSB, 1);
  if (error == 0) error = allow(filter.get(), kCallsOfAnyThread);
  if (error == 0) error = allow(filter.get(), calls_of(thread));
  if (error == 0) error = -seccomp_load(filter.get());
  return error;
}

std::string name_of(std::size_t number) {
  const std::unique_ptr<char, Release> name(
      seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, static_cast<int>(number)));
  return name ? name.get() : fmt::format("system call {}", number);
}

}  // namespace

std::string_view to_string(ConfinedThread thread) {
  constexpr auto kNames =
      std::to_array<std::string_view>({"the control thread", "a worker", "the store's thread"});
  static_assert(kNames.size() == static_cast<std::size_t>(ConfinedThread::kStore) + 1);
  return kNames[static_cast<std::size_t>(thread)];
}

Result<void> confine_this_thread(ConfinedThread thread) {
  static std::once_flag once;
  std::call_once(once, catch_refused);
  // Where it is blocked the kernel would end the process in place of the handler.
  sigset_t refusals;
  ::sigemptyset(&refusals);
  ::sigaddset(&refusals, SIGSYS);
  ::pthread_sigmask(SIG_UNBLOCK, &refusals, nullptr);
  this_thread = thread;
  static std::mutex library;  // libseccomp finds out what the kernel has, unlocked
  const std::lock_guard lock(library);
  if (const int error = load_filter(thread); error != 0) {
    return Error{
        ErrorCode::kInternal,
        fmt::format("{} is not confined to its system calls: {}; it needs a kernel with seccomp filters",
                    to_string(thread), std::strerror(error))};
  }
  return {};
}

std::uint64_t refused_calls() {
  return refused_in_all.load();
}

std::vector<RefusedCall> take_refused_calls() {
  static std::uint64_t seen = 0;
  static std::array<bool, kCalls> reported{};
  std::vector<RefusedCall> calls;
  const std::uint64_t now = refused_in_all.load();
  if (std::exchange(seen, now) == now) return calls;
  for (std::size_t number = 0; number < kCalls; ++number) {
    const Refused& refused = refused_by_number[number];
    if (refused.times.load() == 0 || std::exchange(reported[number], true)) continue;
    calls.push_back({.name = name_of(number), .thread = refused.first.load()});
  }
  return calls;
}

}  // namespace portway
