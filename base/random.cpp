#include "base/random.h"

#include <sys/random.h>

#include <cassert>
#include <cerrno>
#include <cstdlib>

namespace portway {

void fill_random(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = getrandom(out.data(), out.size(), 0);
    // Only a kernel older than 3.17 or a broken seccomp filter refuses; keys and ids cannot be made without
    // it.
    if (got < 0 && errno != EINTR) std::abort();
    if (got > 0) out = out.subspan(static_cast<std::size_t>(got));
  }
}

std::uint32_t random_below(std::uint32_t bound) {
  assert(bound > 0);
  // Lemire, "Fast random integer generation in an interval" (2019): multiply, and draw again if the result
  // would be biased.
  const std::uint32_t uneven = -bound % bound;
  for (;;) {
    std::uint32_t drawn = 0;
    fill_random(std::as_writable_bytes(std::span(&drawn, 1)));
    const std::uint64_t product = std::uint64_t{drawn} * bound;
    if (static_cast<std::uint32_t>(product) >= uneven) return static_cast<std::uint32_t>(product >> 32);
  }
}

}  // namespace portway
