// Hands the node's events (control/event.h) to those who follow them.
//
// The last events are kept; a subscriber that was disconnected continues after the last one it saw, or after
// the one at which a list was true. One that missed a change which is not kept any more, or that was away
// over a restart of the daemon, learns so (a gap) and lists what it needs again. A slow subscriber holds up
// nobody: it reads from what is kept.
//
// What is kept is shared by owner: when it is too much, the oldest event of the owner that has most there
// goes. So no tenant can push out the events of one that has less. Refused clients have a place of their own,
// and push out nothing else. Those that are dropped are no gap: nothing has changed.
//
// Belongs to the control thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "control/auth.h"
#include "control/event.h"

namespace portway {

class EventSubscription;

/// Why events are missing.
enum class EventGap : std::uint8_t {
  kNotKept,    // too many came after them
  kRestarted,  // the id is of another run of the daemon
  kUnknownId,  // no event has this id
};

class EventHub {
 public:
  /// How many changes are kept, and how many refused clients; fewer if they are large.
  static constexpr std::size_t kKept = 4096;
  static constexpr std::size_t kRefusalsKept = 1024;

  EventHub();
  ~EventHub();

  void publish(Event event);

  /// Of the last event, or of the start before the first one: what is true now is what follows from the
  /// events up to this one.
  std::string last_id() const;

  /// The events that `caller` may see: those after the event `last_event_id`, or from now on if that is
  /// empty. May outlive the hub.
  std::unique_ptr<EventSubscription> subscribe(const Principal& caller, std::string_view last_event_id);

 private:
  friend EventSubscription;
  struct State;

  const std::shared_ptr<State> state_;  // shared with the subscriptions
};

class EventSubscription {
 public:
  /// An event, or a gap: events are missing here. After a gap come those from now on.
  struct Item {
    std::string id;                     // to continue after it
    const Event* event = nullptr;       // until the next publish(); null: a gap
    EventGap gap = EventGap::kNotKept;  // why there is one
  };

  EventSubscription(std::shared_ptr<EventHub::State> state, Principal caller, std::string_view last_event_id);
  ~EventSubscription();
  EventSubscription(const EventSubscription&) = delete;
  EventSubscription& operator=(const EventSubscription&) = delete;

  /// From now on `wake` is called after each event that is published and that the caller may see. To be
  /// called once.
  void on_event(std::function<void()> wake);

  /// The next one that the caller may see; nothing if there is none yet.
  std::optional<Item> next();

  /// What to continue after if next() has nothing more.
  std::string position() const;

 private:
  friend EventHub;
  struct Wake;

  const std::shared_ptr<EventHub::State> state_;
  const Principal caller_;
  std::uint64_t next_;                                // number of the event to look at next
  std::optional<EventGap> gap_first_ = std::nullopt;  // the event to continue after is not known
  std::optional<std::list<Wake>::iterator> wake_;
};

}  // namespace portway
