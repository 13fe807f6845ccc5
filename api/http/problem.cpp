#include "api/http/problem.h"

#include <boost/json.hpp>
#include <chrono>
#include <string>

namespace portway {
namespace {

// When a client should try again, unless the error says so: long enough for a port to be released or disk
// space to be freed.
constexpr std::chrono::seconds kRetryAfter(5);

std::string_view title(unsigned status) {
  switch (status) {
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 412:
      return "Precondition Failed";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 503:
      return "Service Unavailable";
    default:
      return "Internal Server Error";
  }
}

}  // namespace

unsigned http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kMalformedRequest:
    case ErrorCode::kMalformedJson:
      return 400;
    case ErrorCode::kUnauthorized:
      return 401;
    case ErrorCode::kForbidden:
    case ErrorCode::kBlockedPort:
    case ErrorCode::kPrivilegedPort:
      return 403;
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kMethodNotAllowed:
      return 405;
    case ErrorCode::kRequestTimeout:
      return 408;
    case ErrorCode::kInstanceNotRunning:
    case ErrorCode::kQuotaExceeded:
    case ErrorCode::kUpgradeNotPossible:
    case ErrorCode::kHostPortTaken:
    case ErrorCode::kTapInUse:
    case ErrorCode::kGuestAddressInUse:
    case ErrorCode::kIdempotentAnswerGone:
      return 409;
    case ErrorCode::kPreconditionFailed:
    case ErrorCode::kSessionMismatch:
      return 412;
    case ErrorCode::kBodyTooLarge:
      return 413;
    case ErrorCode::kUnsupportedMediaType:
      return 415;
    case ErrorCode::kInvalidRequest:
    case ErrorCode::kUnknownField:
    case ErrorCode::kInvalidPort:
    case ErrorCode::kInvalidLabel:
    case ErrorCode::kInvalidAddress:
    case ErrorCode::kUnsupportedProtocol:
    case ErrorCode::kIdempotencyKeyReused:
      return 422;
    case ErrorCode::kRateLimited:
    case ErrorCode::kStreamLimit:
      return 429;
    case ErrorCode::kHeaderTooLarge:
      return 431;
    case ErrorCode::kConnectionLimit:
    case ErrorCode::kPortPoolExhausted:
    case ErrorCode::kStoreUnavailable:
    case ErrorCode::kResourceExhausted:
    case ErrorCode::kDraining:
    case ErrorCode::kNodeUnreachable:
      return 503;
    case ErrorCode::kInvalidConfig:  // the operator's, not the caller's
    case ErrorCode::kInternal:
      return 500;
  }
  return 500;
}

Response problem(const Error& error, std::string_view request_id, std::span<const Error> reasons) {
  const unsigned status = http_status(error.code);
  boost::json::object body;
  body["type"] = "about:blank";
  body["title"] = title(status);
  body["status"] = status;
  body["detail"] = error.detail;
  body["code"] = to_string(error.code);
  body["request_id"] = request_id;
  if (!error.field.empty()) body["field"] = error.field;
  if (error.limit) body["limit"] = *error.limit;
  if (error.current) body["current"] = *error.current;
  if (!reasons.empty()) {
    boost::json::array& list = body["reasons"].emplace_array();
    for (const Error& reason : reasons)
      list.push_back({{"code", to_string(reason.code)}, {"detail", reason.detail}});
  }

  Response response{.status = status,
                    .body = boost::json::serialize(body),
                    .content_type = "application/problem+json",
                    .headers = {}};
  if (status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (status == 503 || status == 429) {
    response.headers.emplace_back("Retry-After",
                                  std::to_string(error.retry_after.value_or(kRetryAfter).count()));
  }
  return response;
}

}  // namespace portway
