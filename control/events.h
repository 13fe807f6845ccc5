// What happens on the node, as server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html).
//
// The last events are kept; a client that lost its connection goes on after the last one it saw
// (Last-Event-ID). One that was away for too long, or over a restart of the daemon, is told so by an event
// `reset`, and lists what it needs again. A slow client holds up nobody: it reads from what is kept.
//
// Belongs to the control thread.
#pragma once

#include <boost/json/object.hpp>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "api/http/message.h"
#include "control/auth.h"

namespace portway {

class EventHub {
 public:
  static constexpr std::size_t kKept = 4096;

  EventHub();
  ~EventHub();

  /// `owner`: the tenant whose keys see it besides admins'. The event's data is `data` with the time in
  /// front.
  void publish(std::string_view type, std::string_view owner, const boost::json::object& data);

  /// A stream of what `caller` may see: what came after the event `last_event_id`, or from now on when that
  /// is empty. Lives on its own.
  std::shared_ptr<BodyStream> subscribe(const Principal& caller, std::string_view last_event_id);

 private:
  struct State;
  class Subscription;

  const std::shared_ptr<State> state_;  // shared with the streams
};

}  // namespace portway
