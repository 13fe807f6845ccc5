// Who may have one of the node's connections when they run short: every instance, and every forward of an
// instance, has a share that nobody else can take.
//
// One instance may have `instance_percent` of the node's connections (75 by default). Until all instances
// together have that many, nothing is checked. The rest is reserved: an instance that has fewer
// connections than an equal part of the rest still gets one. The same holds for the forwards of an
// instance within its share, and for clients within a forward: a source address that has most of the
// connections gets no more.
//
// An instance, forward or client over its share gets a connection only in place of a half-closed one of
// its own (one side has sent FIN, the other has not): the longest silent of the 64 oldest. If there is
// none, the client is rejected. An instance gives up a connection of its forward with the most connections
// if that connection has been silent for a second, else one of the new client's forward. An instance that
// gets a reserved connection replaces a half-closed one, silent for a second, of the instance with the
// most. If connections run short, half-closed ones also time out earlier: after conntrack's timeout once
// half of the node's connections are in use.
//
// The pipes of a worker are shared in the same way among instances: a relay whose instance is over its share
// copies its bytes, which needs no pipe.
//
// Shared by the workers and the control thread. Relaxed atomics: a few connections more or less do not
// matter.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "proxy/served_forward.h"

namespace portway {

class FairShare {
 public:
  /// With an `instance_percent` of 100 nobody is limited.
  FairShare(std::uint32_t capacity, unsigned instance_percent)
      : percent_(instance_percent), capacity_(capacity) {}

  /// How many connections the node can have now: fewer if listeners use the descriptors. Control thread.
  void set_capacity(std::uint32_t capacity) { capacity_.store(capacity, std::memory_order_relaxed); }
  std::uint32_t capacity() const { return capacity_.load(std::memory_order_relaxed); }
  /// The sessions that have open forwards. Control thread.
  void set_sessions(std::uint32_t sessions) { sessions_.store(sessions, std::memory_order_relaxed); }

  enum class Verdict : std::uint8_t {
    kAdmit,
    kMakeRoom,       // admit, and end a silent half-closed connection of the instance with the most
    kInstanceShare,  // its instance is over its share
    kForwardShare,   // its forward is, within the instance's share
    kSourceShare,    // its source address is, within the forward's share
  };
  /// For a new connection of `forward`; `total` is how many the node has. `has_most()` says whether the
  /// client's address has most of the forward's connections; it is called only if that matters.
  template <class HasMost>
  Verdict ask(std::uint64_t total, const ServedForward& forward, HasMost has_most) const {
    const ServedSession& session = *forward.session;
    const std::uint64_t of_instance = session.connections.load(std::memory_order_relaxed);
    const std::uint64_t all = capacity();
    const std::uint64_t node_max = part(all);
    const std::uint32_t forwards = session.forwards.load(std::memory_order_relaxed);
    if (total >= node_max && of_instance >= kept_for_instance()) return Verdict::kInstanceShare;
    // An instance's only forward may use the whole share.
    if (forwards > 1 && of_instance >= part(node_max) &&
        forward.connections_now() >= kept(node_max, forwards))
      return Verdict::kForwardShare;
    const std::uint64_t forward_max = forwards > 1 ? part(node_max) : node_max;
    if (forward.connections_now() >= part(forward_max) && has_most()) return Verdict::kSourceShare;
    return total >= node_max ? Verdict::kMakeRoom : Verdict::kAdmit;
  }

  /// The connections that an instance can always get, whatever the others have.
  std::uint64_t kept_for_instance() const {
    return kept(capacity(), sessions_.load(std::memory_order_relaxed));
  }

  /// How many of a worker's `pipes_max` pipes are there for whoever comes first.
  std::uint32_t pipes_for_all(std::uint32_t pipes_max) const {
    return static_cast<std::uint32_t>(part(pipes_max));
  }
  /// How many an instance can always get beyond those.
  std::uint64_t pipes_kept_for_instance(std::uint32_t pipes_max) const {
    return kept(pipes_max, sessions_.load(std::memory_order_relaxed));
  }

  /// Whether one more may be admitted in place of another, which keeps its slot until it is closed.
  /// Without this limit, many replacements at once would use up the reserve.
  bool may_replace(std::uint64_t total) const {
    const std::uint64_t all = capacity();
    return percent_ >= 100 || total < part(all) + (all - part(all)) / 4;
  }

  /// How long a half-closed connection may stay silent; `configured` (0: for ever) while fewer than an
  /// eighth of the connections are in use, then less, down to 120 s (nf_conntrack_tcp_timeout_fin_wait)
  /// once half are in use.
  std::chrono::nanoseconds half_close_limit(std::uint64_t total, std::chrono::nanoseconds configured) const {
    constexpr std::chrono::nanoseconds kLeast = std::chrono::seconds(120);
    const double used = static_cast<double>(total) / std::max<double>(1, capacity());
    if (percent_ >= 100 || used < kFew ||
        (configured != std::chrono::nanoseconds::zero() && configured <= kLeast))
      return configured;
    const double from =
        std::chrono::duration<double>(configured == std::chrono::nanoseconds::zero() ? std::chrono::hours(1)
                                                                                     : configured)
            .count();
    const double way = std::min(1.0, (used - kFew) / (kMany - kFew));
    const std::chrono::duration<double> limit(from +
                                              way * (std::chrono::duration<double>(kLeast).count() - from));
    return std::chrono::duration_cast<std::chrono::nanoseconds>(limit);
  }

 private:
  static constexpr double kFew = 0.125;
  static constexpr double kMany = 0.5;

  std::uint64_t part(std::uint64_t whole) const { return whole * percent_ / 100; }
  /// The part of the reserve that each of `heads` gets.
  std::uint64_t kept(std::uint64_t whole, std::uint32_t heads) const {
    return std::max<std::uint64_t>(1, (whole - part(whole)) / std::max<std::uint32_t>(1, heads));
  }

  const unsigned percent_;
  std::atomic<std::uint32_t> capacity_;
  std::atomic<std::uint32_t> sessions_{1};
};

}  // namespace portway
