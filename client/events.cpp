#include "client/events.h"

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <limits>
#include <ostream>
#include <thread>

#include "client/output.h"
#include "client/request.h"
#include "client/sse.h"

namespace portway {
namespace {

namespace json = boost::json;
using std::chrono::milliseconds;

constexpr milliseconds kFirstWait{1000};  // unless the server sends another one
constexpr milliseconds kLongestWait{30000};

/// "2026-01-31T12:00:00.000Z forward.created instance_id=vm-1 ...": the time and the type, then the members.
std::string event_line(const ServerEvent& event) {
  boost::system::error_code error;
  const json::value data = json::parse(event.data, error);
  if (error || !data.is_object()) return event.type + " " + event.data;
  const json::object& object = data.get_object();
  const std::string time = text_of(object, "time");
  std::string line = time.empty() ? event.type : time + " " + event.type;
  for (const auto& [key, value] : object) {
    const std::string text = text_of(object, key);
    if (key == "time" || key == "type" || text.empty()) continue;
    line += " " + std::string(key) + "=" + (text.find(' ') == std::string::npos ? text : '"' + text + '"');
  }
  return line;
}

/// One object per line, for jq: {"id", "event", "data"}.
std::string event_json(const ServerEvent& event) {
  boost::system::error_code error;
  json::value data = json::parse(event.data, error);
  if (error) data = json::string(event.data);
  return json::serialize(json::object{{"id", event.id}, {"event", event.type}, {"data", std::move(data)}});
}

class Follower {
 public:
  Follower(const Invocation& invocation, HttpClient client, Console& console)
      : invocation_(invocation),
        client_(std::move(client)),
        console_(console),
        left_(invocation.arguments.number("--count").value_or(std::numeric_limits<long>::max())),
        parser_([this](const ServerEvent& event) { return on_event(event); }) {}

  Outcome<void> run() {
    milliseconds wait{0};
    for (bool connected_before = false; left_ > 0;) {
      heard_ = false;
      const auto answer = client_.stream(request(), [this](std::string_view data) {
        heard_ = true;
        return parser_.feed(data);
      });
      if (left_ <= 0) return {};
      if (answer && answer->status != 200) {
        Failure refused = refusal(*answer, client_.options());
        if (refused.exit != Exit::kBusy || !connected_before) return refused;
      }
      if (!answer && !connected_before) return answer.error();
      connected_before = true;
      parser_.restart();
      wait = heard_ ? parser_.retry().value_or(kFirstWait) : std::min(kLongestWait, wait * 2 + kFirstWait);
      console_.err << "portway: the event stream ended; reconnecting in " << wait.count() << " ms\n";
      std::this_thread::sleep_for(wait);
    }
    return {};
  }

 private:
  HttpRequest request() const {
    HttpRequest request = make_request(*invocation_.command, invocation_.arguments);
    if (!parser_.last_id().empty()) {
      std::erase_if(request.headers, [](const auto& header) { return header.first == "Last-Event-ID"; });
      request.headers.emplace_back("Last-Event-ID", parser_.last_id());
    }
    request.headers.emplace_back("Accept", "text/event-stream");
    return request;
  }

  bool on_event(const ServerEvent& event) {
    console_.out << (invocation_.wants_json() ? event_json(event) : event_line(event)) << std::endl;
    return --left_ > 0 && console_.out.good();
  }

  const Invocation& invocation_;
  const HttpClient client_;
  Console& console_;
  long left_;           // events to show
  bool heard_ = false;  // data arrived on this connection
  SseParser parser_;
};

}  // namespace

Outcome<void> run_events(const Invocation& invocation, Console& console) {
  auto client = make_client(invocation, console);
  if (!client) return client.error();
  return Follower(invocation, std::move(*client), console).run();
}

}  // namespace portway
