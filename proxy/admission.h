// The limits of a forward: who may connect, how many, how often, and how many bytes a second.
//
// With netfilter, nftables rules beside the DNAT rule would do the same. A forward without limits costs
// one relaxed load per connection and one per turn of a relay.
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

/// Admits or rejects new connections. Any thread; takes a short lock, but only while a limit is set.
class Admission {
 public:
  using Time = std::chrono::nanoseconds;  // on the monotonic clock

  /// The allowance of new connections carries over: only the first limit on them starts with a full
  /// second's allowance.
  void set_limits(const TrafficLimits& limits);

  /// True: ask() may reject. False: a connection needs neither ask() nor leave().
  bool limited() const { return limited_.load(std::memory_order_relaxed); }

  /// Why this client is rejected; nullopt if it is admitted, which counts it until leave().
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
  std::mutex mutex_;  // protects the members below
  TrafficLimits limits_;
  std::uint32_t connections_ = 0;
  std::map<IpAddress, std::uint32_t> by_source_;  // only sources that have connections
  double new_connections_ = 0;                    // allowed now
  Time refilled_{};
};

/// Bytes a second of one direction of a forward, over all its connections and workers.
///
/// A virtual clock (GCRA, ITU-T I.371) advances by the bytes moved. A caller that finds it more than
/// kBurst ahead of the real clock waits. Bytes are charged after they were moved. Any thread, without a
/// lock.
class ByteRate {
 public:
  using Time = std::chrono::nanoseconds;
  static constexpr Time kBurst = std::chrono::milliseconds(50);
  /// Less than this is not granted, or a stream would move a few bytes in each of its worker's turns.
  static constexpr Time kLeast = kBurst / 8;

  /// 0: no limit.
  void set_limit(std::uint64_t bytes_per_second) {
    bytes_per_second_.store(bytes_per_second, std::memory_order_relaxed);
  }
  std::uint64_t limit() const { return bytes_per_second_.load(std::memory_order_relaxed); }

  /// How many bytes may be moved in one go now; 0: none until wait() has passed. `limit` is the value of
  /// limit(), not 0. Pass the same value to spend(): a move is charged at the rate at which it was
  /// granted, so lowering the limit does not delay anybody for bytes moved earlier.
  std::uint64_t allowance(std::uint64_t limit, Time now) const;
  Time wait(Time now) const;
  void spend(std::uint64_t limit, std::uint64_t bytes, Time now);

 private:
  std::atomic<std::uint64_t> bytes_per_second_{0};
  std::atomic<std::int64_t> paid_until_ns_{0};
};

}  // namespace portway
