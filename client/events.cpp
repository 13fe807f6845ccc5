#include "client/events.h"

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <limits>
#include <optional>
#include <ostream>

#include "client/follow_events.h"
#include "client/interrupt.h"
#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

namespace json = boost::json;
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
    const bool is_whole = value.is_object() || key == "etag";  // what the event is about: -o json shows it
    if (key == "time" || key == "type" || is_whole || text.empty()) continue;
    line += " " + std::string(key) + "=" + (text.find(' ') == std::string::npos ? text : '"' + text + '"');
  }
  return line;
}

json::object event_object(const ServerEvent& event) {
  boost::system::error_code error;
  json::value data = json::parse(event.data, error);
  if (error) data = json::string(event.data);
  return {{"id", event.id}, {"event", event.type}, {"data", std::move(data)}};
}

}  // namespace

Outcome<void> run_events(const Invocation& invocation, Console& console) {
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  long left = invocation.arguments.number("--count").value_or(std::numeric_limits<long>::max());
  std::optional<EndsWhenInterrupted> ends;
  const EventHandlers handlers{
      .on_open =
          [&] {
            if (!ends) ends.emplace();
            return Next::kGoOn;
          },
      .on_event =
          [&](const ServerEvent& event) {
            const WithoutInterrupts whole;
            console.out << (invocation.wants_data() ? as_data_item(invocation.format(), event_object(event))
                                                    : event_line(event) + "\n")
                        << std::flush;
            return --left > 0 && console.out.good() ? Next::kGoOn : Next::kStop;
          }};
  return follow_events(*client, make_request(*invocation.command, invocation.arguments), handlers, console);
}

}  // namespace portway
