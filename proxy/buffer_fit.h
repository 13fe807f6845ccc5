// How large a relay's receive buffers are. Bytes that a slow receiver has not taken wait in them, cost the
// node memory, and become stale; large pieces make a fast receiver cheaper to serve. So a buffer holds
// what the receiver takes in kQueueTime, at most kQueueMax. A client's buffer also has room for the bytes
// in flight: twice the path's bandwidth-delay product, as in the kernel's own tuning (tcp(7),
// tcp_moderate_rcvbuf). That tuning counts what the relay reads, not what the receiver takes, and starts
// with megabytes.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

namespace portway {

/// Of one socket of a connection.
class BufferFit {
 public:
  static constexpr std::uint64_t kFirstBytes = 16 * 1024;
  static constexpr std::uint64_t kEveryBytes = 1024 * 1024;
  static constexpr std::chrono::nanoseconds kQueueTime = std::chrono::milliseconds(10);
  static constexpr std::uint32_t kQueueMax = 1024 * 1024;
  static constexpr std::uint32_t kMax = 6 * 1024 * 1024;  // tcp_rmem[2] of most kernels

  /// `size` is the buffer's initial size in bytes.
  void begin(std::uint32_t size, std::chrono::nanoseconds now) {
    size_ = size;
    since_ = now;
  }
  /// Whether to call fit(); `bytes` is the total taken so far.
  bool due(std::uint64_t bytes) const { return bytes - bytes_ >= (size_ == 0 ? kFirstBytes : kEveryBytes); }
  /// The size to set, in bytes; nullopt: keep the current one. `least` is the configured size,
  /// `round_trip` the path's.
  std::optional<std::uint32_t> fit(std::uint64_t bytes, std::chrono::nanoseconds now, std::uint32_t least,
                                   std::chrono::nanoseconds round_trip) {
    const auto taken = static_cast<double>(bytes - std::exchange(bytes_, bytes));
    const std::chrono::duration<double> took =
        std::max<std::chrono::nanoseconds>(now - std::exchange(since_, now), std::chrono::microseconds(1));
    if (size_ == 0) return size_ = least;
    const double rate = taken / took.count();
    const double wanted =
        std::min<double>(rate * std::chrono::duration<double>(kQueueTime).count(), kQueueMax) +
        2 * rate * std::chrono::duration<double>(round_trip).count();
    const auto fit = static_cast<std::uint32_t>(std::clamp<double>(wanted, least, std::max(least, kMax)));
    if (fit < 2 * size_ && 2 * fit > size_) return std::nullopt;
    return size_ = fit;
  }

 private:
  std::uint32_t size_ = 0;  // 0: not fitted yet
  std::uint64_t bytes_ = 0;
  std::chrono::nanoseconds since_{};
};

}  // namespace portway
