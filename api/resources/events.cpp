// GET /events: what happens on the node, as it happens.

#include <string>
#include <string_view>
#include <vector>

#include "api/answers.h"
#include "api/event_json.h"
#include "api/resources.h"

namespace portway {
namespace {

const auto kLastEventId = text_parameter("last_event_id");

Result<Response> follow_events(const ApiContext& api, const Call& call) {
  const std::string_view header = call.request.header("last-event-id");
  const std::string last = header.empty() ? call.query[kLastEventId].value_or("") : std::string(header);
  auto response = stream_response(
      api, {.caller = call.caller},
      [&] { return event_stream(api.control.events().subscribe(call.caller, last)); }, "text/event-stream");
  if (response) response->headers.emplace_back("Cache-Control", "no-store");
  return response;
}

}  // namespace

std::vector<NodeRoute> event_routes() {
  return {{"GET", "/events", Access::kTenant, {kLastEventId}, follow_events, kHighCost}};
}

}  // namespace portway
