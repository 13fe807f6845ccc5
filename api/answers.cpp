#include "api/answers.h"

#include <boost/json.hpp>
#include <utility>

namespace portway {

Response json_response(unsigned status, const boost::json::object& body) {
  return {.status = status, .body = boost::json::serialize(body), .headers = {}};
}

Response with_event_id(const ApiContext& api, Response response) {
  response.headers.emplace_back("Portway-Event-Id", api.control.events().last_id());
  return response;
}

Response no_content() {
  return {.status = 204, .body = {}, .content_type = {}, .headers = {}};
}

Result<Response> stream_response(const ApiContext& api, const StreamTerms& terms, const MakeStream& make,
                                 std::string content_type) {
  auto stream = open_stream(api.control.streams(), terms, make);
  if (!stream) {
    const ErrorCode code = stream.error().code;
    if (code == ErrorCode::kConnectionLimit || code == ErrorCode::kStreamLimit) ++api.stats.streams_refused;
    return stream.error();
  }
  return Response{.status = 200,
                  .body = {},
                  .content_type = std::move(content_type),
                  .headers = {},
                  .stream = std::move(*stream)};
}

}  // namespace portway
