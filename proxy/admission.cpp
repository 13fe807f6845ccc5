#include "proxy/admission.h"

#include <algorithm>

namespace portway {

void Admission::set_limits(const TrafficLimits& limits) {
  const std::lock_guard lock(mutex_);
  // A change does not refill the allowance: repeated changes would get around the limit.
  const double rate = limits.max_new_connections_per_second;
  new_connections_ = limits_.max_new_connections_per_second == 0 ? rate : std::min(new_connections_, rate);
  limits_ = limits;
  TrafficLimits admissions = limits;  // what limits those that are connected is not asked here
  admissions.max_bytes_per_second = 0;
  admissions.idle_timeout = {};
  limited_.store(admissions != TrafficLimits{}, std::memory_order_relaxed);
}

std::optional<RejectReason> Admission::ask(const IpAddress& client, Time now) {
  const std::lock_guard lock(mutex_);
  refill(now);
  const auto refused = why_not(client);
  if (refused) return refused;
  if (limits_.max_new_connections_per_second != 0) new_connections_ -= 1;
  ++connections_;
  ++by_source_[source_of(client)];
  return std::nullopt;
}

bool Admission::refuses(const IpAddress& client, Time now) {
  const std::lock_guard lock(mutex_);
  refill(now);
  return why_not(client).has_value();
}

std::optional<RejectReason> Admission::why_not(const IpAddress& client) const {
  const auto contains = [&client](const Cidr& network) { return network.contains(client); };
  if (!limits_.allowed_cidrs.empty() && std::ranges::none_of(limits_.allowed_cidrs, contains)) {
    return RejectReason::kSourceNotAllowed;
  }
  if (limits_.max_connections != 0 && connections_ >= limits_.max_connections) {
    return RejectReason::kForwardConnectionsMax;
  }
  if (limits_.max_connections_per_source != 0) {
    const auto known = by_source_.find(source_of(client));
    if (known != by_source_.end() && known->second >= limits_.max_connections_per_source) {
      return RejectReason::kSourceConnectionsMax;
    }
  }
  if (limits_.max_new_connections_per_second != 0 && new_connections_ < 1)
    return RejectReason::kNewConnectionRate;
  return std::nullopt;
}

void Admission::enter(const IpAddress& client) {
  const std::lock_guard lock(mutex_);
  ++connections_;
  ++by_source_[source_of(client)];
}

void Admission::refill(Time now) {
  const double rate = limits_.max_new_connections_per_second;
  const std::chrono::duration<double> elapsed = now - refilled_;
  refilled_ = now;
  new_connections_ = std::min(rate, new_connections_ + elapsed.count() * rate);
}

void Admission::leave(const IpAddress& client) {
  const std::lock_guard lock(mutex_);
  --connections_;
  const auto known = by_source_.find(source_of(client));
  if (--known->second == 0) by_source_.erase(known);
}

std::uint64_t ByteRate::allowance(std::uint64_t limit, Time now) const {
  const std::int64_t ahead_ns =
      std::max<std::int64_t>(0, paid_until_ns_.load(std::memory_order_relaxed) - now.count());
  const std::int64_t left_ns = kBurst.count() - ahead_ns;
  if (left_ns < kLeast.count()) return 0;
  const double bytes = static_cast<double>(limit) * static_cast<double>(left_ns) / 1e9;
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(bytes));
}

ByteRate::Time ByteRate::wait(Time now) const {
  const std::int64_t ahead_ns = paid_until_ns_.load(std::memory_order_relaxed) - now.count();
  // Wait for half the burst at a time: many small waits would cost more than they move.
  return Time(std::max<std::int64_t>(1'000'000, ahead_ns - kBurst.count() / 2));
}

void ByteRate::spend(std::uint64_t limit, std::uint64_t bytes, Time now) {
  const auto cost_ns =
      static_cast<std::int64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(limit));
  std::int64_t paid = paid_until_ns_.load(std::memory_order_relaxed);
  while (!paid_until_ns_.compare_exchange_weak(paid, std::max(paid, now.count()) + cost_ns,
                                               std::memory_order_relaxed)) {
  }
}

}  // namespace portway
