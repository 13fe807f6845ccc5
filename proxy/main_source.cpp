#include "proxy/main_source.h"

#include <algorithm>

#include "proxy/connection.h"

namespace portway {
namespace {

// How many of a forward's latest connections are considered, at least and at most, and how often.
constexpr std::size_t kSeenMin = 16;
constexpr std::size_t kSeenMax = 1024;
constexpr Nanos kAsksEvery = std::chrono::milliseconds(100);

/// The source that has more than half of the forward's latest connections, if there are enough to tell.
std::optional<IpAddress> main_source(const ServedForward& forward, const ConnectionList& all) {
  const auto for_each_latest = [&](auto visit) {
    std::size_t seen = 0;
    for (auto each = all.rbegin(); each != all.rend() && seen < kSeenMax; ++each, ++seen)
      visit(connection_of(*each).source());
    return seen;
  };
  // Boyer and Moore's majority vote: a source with more than half is the candidate that is left.
  IpAddress candidate;
  std::size_t votes = 0;
  const std::size_t seen = for_each_latest([&](const IpAddress& source) {
    if (votes == 0) candidate = source;
    votes = source == candidate ? votes + 1 : votes - 1;
  });
  std::size_t have = 0;
  for_each_latest([&](const IpAddress& source) { have += source == candidate ? 1U : 0U; });
  const std::uint64_t of_worker = forward.connections_now() / forward.worker_count;
  if (seen < std::min<std::uint64_t>(kSeenMin, of_worker) || 2 * have <= seen) return std::nullopt;
  return candidate;
}

}  // namespace

bool has_most(const ServedForward& forward, std::size_t worker, const IpAddress& source, Nanos now) {
  ForwardConnections& own = forward.connections[worker];
  if (now >= own.sources_due) {
    own.sources_due = now + kAsksEvery;
    own.main_source = main_source(forward, own.all);
  }
  return own.main_source == source;
}

}  // namespace portway
