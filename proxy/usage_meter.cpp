#include "proxy/usage_meter.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace portway {
namespace {

std::int64_t monotonic_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::int64_t unix_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

constexpr auto us_of(std::int64_t ns) {
  return static_cast<std::uint64_t>(ns / 1000);
}

void change_open(MeterCell& cell, std::uint64_t count, std::uint64_t us) {
  // The stores with release order keep behind the one that makes the version odd.
  const std::uint64_t version = cell.version.load(std::memory_order_relaxed);
  cell.version.store(version + 1, std::memory_order_relaxed);
  cell.open.store(cell.open.load(std::memory_order_relaxed) + count, std::memory_order_release);
  cell.open_us.store(cell.open_us.load(std::memory_order_relaxed) + us, std::memory_order_release);
  cell.version.store(version + 2, std::memory_order_release);
}

struct Open {
  std::uint64_t count = 0;
  std::uint64_t us = 0;
};

/// nullopt if its worker was interrupted, or killed, while it changed them.
std::optional<Open> open_of(const MeterCell& cell) {
  constexpr int kAttempts = 100;
  for (int i = 0; i < kAttempts; ++i) {
    const std::uint64_t version = cell.version.load(std::memory_order_acquire);
    const Open open{cell.open.load(std::memory_order_acquire), cell.open_us.load(std::memory_order_acquire)};
    if (version % 2 == 0 && cell.version.load(std::memory_order_relaxed) == version) return open;
  }
  return std::nullopt;
}

/// The reading of a meter, which becomes `head.reported`. nullopt for the connections if they are not known:
/// then their time is the one that was reported last.
std::optional<std::uint64_t> read_meter(MeterHead& head, std::span<const MeterCell> cells) {
  UsageTotals totals = head.base;
  std::optional<Open> open = Open{};
  std::int64_t byte_ns = 0;
  std::int64_t connection_ns = 0;
  for (const MeterCell& cell : cells) {
    totals.connections += cell.connections.get();
    totals.received_bytes += cell.received_bytes.get();
    totals.sent_bytes += cell.sent_bytes.get();
    byte_ns = std::max(byte_ns, cell.last_byte_ns.load(std::memory_order_relaxed));
    connection_ns = std::max(connection_ns, cell.last_connection_ns.load(std::memory_order_relaxed));
    const auto of_cell = open_of(cell);
    if (!of_cell) open.reset();
    if (open) open = Open{open->count + of_cell->count, open->us + of_cell->us};
  }
  const std::int64_t now_ns = monotonic_ns();  // after all that was read
  if (open) totals.connection_us += open->us + open->count * us_of(now_ns);
  // A time is converted once: the node's clock may be set, or slewed, meanwhile.
  const auto wall_ms = [now_ms = unix_ms(), now_ns](std::int64_t then_ns) {
    return now_ms - std::max<std::int64_t>(0, now_ns - then_ns) / 1'000'000;
  };
  if (byte_ns > head.byte_seen_ns) totals.last_byte_at_ms = wall_ms(byte_ns);
  if (connection_ns > head.connection_seen_ns) totals.last_connection_at_ms = wall_ms(connection_ns);
  head.reported.raise_to(totals);
  head.byte_seen_ns = std::max(head.byte_seen_ns, byte_ns);
  head.connection_seen_ns = std::max(head.connection_seen_ns, connection_ns);
  return open ? std::optional(open->count) : std::nullopt;
}

}  // namespace

void UsageTotals::raise_to(const UsageTotals& others) {
  connections = std::max(connections, others.connections);
  received_bytes = std::max(received_bytes, others.received_bytes);
  sent_bytes = std::max(sent_bytes, others.sent_bytes);
  connection_us = std::max(connection_us, others.connection_us);
  last_byte_at_ms = std::max(last_byte_at_ms, others.last_byte_at_ms);
  last_connection_at_ms = std::max(last_connection_at_ms, others.last_connection_at_ms);
}

/// Rows that are free. A worker may be the last one that needs a meter.
struct UsageMeter::Rows {
  MeterHead* head(std::uint32_t row) const {
    return reinterpret_cast<MeterHead*>(memory.data() + row * meter_bytes(workers));
  }
  std::span<MeterCell> cells(std::uint32_t row) const {
    return {reinterpret_cast<MeterCell*>(head(row) + 1), workers};
  }
  std::optional<std::uint32_t> take() {
    const std::lock_guard lock(mutex);
    if (!free.empty()) {
      const std::uint32_t row = free.back();
      free.pop_back();
      return row;
    }
    if ((used + 1) * meter_bytes(workers) > memory.size()) return std::nullopt;
    const std::uint32_t row = used++;
    if (rows_used != nullptr) *rows_used = used;
    return row;
  }
  void give_back(std::uint32_t row) {
    const std::lock_guard lock(mutex);
    if (memory.empty()) return;
    head(row)->key[0] = '\0';
    free.push_back(row);
  }

  std::mutex mutex;             // protects what follows, apart from `workers`
  std::span<std::byte> memory;  // empty once it may be gone
  std::size_t workers = 1;
  std::uint32_t* rows_used = nullptr;
  std::uint32_t used = 0;
  std::vector<std::uint32_t> free;
};

UsageMeter::UsageMeter(std::size_t workers)
    : own_(std::make_unique<Memory>(workers)), head_(&own_->head), cells_(own_->cells) {
  head_->resumed_us = monotonic_ns() / 1000;
}

UsageMeter::UsageMeter(std::shared_ptr<Rows> rows, std::uint32_t row)
    : rows_(std::move(rows)), row_(row), head_(rows_->head(row)), cells_(rows_->cells(row)) {
  std::memset(static_cast<void*>(head_), 0, meter_bytes(cells_.size()));
  head_->resumed_us = monotonic_ns() / 1000;
}

UsageMeter::~UsageMeter() {
  if (rows_) rows_->give_back(row_);
}

void UsageMeter::opened(std::size_t worker, std::int64_t at_ns) {
  MeterCell& cell = cells_[worker];
  change_open(cell, 1, -us_of(at_ns));
  cell.connections.add();
  cell.last_connection_ns.store(at_ns, std::memory_order_relaxed);
}

void UsageMeter::adopted(std::size_t worker) {
  change_open(cells_[worker], 1, -static_cast<std::uint64_t>(head_->resumed_us));
}

void UsageMeter::closed(std::size_t worker, std::int64_t at_ns) {
  change_open(cells_[worker], -std::uint64_t{1}, us_of(at_ns));
}

UsageReading UsageMeter::read() {
  connections_now_ = read_meter(*head_, cells_).value_or(connections_now_);
  return {.totals = head_->reported, .connections_now = connections_now_};
}

UsageMeters::UsageMeters(std::span<std::byte> memory, std::size_t workers, std::uint32_t* rows_used,
                         const InheritedUsage& inherited)
    : workers_(workers), rows_(std::make_shared<UsageMeter::Rows>()) {
  rows_->memory = memory;
  rows_->workers = workers;
  rows_->rows_used = rows_used;
  for (const auto& [key, totals] : inherited.totals) {
    const auto meter = make_new(key, totals);
    meter->head_->resumed_us = inherited.at_us;
    inherited_.emplace(key, meter);
  }
}

UsageMeters::~UsageMeters() {
  inherited_.clear();
  const std::lock_guard lock(rows_->mutex);
  rows_->memory = {};
}

UsageMeterPtr UsageMeters::make(std::string_view key, const UsageTotals& saved) {
  const auto found = inherited_.find(std::string(key));
  if (found == inherited_.end()) return make_new(key, saved);
  UsageMeterPtr meter = std::move(found->second);
  inherited_.erase(found);
  meter->head_->base.raise_to(saved);
  meter->head_->reported.raise_to(saved);
  return meter;
}

UsageMeterPtr UsageMeters::make_new(std::string_view key, const UsageTotals& base) {
  const auto row = rows_->take();
  auto meter = row ? UsageMeterPtr(new UsageMeter(rows_, *row)) : std::make_shared<UsageMeter>(workers_);
  MeterHead& head = *meter->head_;
  head.base = head.reported = base;
  // Last, and its first letter at the very end: what a successor finds is whole.
  const std::size_t size = std::min(key.size(), head.key.size() - 1);
  if (size > 0) {
    std::copy_n(key.begin() + 1, size - 1, head.key.begin() + 1);
    std::atomic_ref(head.key[0]).store(key[0], std::memory_order_release);
  }
  return meter;
}

InheritedUsage UsageMeters::read(std::span<std::byte> memory, std::size_t workers, std::uint32_t rows_used) {
  InheritedUsage inherited;
  const std::size_t rows = std::min<std::size_t>(rows_used, memory.size() / meter_bytes(workers));
  for (std::size_t row = 0; row < rows; ++row) {
    std::byte* at = memory.data() + row * meter_bytes(workers);
    // A copy: whoever has died may have left anything, and a living predecessor reads on if it must.
    MeterHead head = *reinterpret_cast<const MeterHead*>(at);
    head.key.back() = '\0';
    if (head.key[0] == '\0') continue;
    read_meter(head, {reinterpret_cast<const MeterCell*>(at + sizeof(MeterHead)), workers});
    inherited.totals.insert_or_assign(head.key.data(), head.reported);
  }
  inherited.at_us = monotonic_ns() / 1000;
  return inherited;
}

}  // namespace portway
