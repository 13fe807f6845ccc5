#include "config/port_allocator.h"

#include <algorithm>
#include <cassert>
#include <fstream>
#include <numeric>
#include <string_view>
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

bool PortAllocator::take(std::uint16_t port) {
  if (!range_.contains(port) || is_used(port)) return false;
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

bool PortAllocator::is_used(std::uint16_t port) const {
  if (!range_.contains(port)) return false;
  const Band& band = band_of(port);
  return band.slot(port) >= band.free;
}

Error PortAllocator::exhausted(std::uint32_t tried) const {
  std::string detail =
      tried == 0 ? "All host ports are in use; delete forwards that are not needed"
                 : "The " + std::to_string(tried) + " free host ports tried are in use by other programs";
  detail += ", or ask the operator for a wider ports.range (now " + to_string(range_) + ").";
  return {ErrorCode::kPortPoolExhausted, std::move(detail), "", range_.size(), used()};
}

namespace {

/// Ports of `range` that are in the comma-separated list of ports and ranges, e.g. "8080,9148,30000-30010".
std::uint32_t count_listed(std::string_view list, const PortRange& range) {
  std::uint32_t count = 0;
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    if (const auto listed = parse_port_range(list.substr(0, comma))) {
      const std::uint16_t first = std::max(listed->first, range.first);
      const std::uint16_t last = std::min(listed->last, range.last);
      if (first <= last) count += PortRange{first, last}.size();
    }
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return count;
}

}  // namespace

std::optional<std::string> ephemeral_overlap_warning(const PortRange& range,
                                                     const EphemeralPortFiles& files) {
  PortRange ephemeral;
  std::ifstream range_file(files.range);
  if (!(range_file >> ephemeral.first >> ephemeral.last)) return std::nullopt;
  std::string reserved;
  std::ifstream(files.reserved) >> reserved;

  const PortRange overlap{std::max(range.first, ephemeral.first), std::min(range.last, ephemeral.last)};
  if (overlap.first > overlap.last) return std::nullopt;
  // The kernel prints the reserved ports sorted and merged, so none is counted twice.
  const std::uint32_t exposed = overlap.size() - count_listed(reserved, overlap);
  if (exposed == 0) return std::nullopt;
  return std::to_string(exposed) + " ports of ports.range " + to_string(range) +
         " are also handed out by the kernel to outgoing connections (net.ipv4.ip_local_port_range " +
         to_string(ephemeral) +
         "); a forward cannot have such a port while one uses it. Change ports.range, or run: " +
         "sysctl -w net.ipv4.ip_local_reserved_ports=" + (reserved.empty() ? "" : reserved + ",") +
         to_string(overlap);
}

}  // namespace portway
