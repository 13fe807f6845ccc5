#include "proxy/half_closed.h"

#include <algorithm>
#include <iterator>

#include "proxy/connection.h"

namespace portway {
namespace {

constexpr Nanos kEvery = std::chrono::seconds(1);

// Connections looked at in one expire(): of all forwards, and of one.
constexpr std::size_t kSeenAtOnce = 256;
constexpr std::size_t kSeenOfForward = 64;
// Looked at for one new client: connections of a forward, and forwards.
constexpr std::size_t kEvictionsSeen = 64;
constexpr std::size_t kForwardsSeen = 256;

}  // namespace

void HalfClosed::add(Connection& connection) {
  InHalfClosed& entry = connection;
  if (entry.is_linked()) return;
  ServedForward& forward = connection.forward();
  ForwardConnections& own = of(forward);
  if (own.half_closed.empty()) {
    own.half_closed_place = static_cast<std::uint32_t>(forwards_.size());
    forwards_.push_back(&forward);
  }
  entry.seen = io_.now();
  own.half_closed.push_back(entry);
  if (due_ == TimerWheel::kNever) due_ = io_.now() + kEvery;
}

void HalfClosed::remove(Connection& connection) {
  InHalfClosed& entry = connection;
  if (!entry.is_linked()) return;
  ForwardConnections& own = of(connection.forward());
  own.half_closed.erase(own.half_closed.iterator_to(entry));
  if (!own.half_closed.empty()) return;
  ServedForward* const last = forwards_.back();
  of(*last).half_closed_place = own.half_closed_place;
  forwards_[own.half_closed_place] = last;
  forwards_.pop_back();
  if (forwards_.empty()) due_ = TimerWheel::kNever;
}

void HalfClosed::expire(const std::function<Nanos(std::size_t)>& limit) {
  const Nanos now = io_.now();
  std::size_t ended = 0;
  std::size_t seen = 0;
  bool unseen = false;
  // Continues after the forward at which it stopped: each gets its turn.
  for (std::size_t left = forwards_.size(); left > 0 && seen < kSeenAtOnce && !forwards_.empty(); --left) {
    next_ = std::min(next_ - 1, forwards_.size() - 1);                      // 0 - 1: the last
    const ServedForwardPtr forward = forwards_[next_]->shared_from_this();  // it may end here
    HalfClosedList& list = of(*forward).half_closed;
    const std::size_t seen_max = seen + kSeenOfForward;
    for (bool more = true; more && !list.empty() && seen < seen_max; ++seen) {
      InHalfClosed& entry = list.front();
      Connection& oldest = connection_of(entry);
      const Nanos most = limit(ended);
      if (most != Nanos::zero() && now - oldest.active() >= most) {
        oldest.terminate({CloseSide::kNode, CloseHow::kHalfCloseTimeout});
        ++ended;
      } else if (oldest.active() > entry.seen) {
        // It has moved bytes since it entered the list: others may have been silent for longer.
        entry.seen = now;
        list.splice(list.end(), list, list.begin());
      } else {
        more = false;
      }
    }
    unseen = unseen || seen == seen_max;
  }
  if (forwards_.empty()) {
    due_ = TimerWheel::kNever;
  } else {
    due_ = ended > 0 || unseen ? now : now + kEvery;  // the rest in the next turn
  }
}

bool HalfClosed::replace_of_forward(const ServedForward& forward) {
  return evict_from(of(forward).half_closed, Nanos::zero());
}

bool HalfClosed::replace_of_session(const ServedForward& forward) {
  const std::uint64_t own = forward.connections_now();
  const ServedForward* most = heaviest([&](const ServedForward& each) {
    if (each.session != forward.session) return std::uint64_t{0};
    const std::uint64_t connections = each.connections_now();
    return connections > own ? connections : 0;
  });
  return (most != nullptr && evict_from(of(*most).half_closed, kEvery)) || replace_of_forward(forward);
}

bool HalfClosed::replace_of_source(const ServedForward& forward, const IpAddress& source) {
  return evict_from(of(forward).half_closed, Nanos::zero(),
                    [&](const Connection& each) { return each.source() == source; });
}

bool HalfClosed::replace_of_heaviest(std::uint64_t kept) {
  const ServedForward* most = heaviest([&](const ServedForward& each) {
    const std::uint64_t connections = each.session->connections.load(std::memory_order_relaxed);
    return connections > kept ? connections : 0;
  });
  return most != nullptr && evict_from(of(*most).half_closed, kEvery);
}

/// The forward with half-closed connections here that weighs most; null if none weighs anything. Looks at
/// some of them, and continues after these the next time.
template <class Weigh>
const ServedForward* HalfClosed::heaviest(Weigh weigh) {
  const ServedForward* found = nullptr;
  std::uint64_t most = 0;
  for (std::size_t left = std::min(kForwardsSeen, forwards_.size()); left > 0; --left) {
    if (++weighed_ >= forwards_.size()) weighed_ = 0;
    const ServedForward& each = *forwards_[weighed_];
    if (const std::uint64_t weight = weigh(each); weight > most) {
      most = weight;
      found = &each;
    }
  }
  return found;
}

/// Of the `wanted` connections that have been half-closed for longest: the longest silent, if it has been
/// silent for `least`. A download may continue long after its client's FIN.
template <class Wanted>
bool HalfClosed::evict_from(HalfClosedList& list, Nanos least, Wanted wanted) {
  Connection* most_silent = nullptr;
  std::size_t seen = 0;
  for (auto each = list.begin(); each != list.end() && seen < kEvictionsSeen; ++each, ++seen) {
    Connection& connection = connection_of(*each);
    if (!wanted(connection)) continue;
    if (most_silent == nullptr || connection.active() < most_silent->active()) most_silent = &connection;
  }
  if (most_silent == nullptr || io_.now() - most_silent->active() < least) return false;
  most_silent->terminate({CloseSide::kNode, CloseHow::kEvicted});
  return true;
}

bool HalfClosed::evict_from(HalfClosedList& list, Nanos least) {
  return evict_from(list, least, [](const Connection&) { return true; });
}

}  // namespace portway
