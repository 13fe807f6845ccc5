// The limits of a forward: who may connect, how many, how often, and how many bytes a second.
//
// What a node with netfilter would have in nftables beside the DNAT rule. A forward without limits pays one
// relaxed load for each connection and one for each turn of a relay.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>

#include "base/endpoint.h"
#include "base/forward.h"
#include "proxy/stats.h"

namespace portway {

/// Decides about new connections. Any thread; a short lock, taken only while a limit is set.
class Admission {
 public:
  using Time = std::chrono::nanoseconds;  // on the monotonic clock

  /// New connections that were left over stay so: only a first limit of them begins with a full second's.
  void set_limits(const TrafficLimits& limits);

  /// ask() may reject; if not, a connection needs neither ask() nor leave().
  bool limited() const { return limited_.load(std::memory_order_relaxed); }

  /// Why this client is rejected; nothing if it is admitted, and counted until leave().
  std::optional<RejectReason> ask(const IpAddress& client, Time now);
  /// Whether ask() would reject this client now; nothing is counted.
  bool refuses(const IpAddress& client, Time now);
  /// Counts an existing connection, until leave().
  void enter(const IpAddress& client);
  /// A connection that ask() or enter() counted has ended.
  void leave(const IpAddress& client);

 private:
  void refill(Time now);
  std::optional<RejectReason> why_not(const IpAddress& client) const;

  std::atomic<bool> limited_{false};
  std::mutex mutex_;  // protects what follows
  TrafficLimits limits_;
  std::uint32_t connections_ = 0;
  std::map<IpAddress, std::uint32_t> by_source_;  // those that have connections
  double new_connections_ = 0;                    // that may come now
  Time refilled_{};
};

/// Bytes a second of one direction of a forward, over all its connections and workers.
///
/// A virtual clock (GCRA, ITU-T I.371) runs ahead of the real one by what was moved: whoever finds it ahead
/// by more than kBurst waits. Moved bytes are paid for afterwards. Any thread, without a lock.
class ByteRate {
 public:
  using Time = std::chrono::nanoseconds;
  static constexpr Time kBurst = std::chrono::milliseconds(50);

  /// 0: no limit.
  void set_limit(std::uint64_t bytes_per_second) {
    bytes_per_second_.store(bytes_per_second, std::memory_order_relaxed);
  }
  std::uint64_t limit() const { return bytes_per_second_.load(std::memory_order_relaxed); }

  /// How many bytes may be moved in one go now; 0: none before wait() has passed. `limit`: what limit() says,
  /// but not 0. The same for this and for spend(): a move is paid for at the price that it was granted at, so
  /// a lower limit never makes anybody wait for what was moved before.
  std::uint64_t allowance(std::uint64_t limit, Time now) const;
  Time wait(Time now) const;
  void spend(std::uint64_t limit, std::uint64_t bytes, Time now);

 private:
  std::atomic<std::uint64_t> bytes_per_second_{0};
  std::atomic<std::int64_t> paid_until_ns_{0};
};

}  // namespace portway
