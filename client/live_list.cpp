#include "client/live_list.h"

#include <boost/json/object.hpp>
#include <chrono>
#include <limits>
#include <optional>
#include <ostream>
#include <sstream>
#include <thread>

#include "client/follow_events.h"
#include "client/interrupt.h"
#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kBetweenRequests{500};  // however many events there are

class LiveList {
 public:
  LiveList(const Invocation& invocation, const HttpClient& client, Console& console)
      : invocation_(invocation),
        client_(client),
        console_(console),
        stale_(console),
        left_(invocation.arguments.number("--count").value_or(std::numeric_limits<long>::max())) {}

  Outcome<void> run() {
    // The list is read when the stream is open already, so no change can come between them.
    const EventHandlers handlers{.on_open = [this] { return refresh(); },
                                 .on_event =
                                     [this](const ServerEvent& event) {
                                       changed_ = changed_ || concerns_a_list(event.type);
                                       return Next::kGoOn;
                                     },
                                 .on_pause = [this] { return changed_ ? refresh() : Next::kGoOn; }};
    auto followed = follow_events(client_, {.method = "GET", .target = "/events"}, handlers, console_);
    if (failure_) return *failure_;
    return followed;
  }

 private:
  static bool concerns_a_list(std::string_view type) {
    return type == "reset" || type.starts_with("instance.") || type.starts_with("forward.") ||
           type.starts_with("node.");
  }

  Next refresh() {
    std::this_thread::sleep_until(asked_ + kBetweenRequests);
    asked_ = steady_clock::now();
    changed_ = false;
    const auto answer = fetch(client_, *invocation_.command, invocation_.arguments);
    if (!answer) {
      const bool passes = answer.error().exit == Exit::kUnreachable || answer.error().exit == Exit::kBusy;
      if (passes && !shown_.empty()) return Next::kReconnect;
      failure_ = answer.error();
      return Next::kStop;
    }
    if (!ends_) ends_.emplace();
    stale_.look_at(*answer);
    return show(*answer);
  }

  Next show(const boost::json::object& answer) {
    std::ostringstream text;
    if (invocation_.wants_data()) {
      text << as_data_item(invocation_.format(), answer);
    } else {
      Console into{.out = text, .err = console_.err};
      invocation_.command->show(*invocation_.command, answer, invocation_.format(), into);
    }
    if (text.str() == shown_) return Next::kGoOn;
    const WithoutInterrupts whole;
    if (!invocation_.wants_data()) console_.out << (console_.terminal ? kRedraw : shown_.empty() ? "" : "\n");
    shown_ = text.str();
    console_.out << shown_ << std::flush;
    return --left_ > 0 && console_.out.good() ? Next::kGoOn : Next::kStop;
  }

  const Invocation& invocation_;
  const HttpClient& client_;
  Console& console_;
  StaleNote stale_;
  long left_;  // lists to show
  steady_clock::time_point asked_{};
  bool changed_ = false;
  std::string shown_;  // empty before the first list
  std::optional<Failure> failure_;
  std::optional<EndsWhenInterrupted> ends_;
};

}  // namespace

Outcome<void> run_list(const Invocation& invocation, Console& console) {
  if (!invocation.arguments.given("--watch")) {
    if (!invocation.arguments.given("--count")) return run_request(invocation, console);
    return Failure{Exit::kUsage, "--count says after how many lists --watch stops.", "Give --watch too."};
  }
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  return LiveList(invocation, *client, console).run();
}

}  // namespace portway
