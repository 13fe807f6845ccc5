#include "daemon/limits.h"

#include <malloc.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace portway {
namespace {

constexpr int kControlNice = -10;             // beside workers at 0
constexpr int kOwnMappingBytes = 128 * 1024;  // size from which the heap maps a block on its own
constexpr std::uint64_t kRestDescriptors =
    1024;  // for one of the API's listeners, and for what else there is
constexpr std::uint32_t kAllListeners = UINT32_MAX;

/// For everything but connections, pipes and forwards: each of the API's listeners has its own clients.
std::uint64_t rest_descriptors(const Config& config) {
  return kRestDescriptors * std::max<std::size_t>(1, config.api.listen.size());
}

/// Descriptors beside connections and pipes: one per forward and public address, and some for the rest.
std::uint64_t other_descriptors(const Config& config) {
  return std::uint64_t{config.ports.range.size()} * config.node.public_addresses.size() +
         rest_descriptors(config);
}

}  // namespace

void return_large_blocks() {
  // A fixed threshold: otherwise glibc raises it, up to 32 MiB, when a large block is freed (mallopt(3)),
  // and the heap keeps a burst of large answers for good.
  ::mallopt(M_MMAP_THRESHOLD, kOwnMappingBytes);
}

void ignore_signals_of_writes() {
  ::signal(SIGPIPE, SIG_IGN);  // splice(2) has no MSG_NOSIGNAL
  ::signal(SIGXFSZ, SIG_IGN);  // under a limit on file size the store's writes fail, and forwarding continues
}

std::uint32_t raise_descriptor_limit(Config& config) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const std::uint64_t wanted =
      2ULL * config.proxy.connections_max + 2ULL * config.proxy.pipes_max + other_descriptors(config);
  if (limit.rlim_max < wanted) {
    const rlimit higher{.rlim_cur = wanted, .rlim_max = wanted};  // needs CAP_SYS_RESOURCE
    if (::setrlimit(RLIMIT_NOFILE, &higher) == 0) return kAllListeners;
  }
  limit.rlim_cur = std::min<std::uint64_t>(limit.rlim_max, std::max<std::uint64_t>(limit.rlim_cur, wanted));
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur >= wanted) return kAllListeners;
  // Few nodes forward every port, so an eighth is kept for listeners and the rest. Relays can do without
  // pipes, so connections get most of what is left.
  const std::uint64_t kept = std::min<std::uint64_t>(other_descriptors(config), limit.rlim_cur / 8);
  const std::uint64_t left = limit.rlim_cur - kept;
  config.proxy.connections_max =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(left * 7 / 16, 1, config.proxy.connections_max));
  config.proxy.pipes_max =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(left / 16, 1, config.proxy.pipes_max));
  spdlog::warn(
      "RLIMIT_NOFILE is {} and {} are wanted: connections are limited to {} and pipes to {}; raise the limit "
      "(systemd: LimitNOFILE=)",
      limit.rlim_cur, wanted, config.proxy.connections_max, config.proxy.pipes_max);
  const std::uint64_t not_wanted = left - std::min<std::uint64_t>(left, 2ULL * config.proxy.connections_max +
                                                                            2ULL * config.proxy.pipes_max);
  return static_cast<std::uint32_t>(kept - std::min(kept, rest_descriptors(config)) + not_wanted);
}

void raise_memory_lock_limit() {
  const rlimit none{.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};  // needs CAP_SYS_RESOURCE
  ::setrlimit(RLIMIT_MEMLOCK, &none);
}

void prefer_this_thread() {
  struct {
    std::uint32_t size = 48;   // SCHED_ATTR_SIZE_VER0
    std::uint32_t policy = 0;  // SCHED_OTHER
    std::uint64_t flags = 0;
    std::int32_t nice = kControlNice;
    std::uint32_t priority = 0;
    std::uint64_t runtime_ns = 100'000;  // the shortest slice there is
    std::uint64_t deadline_ns = 0;
    std::uint64_t period_ns = 0;
  } attributes;
  if (::syscall(SYS_sched_setattr, 0, &attributes, 0U) == 0) return;
  attributes.nice = 0;
  (void)::syscall(SYS_sched_setattr, 0, &attributes, 0U);
}

}  // namespace portway
