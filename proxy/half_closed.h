// The half-closed connections of a worker: one side has sent FIN, the other has not. They are evicted when
// connections run short (proxy/fair_share.h), and they end after a period of silence.
//
// A connection that is open in both directions is never evicted. The replace_ functions look at the
// connections that have been half-closed for longest and end the longest silent of them. They return false
// if there is none. Belongs to one worker's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "proxy/connection_lists.h"
#include "proxy/io.h"
#include "proxy/served_forward.h"
#include "proxy/timer_wheel.h"

namespace portway {

class Connection;

class HalfClosed {
 public:
  HalfClosed(const Io& io, std::size_t worker) : io_(io), worker_(worker) {}

  /// Both are idempotent.
  void add(Connection& connection);
  void remove(Connection& connection);

  /// When to call expire(): once a second while there are any; else TimerWheel::kNever.
  Nanos next_due() const { return due_; }
  bool due() const { return due_ != TimerWheel::kNever && io_.now() >= due_; }
  /// Ends those that have been silent for longer than limit(N), where N is how many this call has ended so
  /// far; zero: no limit.
  void expire(const std::function<Nanos(std::size_t)>& limit);

  /// One of the forward.
  bool replace_of_forward(const ServedForward& forward);
  /// One of the forward's session: of its forward with the most connections if that one has been silent
  /// for a second, else of `forward` itself.
  bool replace_of_session(const ServedForward& forward);
  /// One of the forward's with this source (see source_of()).
  bool replace_of_source(const ServedForward& forward, const IpAddress& source);
  /// One of the session that has the most connections, more than `kept`. Only one that has been silent for
  /// a second or more: no running transfer ends for a new client.
  bool replace_of_heaviest(std::uint64_t kept);

 private:
  ForwardConnections& of(const ServedForward& forward) const { return forward.connections[worker_]; }
  template <class Wanted>
  bool evict_from(HalfClosedList& list, Nanos least, Wanted wanted);
  bool evict_from(HalfClosedList& list, Nanos least);
  template <class Weigh>
  const ServedForward* heaviest(Weigh weigh);

  const Io& io_;
  const std::size_t worker_;
  std::vector<ServedForward*> forwards_;  // those with half-closed connections here
  std::size_t next_ = 0;                  // expire() continues below this index
  std::size_t weighed_ = 0;               // the last index that heaviest() looked at
  Nanos due_ = TimerWheel::kNever;
};

}  // namespace portway
