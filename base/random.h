// Unpredictable random numbers, from the kernel. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace portway {

/// Fills `out` from getrandom(2); waits only while the machine has just booted.
void fill_random(std::span<std::byte> out);

/// Uniform in [0, bound); bound > 0.
std::uint32_t random_below(std::uint32_t bound);

}  // namespace portway
