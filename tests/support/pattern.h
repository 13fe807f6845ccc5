// A stream of bytes that both ends of a test can make by themselves, the guest included: standard library
// only.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

namespace portway::test {

/// Pseudo-random bytes (SplitMix64), the same for the same seed. Call it with multiples of eight bytes,
/// except at the end.
class Pattern {
 public:
  explicit Pattern(std::uint64_t seed = 1) : state_(seed) {}

  void fill(std::span<char> out) {
    while (!out.empty()) {
      const std::uint64_t word = next();
      const std::size_t size = out.size() < sizeof word ? out.size() : sizeof word;
      std::memcpy(out.data(), &word, size);
      out = out.subspan(size);
    }
  }

 private:
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

}  // namespace portway::test
