// GET /events: what happens in the fleet, as it happens.

#include <chrono>
#include <string>
#include <string_view>

#include "api/ticketed_stream.h"
#include "gateway/relay.h"
#include "gateway/resources.h"

namespace portway {
namespace {

const auto kLastFleetEvent = text_parameter("last_event_id");

// Behind another gateway: an id that is not known by then is answered with a gap.
constexpr std::chrono::seconds kEventKnownWithin(1);

boost::asio::awaitable<Result<Response>> follow_fleet_events(const GatewayContext& gateway,
                                                             const Call& call) {
  if (auto warm = check_warm(gateway); !warm) co_return warm.error();
  const std::string_view header = call.request.header("last-event-id");
  const std::string last = header.empty() ? call.query[kLastFleetEvent].value_or("") : std::string(header);
  co_await gateway.events.wait_until_at(last, std::chrono::steady_clock::now() + kEventKnownWithin);
  auto stream =
      open_stream(gateway.streams, {.caller = call.caller}, [&]() -> Result<std::shared_ptr<BodyStream>> {
        return sse_stream(gateway.events.subscribe(call.caller, last));
      });
  if (!stream) {
    ++gateway.stats.streams_refused;
    co_return stream.error();
  }
  co_return Response{.status = 200,
                     .body = {},
                     .content_type = "text/event-stream",
                     .headers = {{"Cache-Control", "no-store"}},
                     .stream = std::move(*stream)};
}

}  // namespace

std::vector<GatewayRoute> fleet_event_routes() {
  return {{"GET", "/events", Access::kTenant, {kLastFleetEvent}, follow_fleet_events, kHighCost}};
}

}  // namespace portway
