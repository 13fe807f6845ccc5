// Answers that several resources give.
//
// Control thread.
#pragma once

#include <boost/json/object.hpp>
#include <string>

#include "api/http/message.h"
#include "api/resources.h"
#include "api/ticketed_stream.h"
#include "base/error.h"
#include "control/streams.h"

namespace portway {

/// 200 or another success with a JSON body.
Response json_response(unsigned status, const boost::json::object& body);

/// With the id of the event that it is true at (`Portway-Event-Id`): GET /events continues after it.
Response with_event_id(const ApiContext& api, Response response);

/// 204.
Response no_content();

/// 200 with the stream that `make` makes, which lasts as long as `terms` hold. An error of Streams::open(),
/// before anything is made, or of `make`.
Result<Response> stream_response(const ApiContext& api, const StreamTerms& terms, const MakeStream& make,
                                 std::string content_type);

}  // namespace portway
