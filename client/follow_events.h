// Follows GET /events over lost connections and restarts of the daemon.
#pragma once

#include <cstdint>
#include <functional>

#include "client/command.h"
#include "client/http.h"
#include "client/sse.h"

namespace portway {

enum class Next : std::uint8_t { kGoOn, kReconnect, kStop };

struct EventHandlers {
  std::function<Next()> on_open = {};                // whenever the stream is open, before its events
  std::function<Next(const ServerEvent&)> on_event;  // each event
  std::function<Next()> on_pause = {};               // after events that arrived together
};

/// Until a handler returns kStop. Fails if the first connection does, or if the server refuses a later one
/// for good. A stream that ends is continued after the last event, which is said on `console.err`.
Outcome<void> follow_events(const HttpClient& client, HttpRequest request, const EventHandlers& handlers,
                            Console& console);

}  // namespace portway
