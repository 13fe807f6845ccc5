// Fair use of the control plane: how much each caller may ask of it, so that nobody slows down the others.
//
// A request costs units: one for reading one thing, more for what is more work (Route::cost), and one for
// each 16 KiB of its answer. Each owner has a bucket of units, which all its keys share and which refills at
// api.rate_limit_per_second up to api.rate_limit_burst. Each admin key and each user of a Unix socket has one
// of its own, ten times as large, in a table of its own: nothing that tenants do takes anything away from an
// orchestrator. Whoever has used up its units is told when to try again, before its body is read.
//
// Wrong keys are counted by source. One that has sent too many is answered 429 instead of 401; good keys from
// the same source are not affected.
//
// What is left is told in RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10).
//
// Belongs to the control thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "api/http/message.h"
#include "base/error.h"
#include "config/config.h"
#include "control/api_stats.h"
#include "control/auth.h"

namespace portway {

/// Buckets by name. Each is known by when it will be full again, as its refill is steady: so a full one needs
/// no entry, and the size of the table is the number of names that have used something lately.
class Buckets {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Span = std::chrono::nanoseconds;

  struct Rule {
    Span per_unit{1};
    std::uint32_t size = 1;  // units

    Span capacity() const { return per_unit * size; }
  };
  struct Level {
    std::uint32_t units = 0;  // that can be taken now
    Span until_full{0};
  };

  /// Beyond `entries_max` names, the bucket that would be full first is taken to be full: whoever has used
  /// most is remembered for longest.
  explicit Buckets(std::size_t entries_max) : entries_max_(entries_max) {}

  /// Takes `units`, at most a whole bucket. If there are fewer: takes none, and says how long until there are
  /// enough.
  std::optional<Span> take(std::string_view name, std::uint32_t units, const Rule& rule, Time now);
  /// Takes them even if there are fewer: the bucket owes the rest, at most as much as it holds.
  void take_anyway(std::string_view name, std::uint32_t units, const Rule& rule, Time now);
  Level level(std::string_view name, const Rule& rule, Time now) const;
  std::size_t size() const { return by_name_.size(); }

 private:
  using ByFull = std::multimap<Time, std::string>;

  Span missing(std::string_view name, Time now) const;
  void set_full_at(std::string_view name, Time when, Time now);

  const std::size_t entries_max_;
  ByFull by_full_;
  std::unordered_map<std::string_view, ByFull::iterator> by_name_;  // the names are by_full_'s
};

class FairUse {
 public:
  static constexpr std::uint32_t kAdminFactor = 10;
  static constexpr std::size_t kBytesPerUnit = 16 * 1024;
  static constexpr std::size_t kOwnersMax = 16'384;
  static constexpr std::size_t kAdminsMax = 4096;
  static constexpr std::size_t kSourcesMax = 16'384;

  /// Both outlive it; `config` may change.
  FairUse(const Config::Api& config, ApiStats& stats,
          std::function<Buckets::Time()> now = std::chrono::steady_clock::now)
      : config_(config), stats_(stats), now_(std::move(now)) {}

  /// Before a request is served. kRateLimited if the caller does not have `units` left.
  Result<void> charge(const Principal& caller, std::uint32_t units);
  /// Charges for the bytes of the answer, and adds what is left to it.
  void settle(const Principal& caller, Response& answer);
  /// The refusal of a request with a wrong key: `refusal`, or kRateLimited if too many came from its source.
  Error refuse_wrong_key(const Request& request, Error refusal);

  const Buckets& owners() const { return owners_; }
  const Buckets& sources() const { return sources_; }

 private:
  /// A caller's bucket.
  struct Account {
    Buckets& buckets;
    std::string name;
    Buckets::Rule rule;
  };
  Account account(const Principal& caller);

  const Config::Api& config_;
  ApiStats& stats_;
  const std::function<Buckets::Time()> now_;
  Buckets owners_{kOwnersMax};
  Buckets admins_{kAdminsMax};
  Buckets sources_{kSourcesMax};  // of wrong keys
};

}  // namespace portway
