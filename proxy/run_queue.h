// Which connection advances next. Messages come first, one connection of each forward in turn, so a
// forward with many events does not delay the others. Then bulk streams, one after the other, until the
// turn has moved its budget; streams that were not served go first in the next turn.
//
// A connection is in the queue at most once, however many events it had. Independent of sockets: an Entry
// is the queued part of a connection, a Lane the queueing part of a forward. Belongs to one worker's
// thread.
#pragma once

#include <algorithm>
#include <boost/intrusive/list.hpp>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "proxy/pipe_pool.h"
#include "proxy/relay.h"

namespace portway {

class RunQueue {
 public:
  /// Steps in a turn, 5 to 40 us each, which bounds how long a neighbour waits for its turn. Also the most
  /// bulk streams in a turn.
  static constexpr std::size_t kStepsAtOnce = 32;

  class Entry : public boost::intrusive::list_base_hook<> {
    friend class RunQueue;
    enum class Place : std::uint8_t { kNone, kMessages, kStreams } place_ = Place::kNone;
  };
  /// The entries of one forward that wait with a message or another event. Must outlive its entries.
  using Lane = boost::intrusive::list<Entry>;

  bool empty() const { return messages_ == 0 && streams_.empty(); }
  /// Queued as a message, the highest priority.
  static bool is_first(const Entry& entry) { return entry.place_ == Entry::Place::kMessages; }
  /// Moves an entry that is queued as a stream, so that a message does not wait with the streams.
  void add_message(Entry& entry, Lane& lane);
  /// Does not move an entry that is already queued.
  void add_stream(Entry& entry);

  /// Calls advance(Entry&) for each entry whose turn it is, after taking it out. Entries added meanwhile
  /// wait until the worker has looked at new events.
  template <class Advance>
  void run(Advance advance);

  /// Bytes that one direction of a connection may move in this turn.
  std::size_t budget() const { return budget_; }
  void count_moved(std::uint64_t bytes) { moved_ += bytes; }

 private:
  using Place = Entry::Place;

  std::deque<Lane*> lanes_;   // lanes with entries, the next one in front
  std::size_t messages_ = 0;  // entries in all lanes
  Lane streams_;              // the next one in front
  std::size_t budget_ = kRelayBudgetBytes;
  std::uint64_t moved_ = 0;  // by streams, in this turn
};

template <class Advance>
void RunQueue::run(Advance advance) {
  // In a turn with messages, a stream gets only a little between two of them.
  budget_ = messages_ != 0
                ? kRelayShareBesideMessages
                : std::max<std::size_t>(kRelayBudgetBytes / std::max<std::size_t>(1, streams_.size()),
                                        PipePool::kPipeSize);
  for (std::size_t left = std::min(messages_, kStepsAtOnce); left > 0; --left) {
    Lane& lane = *lanes_.front();
    lanes_.pop_front();
    Entry& entry = lane.front();
    lane.pop_front();
    entry.place_ = Place::kNone;
    --messages_;
    if (!lane.empty()) lanes_.push_back(&lane);
    advance(entry);
  }
  moved_ = 0;  // messages, however large, do not use up the streams' budget
  for (std::size_t left = std::min(streams_.size(), kStepsAtOnce); left > 0 && moved_ < kRelayBudgetBytes;
       --left) {
    Entry& entry = streams_.front();
    streams_.pop_front();
    entry.place_ = Place::kNone;
    advance(entry);
  }
}

}  // namespace portway
