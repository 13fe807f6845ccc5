// The node's events (control/event.h) as JSON, and as the body of GET /events: server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html). A gap is an event of the type `reset`.
#pragma once

#include <boost/json/object.hpp>
#include <memory>

#include "api/http/message.h"
#include "control/events.h"

namespace portway {

/// The event's data. Key order is part of the contract.
boost::json::object to_json(const Event& event);

std::shared_ptr<BodyStream> event_stream(std::unique_ptr<EventSubscription> subscription);

}  // namespace portway
