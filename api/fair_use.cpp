#include "api/fair_use.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "api/http/peer.h"

namespace portway {
namespace {

using std::chrono::seconds;

// Of the buckets, as RateLimit names them.
constexpr std::string_view kPolicy = "default";
// How many wrong keys a source may send at once; further ones at api.wrong_keys_per_minute.
constexpr seconds kWrongKeyPeriod(60);

Buckets::Rule rule_of(std::uint32_t units_per_second, std::uint32_t burst, std::uint32_t factor) {
  return {.per_unit = Buckets::Span(seconds(1)) / (std::int64_t{units_per_second} * factor),
          .size = burst * factor};
}

/// Rounded up, at least 1.
seconds retry_after(Buckets::Span wait) {
  return std::max(seconds(1), std::chrono::ceil<seconds>(wait));
}

std::string_view header_of(const Response& answer, std::string_view name) {
  for (const auto& [each, value] : answer.headers) {
    if (each == name) return value;
  }
  return {};
}

}  // namespace

std::optional<Buckets::Span> Buckets::take(std::string_view name, std::uint32_t units, const Rule& rule,
                                           Time now) {
  const Span wanted = missing(name, now) + rule.per_unit * std::min(units, rule.size);
  if (wanted > rule.capacity()) return wanted - rule.capacity();
  set_full_at(name, now + wanted, now);
  return std::nullopt;
}

void Buckets::take_anyway(std::string_view name, std::uint32_t units, const Rule& rule, Time now) {
  const Span before = missing(name, now);
  const Span most = std::max(before, 2 * rule.capacity());
  const Span wanted = before + rule.per_unit * std::min(units, 2 * rule.size);
  set_full_at(name, now + std::min(wanted, most), now);
}

Buckets::Level Buckets::level(std::string_view name, const Rule& rule, Time now) const {
  const Span used = missing(name, now);
  const Span left = std::max(Span(0), rule.capacity() - used);
  return {.units = static_cast<std::uint32_t>(left / rule.per_unit), .until_full = used};
}

/// What the bucket lacks, as the time in which it refills.
Buckets::Span Buckets::missing(std::string_view name, Time now) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? Span(0) : std::max(Span(0), Span(found->second->first - now));
}

void Buckets::set_full_at(std::string_view name, Time when, Time now) {
  const auto forget_first = [this] {
    by_name_.erase(by_full_.begin()->second);
    by_full_.erase(by_full_.begin());
  };
  if (const auto found = by_name_.find(name); found != by_name_.end()) {
    auto entry = by_full_.extract(found->second);  // its name stays where it is
    entry.key() = when;
    found->second = by_full_.insert(std::move(entry));
  } else if (when > now) {
    if (by_name_.size() == entries_max_) forget_first();
    const auto entry = by_full_.emplace(when, name);
    by_name_.emplace(entry->second, entry);
  }
  while (!by_full_.empty() && by_full_.begin()->first <= now) forget_first();
}

FairUse::Account FairUse::account(const Principal& caller) {
  const bool is_admin = caller.role == Role::kAdmin;
  Account account{
      .buckets = is_admin ? admins_ : owners_,
      .name = caller.owner,
      .rule = rule_of(config_.rate_limit_per_second, config_.rate_limit_burst, is_admin ? kAdminFactor : 1)};
  // Whatever owner it names, an admin key is an orchestrator of its own.
  if (is_admin && !caller.key_id.is_nil()) account.name = to_string(caller.key_id);
  return account;
}

Result<void> FairUse::charge(const Principal& caller, std::uint32_t units) {
  if (config_.rate_limit_per_second == 0) return {};
  const Account payer = account(caller);
  const auto wait = payer.buckets.take(payer.name, units, payer.rule, now_());
  if (!wait) return {};
  const bool is_admin = caller.role == Role::kAdmin;
  stats_.count_throttled(is_admin ? ThrottleReason::kAdmin : ThrottleReason::kOwner);
  return Error{
      .code = ErrorCode::kRateLimited,
      .detail = fmt::format(
          "{} used up its {} units; {} more come each second, and this request costs {}. Try again after "
          "Retry-After seconds, and ask less often.",
          is_admin ? "This key has" : "The keys of this owner have together", payer.rule.size,
          std::uint64_t{config_.rate_limit_per_second} * (is_admin ? kAdminFactor : 1), units),
      .limit = payer.rule.size,
      .retry_after = retry_after(*wait)};
}

void FairUse::settle(const Principal& caller, Response& answer) {
  if (config_.rate_limit_per_second == 0) return;
  const Account payer = account(caller);
  const auto now = now_();
  const auto units = static_cast<std::uint32_t>(answer.body.size() / kBytesPerUnit);
  if (units > 0) payer.buckets.take_anyway(payer.name, units, payer.rule, now);
  const Buckets::Level left = payer.buckets.level(payer.name, payer.rule, now);
  const auto window = std::chrono::ceil<seconds>(payer.rule.capacity());
  answer.headers.emplace_back("RateLimit-Policy",
                              fmt::format("\"{}\";q={};w={}", kPolicy, payer.rule.size, window.count()));
  // Both mean the same time, if there are both.
  const std::string_view retry = header_of(answer, "Retry-After");
  const auto reset = std::chrono::ceil<seconds>(left.until_full);
  answer.headers.emplace_back(
      "RateLimit", fmt::format("\"{}\";r={};t={}", kPolicy, left.units,
                               retry.empty() ? fmt::to_string(reset.count()) : std::string(retry)));
}

Error FairUse::refuse_wrong_key(const Request& request, Error refusal) {
  const std::uint32_t allowed = config_.wrong_keys_per_minute;
  if (allowed == 0) return refusal;
  const std::string source =
      source_name({.origin = {.address = request.peer}, .credentials = request.peer_credentials});
  const Buckets::Rule rule{.per_unit = Buckets::Span(kWrongKeyPeriod) / allowed, .size = allowed};
  const auto wait = sources_.take(source, 1, rule, now_());
  if (!wait) return refusal;
  stats_.count_throttled(ThrottleReason::kWrongKey);
  return {
      .code = ErrorCode::kRateLimited,
      .detail = fmt::format(
          "This API key is not valid here, and more than {} requests with such keys came from {} within a "
          "minute. Use a good key: it is not affected.",
          allowed, source),
      .limit = allowed,
      .retry_after = retry_after(*wait)};
}

}  // namespace portway
