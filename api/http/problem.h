// Errors as the API reports them: RFC 9457 problem documents. The one place where an ErrorCode becomes an
// HTTP status.
#pragma once

#include <span>
#include <string_view>

#include "api/http/message.h"
#include "base/error.h"

namespace portway {

/// 400-599.
unsigned http_status(ErrorCode code);

/// application/problem+json with type, title, status, detail, code, request_id, and field, limit and current
/// if the error has them. 401 comes with WWW-Authenticate, 429 and 503 with Retry-After.
/// `reasons`: all there are, if the answer tells of several; `error` is the first of them.
Response problem(const Error& error, std::string_view request_id, std::span<const Error> reasons = {});

}  // namespace portway
