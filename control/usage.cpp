#include "control/usage.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/post.hpp>
#include <utility>

namespace portway {
namespace {

/// An instance that was deleted and registered again is another one.
std::string key_of(const Instance& instance) {
  return fmt::format("i/{}/{}", instance.id, instance.created_at.time_since_epoch().count());
}

std::string key_of(const Forward& forward) {
  return "f/" + to_string(forward.id);
}

StoredUsage fresh(const Instance& instance) {
  return {.kind = StoredUsage::Kind::kInstance, .id = instance.id, .since = instance.created_at};
}

StoredUsage fresh(const Forward& forward) {
  return {.kind = StoredUsage::Kind::kForward, .id = to_string(forward.id), .since = forward.created_at};
}

/// The disk has milliseconds, and so have the answers.
UsageTotals to_disk(UsageTotals totals) {
  totals.connection_us -= totals.connection_us % 1000;
  return totals;
}

}  // namespace

void Usage::restore(std::vector<StoredUsage> stored, std::span<const Instance> instances,
                    std::span<const Forward> forwards) {
  std::map<std::pair<StoredUsage::Kind, std::string>, StoredUsage> by_id;
  for (StoredUsage& each : stored) {
    const std::pair key(each.kind, each.id);
    by_id.insert_or_assign(key, std::move(each));
  }
  const auto take = [&](const auto& owner) {
    StoredUsage usage = fresh(owner);
    if (const auto found = by_id.find({usage.kind, usage.id}); found != by_id.end()) usage = found->second;
    (void)meter_of(key_of(owner), std::move(usage));
  };
  for (const Instance& instance : instances) take(instance);
  for (const Forward& forward : forwards) take(forward);
}

UsageMeterPtr Usage::meter_of(const Instance& instance) {
  return meter_of(key_of(instance), fresh(instance));
}

UsageMeterPtr Usage::meter_of(const Forward& forward) {
  return meter_of(key_of(forward), fresh(forward));
}

UsageMeterPtr Usage::meter_of(const std::string& key, StoredUsage fresh) {
  const auto found = entries_.find(key);
  if (found != entries_.end()) return found->second.meter;
  UsageMeterPtr meter = meters_.make(key, fresh.totals);
  entries_.emplace(key, Entry{.meter = meter, .saved = std::move(fresh)});
  return meter;
}

void Usage::forget(const Instance& instance) {
  entries_.erase(key_of(instance));
}

void Usage::forget(const Forward& forward) {
  entries_.erase(key_of(forward));
}

UsageStatus Usage::of(const Instance& instance) const {
  return of(key_of(instance), instance.created_at);
}

UsageStatus Usage::of(const Forward& forward) const {
  return of(key_of(forward), forward.created_at);
}

UsageStatus Usage::of(const std::string& key, Timestamp since) const {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return {.since = since};
  return {.since = found->second.saved.since, .reading = found->second.meter->read()};
}

/// Of this many entries from `at` on, which moves behind them.
std::vector<StoredUsage> Usage::changed(Entries::iterator& at, std::size_t visits) const {
  std::vector<StoredUsage> changed;
  for (; at != entries_.end() && visits > 0; ++at, --visits) {
    StoredUsage usage = at->second.saved;
    usage.totals = to_disk(at->second.meter->read().totals);
    if (usage.totals == at->second.saved.totals) continue;
    usage.key = at->first;
    changed.push_back(std::move(usage));
  }
  return changed;
}

void Usage::save() {
  const auto now = clock_();
  if (saving_ || now - round_began_ < kSaveEvery) return;
  round_began_ = now;
  saving_ = true;
  saved_to_.clear();
  save_part();
}

void Usage::save_part() {
  auto at = entries_.upper_bound(saved_to_);
  if (at == entries_.end()) {
    saving_ = false;
    return;
  }
  auto part = changed(at, kPart);
  saved_to_ = std::prev(at)->first;
  const auto then = [this, &context = context_, alive = std::weak_ptr(alive_), part](Result<void> done) {
    boost::asio::post(context, [this, alive, part, done = std::move(done)] {
      if (!alive.expired()) on_saved(part, done);
    });
  };
  if (part.empty()) return then({});
  store_.save_usage(std::move(part), then);
}

void Usage::on_saved(const std::vector<StoredUsage>& saved, const Result<void>& done) {
  if (!done) {
    saving_ = false;
    if (!std::exchange(refused_, true))
      spdlog::error("usage could not be saved; retrying: {}", done.error().detail);
    return;
  }
  if (std::exchange(refused_, false)) spdlog::info("usage is saved again");
  for (const StoredUsage& each : saved) {
    if (const auto found = entries_.find(each.key); found != entries_.end())
      found->second.saved.totals = each.totals;
  }
  save_part();
}

void Usage::save_at_end() {
  auto at = entries_.begin();
  auto all = changed(at, entries_.size());
  if (!all.empty()) store_.save_usage(std::move(all), [](const Result<void>& /*saved*/) {});
}

}  // namespace portway
