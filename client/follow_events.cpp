#include "client/follow_events.h"

#include <algorithm>
#include <ostream>
#include <thread>
#include <utility>

#include "client/request.h"

namespace portway {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirstWait{1000};  // unless the server sends another one
constexpr milliseconds kLongestWait{30000};
constexpr std::chrono::seconds kSilenceMax{60};  // the server sends a comment every 15 s

class Follower {
 public:
  Follower(const HttpClient& client, HttpRequest request, const EventHandlers& handlers, Console& console)
      : client_(client),
        request_(std::move(request)),
        handlers_(handlers),
        console_(console),
        parser_([this](const ServerEvent& event) { return goes_on(handlers_.on_event(event)); }) {
    request_.headers.emplace_back("Accept", "text/event-stream");
  }

  Outcome<void> run() {
    milliseconds wait{0};
    for (bool connected_before = false;;) {
      heard_ = false;
      const auto answer = client_.stream(
          request(), "text/event-stream", [this](std::string_view data) { return on_data(data); },
          kSilenceMax);
      if (next_ == Next::kStop) return {};
      if (answer && !answer->streamed) {
        Failure refused = refusal(*answer, client_.options());
        if (refused.exit != Exit::kBusy || !connected_before) return refused;
      }
      if (!answer && !connected_before) return answer.error();
      connected_before = true;
      next_ = Next::kGoOn;
      parser_.restart();
      wait = heard_ ? parser_.retry().value_or(kFirstWait) : std::min(kLongestWait, wait * 2 + kFirstWait);
      console_.err << "portway: the event stream ended; reconnecting in " << wait.count() << " ms\n";
      std::this_thread::sleep_for(wait);
    }
  }

 private:
  HttpRequest request() const {
    HttpRequest request = request_;
    if (!parser_.last_id().empty()) {
      std::erase_if(request.headers, [](const auto& header) { return header.first == "Last-Event-ID"; });
      request.headers.emplace_back("Last-Event-ID", parser_.last_id());
    }
    return request;
  }

  bool on_data(std::string_view data) {
    if (data.empty()) return !handlers_.on_open || goes_on(handlers_.on_open());
    heard_ = true;
    return parser_.feed(data) && (!handlers_.on_pause || goes_on(handlers_.on_pause()));
  }

  bool goes_on(Next next) {
    next_ = next;
    return next == Next::kGoOn;
  }

  const HttpClient& client_;
  HttpRequest request_;
  const EventHandlers& handlers_;
  Console& console_;
  Next next_ = Next::kGoOn;  // what the last handler said
  bool heard_ = false;       // data arrived on this connection
  SseParser parser_;
};

}  // namespace

Outcome<void> follow_events(const HttpClient& client, HttpRequest request, const EventHandlers& handlers,
                            Console& console) {
  return Follower(client, std::move(request), handlers, console).run();
}

}  // namespace portway
