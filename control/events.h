// Hands the node's events (control/event.h) to those who follow them.
//
// The last events are kept; a subscriber that was disconnected continues after the last one it saw. One that
// was away for too long, or over a restart of the daemon, learns that events are missing and lists what it
// needs again. A slow subscriber holds up nobody: it reads from what is kept.
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

class EventHub {
 public:
  static constexpr std::size_t kKept = 4096;

  EventHub();
  ~EventHub();

  void publish(Event event);

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
  /// An event, or a gap: events are missing here.
  struct Item {
    std::string id;                    // to continue after it
    const Event* event = nullptr;      // until the next publish(); null: a gap
    std::string_view gap_reason = {};  // why there is a gap
  };

  EventSubscription(std::shared_ptr<EventHub::State> state, Principal caller, std::string_view last_event_id);
  ~EventSubscription();
  EventSubscription(const EventSubscription&) = delete;
  EventSubscription& operator=(const EventSubscription&) = delete;

  /// Calls `wake` after each event that is published from now on, whoever may see it. Once.
  void on_event(std::function<void()> wake);

  /// The next one that the caller may see; nothing if there is none yet.
  std::optional<Item> next();

 private:
  Item gap(std::string_view reason) const;

  const std::shared_ptr<EventHub::State> state_;
  const Principal caller_;
  std::uint64_t next_;           // number of the event to look at next
  bool lost_its_place_ = false;  // the event to continue after is not kept: a gap comes first
  std::optional<std::list<std::function<void()>>::iterator> wake_;
};

}  // namespace portway
