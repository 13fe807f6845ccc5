// Server-sent events as a body (WHATWG HTML, 9.2), whatever they are about.
//
// Control thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "api/http/message.h"

namespace portway {

struct SseItem {
  std::string text;     // as sse_event() writes it
  bool is_gap = false;  // events are missing here
};

/// Where a reader is in the events, and how it goes on.
class SseSource {
 public:
  virtual ~SseSource() = default;

  /// From now on `wake` is called when next() may have something. Called once.
  virtual void on_event(std::function<void()> wake) = 0;
  /// Nothing if there is none yet.
  virtual std::optional<SseItem> next() = 0;
  /// The id to continue after if next() has nothing more.
  virtual std::string position() const = 0;
};

std::string sse_event(std::string_view id, std::string_view type, std::string_view data);

/// The event that says that events are missing: read the lists again. `reason`: in words.
std::string reset_event(std::string_view id, std::string_view code, std::string_view reason);

std::shared_ptr<BodyStream> sse_stream(std::unique_ptr<SseSource> source);

}  // namespace portway
