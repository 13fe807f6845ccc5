#include "control/port_allocator.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

namespace portway {

namespace {

std::uint32_t static_band_of(std::uint32_t range_size) {
  return range_size <= 16 ? 0 : std::min(std::max(16U, range_size / 32), 128U);
}

}  // namespace

PortAllocator::Band::Band(std::uint32_t first_port, std::uint32_t count)
    : first(first_port), free(count), ports(count), slots(count) {
  std::iota(ports.begin(), ports.end(), static_cast<std::uint16_t>(first));
  std::iota(slots.begin(), slots.end(), 0U);
}

void PortAllocator::Band::swap_slots(std::uint32_t a, std::uint32_t b) {
  std::swap(ports[a], ports[b]);
  slots[ports[a] - first] = a;
  slots[ports[b] - first] = b;
}

PortAllocator::PortAllocator(PortRange range)
    : range_(range),
      static_(range.first, static_band_of(range.size())),
      dynamic_(range.first + static_.size(), range.size() - static_.size()) {}

bool PortAllocator::take(std::uint16_t port, std::string_view owner) {
  if (!range_.contains(port) || is_used(port)) return false;
  if (const auto rest = resting_.find(port); rest != resting_.end()) {
    if (rest->second.owner != owner) return false;
    resting_.erase(rest);
    return true;
  }
  Band& band = band_of(port);
  const std::uint32_t slot = band.slot(port);
  band.swap_slots(slot, --band.free);
  return true;
}

void PortAllocator::give_back(std::uint16_t port) {
  if (!range_.contains(port)) return;
  assert(is_used(port));
  Band& band = band_of(port);
  const std::uint32_t slot = band.slot(port);
  band.swap_slots(slot, band.free++);
}

void PortAllocator::rest(std::uint16_t port, std::string owner, Clock::time_point until) {
  if (!range_.contains(port)) return;
  assert(is_used(port));
  resting_[port] = {.owner = std::move(owner), .until = until};
  rests_.emplace_back(until, port);
}

void PortAllocator::end_rests(Clock::time_point now) {
  while (!rests_.empty() && rests_.front().first <= now) {
    const auto [until, port] = rests_.front();
    rests_.pop_front();
    const auto rest = resting_.find(port);
    if (rest == resting_.end() || rest->second.until != until) continue;  // it was taken meanwhile
    resting_.erase(rest);
    give_back(port);
  }
}

/// The owner's own come first.
std::vector<std::uint16_t> PortAllocator::rested_longest(std::string_view owner) const {
  std::vector<std::uint16_t> own;
  std::vector<std::uint16_t> others;
  for (const auto& [until, port] : rests_) {
    const auto rest = resting_.find(port);
    if (rest == resting_.end() || rest->second.until != until) continue;
    (rest->second.owner == owner ? own : others).push_back(port);
  }
  own.insert(own.end(), others.begin(), others.end());
  return own;
}

bool PortAllocator::is_used(std::uint16_t port) const {
  if (!range_.contains(port) || resting_.contains(port)) return false;
  const Band& band = band_of(port);
  return band.slot(port) >= band.free;
}

bool PortAllocator::is_free(std::uint16_t port) const {
  return range_.contains(port) && !resting_.contains(port) && !is_used(port);
}

Error PortAllocator::no_row(std::uint32_t count) const {
  return {ErrorCode::kPortPoolExhausted,
          "There are no " + std::to_string(count) +
              " free host ports in a row; ask for fewer, or for single ones, or ask the operator for a wider "
              "ports.range (now " +
              to_string(range_) + ").",
          "host_ports", range_.size(), used()};
}

Error PortAllocator::exhausted(std::uint32_t tried) const {
  std::string detail =
      tried == 0 ? "All host ports are in use; delete forwards that are not needed"
                 : "The " + std::to_string(tried) + " free host ports tried are in use by other programs";
  detail += ", or ask the operator for a wider ports.range (now " + to_string(range_) + ").";
  return {ErrorCode::kPortPoolExhausted, std::move(detail), "", range_.size(), used()};
}

}  // namespace portway
