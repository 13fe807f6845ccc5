// Which host ports of the range are promised and which are free. Drawing a port costs the same in an empty
// pool and in one that is 99 % full.
//
// A port that was promised rests for a while before another owner can get it: clients that still use it would
// reach the wrong service. If no other port is left, the one that has rested for longest is given all the
// same.
//
// Belongs to the control thread. It knows only our own promises: whether another program has a port is found
// out by binding it, which is why take_random() draws until the caller's bind succeeds.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/endpoint.h"
#include "base/error.h"
#include "base/random.h"

namespace portway {

class PortAllocator {
 public:
  /// Free ports one take_random() tries at most; in a range that other programs fill it gives up after these.
  static constexpr std::uint32_t kDrawsMax = 256;

  using Clock = std::chrono::steady_clock;

  explicit PortAllocator(PortRange range);

  /// Draws a free port no tenant can guess, calls `bind(port)`, which returns a Result, and counts the port
  /// as used when that succeeds. On kHostPortTaken (another program has it) another port is drawn; any other
  /// error is returned as it is. kPortPoolExhausted, with limit and current, when nothing was left to try.
  /// Ports of the static band are drawn when no other is left. `bind` must not call the allocator.
  template <class Bind>
  std::invoke_result_t<Bind&, std::uint16_t> take_random(Bind bind, std::string_view owner = {});

  /// The same for `count` ports that follow one another, at least 2. kPortPoolExhausted if there is no such
  /// row.
  template <class Bind>
  auto take_row(std::uint32_t count, Bind bind)
      -> Result<std::vector<typename std::invoke_result_t<Bind&, std::uint16_t>::value_type>>;

  /// Counts a certain port as used; false when it is used already, rests for another owner, or is outside the
  /// range. The caller binds it, and gives it back when that fails.
  [[nodiscard]] bool take(std::uint16_t port, std::string_view owner = {});

  /// Ends a promise; the port must be used. One outside the range is ignored: a forward can be older than the
  /// range.
  void give_back(std::uint16_t port);
  /// The same, and the port rests until then, except for this owner.
  void rest(std::uint16_t port, std::string owner, Clock::time_point until);
  /// Those whose time has come are free.
  void end_rests(Clock::time_point now);
  std::uint32_t resting() const { return static_cast<std::uint32_t>(resting_.size()); }

  bool is_used(std::uint16_t port) const;
  const PortRange& range() const { return range_; }
  /// How many ports at the range's start are kept for those who ask for a certain one: Kubernetes' formula
  /// for node ports, min(max(16, size / 32), 128), none in a range of 16 or fewer (KEP-3668).
  std::uint32_t static_band() const { return static_.size(); }
  std::uint32_t used() const { return range_.size() - free() - resting(); }
  std::uint32_t free() const { return static_.free + dynamic_.free; }

 private:
  /// Ports that follow one another, of which those drawn at random stand behind the free ones.
  struct Band {
    Band(std::uint32_t first_port, std::uint32_t count);
    std::uint32_t size() const { return static_cast<std::uint32_t>(ports.size()); }
    std::uint32_t slot(std::uint16_t port) const { return slots[port - first]; }
    void swap_slots(std::uint32_t a, std::uint32_t b);

    std::uint32_t first;
    std::uint32_t free;                // how many ports are free
    std::vector<std::uint16_t> ports;  // the free ones in no order, then the used ones
    std::vector<std::uint32_t> slots;  // by port: where it is in `ports`
  };

  Band& band_of(std::uint16_t port) { return port < dynamic_.first ? static_ : dynamic_; }
  const Band& band_of(std::uint16_t port) const { return port < dynamic_.first ? static_ : dynamic_; }
  Error exhausted(std::uint32_t tried) const;
  Error no_row(std::uint32_t count) const;
  bool is_free(std::uint16_t port) const;

  struct Rest {
    std::string owner;
    Clock::time_point until;
  };
  std::vector<std::uint16_t> rested_longest(std::string_view owner) const;

  PortRange range_;
  Band static_;
  Band dynamic_;
  std::map<std::uint16_t, Rest> resting_;  // not free in their band
  // In the order in which they were given back; entries of ports that rest no more are skipped.
  std::deque<std::pair<Clock::time_point, std::uint16_t>> rests_;
};

template <class Bind>
std::invoke_result_t<Bind&, std::uint16_t> PortAllocator::take_random(Bind bind, std::string_view owner) {
  std::uint32_t tried_in_all = 0;
  for (Band* band : {&dynamic_, &static_}) {
    // Ports that failed are swapped behind the ones still to be drawn, so no port is tried twice; they stay
    // free.
    for (std::uint32_t tried = 0; tried < band->free && tried_in_all < kDrawsMax; ++tried, ++tried_in_all) {
      const std::uint32_t last = band->free - tried - 1;
      band->swap_slots(random_below(last + 1), last);
      const std::uint16_t port = band->ports[last];
      auto bound = bind(port);
      if (bound) {
        band->swap_slots(last, --band->free);
        return bound;
      }
      if (bound.error().code != ErrorCode::kHostPortTaken) return bound;
    }
  }
  for (const std::uint16_t port : rested_longest(owner)) {
    if (tried_in_all++ >= kDrawsMax) break;
    auto bound = bind(port);
    if (bound) resting_.erase(port);
    if (bound || bound.error().code != ErrorCode::kHostPortTaken) return bound;
  }
  return exhausted(tried_in_all);
}

template <class Bind>
auto PortAllocator::take_row(std::uint32_t count, Bind bind)
    -> Result<std::vector<typename std::invoke_result_t<Bind&, std::uint16_t>::value_type>> {
  std::vector<typename std::invoke_result_t<Bind&, std::uint16_t>::value_type> row;
  std::uint32_t tried = 0;
  // The static band is used when there is no other row.
  for (const std::uint32_t first : {dynamic_.first, range_.first + 0U}) {
    const std::uint32_t size = range_.first + range_.size() - first;
    if (size < count) continue;
    const std::uint32_t starts = size - count + 1;
    const std::uint32_t offset = random_below(starts);
    for (std::uint32_t i = 0; i < starts && tried < kDrawsMax; ++i) {
      const std::uint32_t start = first + (offset + i) % starts;
      std::uint32_t free = 0;
      while (free < count && is_free(static_cast<std::uint16_t>(start + free))) ++free;
      if (free < count) continue;
      for (std::uint32_t port = start; port < start + count && tried < kDrawsMax; ++port) {
        auto bound = bind(static_cast<std::uint16_t>(port));
        if (!bound && bound.error().code != ErrorCode::kHostPortTaken) return bound.error();
        if (!bound) break;
        row.push_back(std::move(*bound));
      }
      if (row.size() < count) {
        ++tried;
        row.clear();
        continue;
      }
      for (std::uint32_t port = start; port < start + count; ++port)
        (void)take(static_cast<std::uint16_t>(port));
      return row;
    }
  }
  return no_row(count);
}

}  // namespace portway
