#include "base/error.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace portway {
namespace {

constexpr auto kNames = std::to_array<std::string_view>({
    "invalid_config",
    "malformed_request",
    "malformed_json",
    "invalid_request",
    "unknown_field",
    "invalid_port",
    "invalid_label",
    "invalid_address",
    "unsupported_protocol",
    "blocked_port",
    "privileged_port",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "unsupported_media_type",
    "body_too_large",
    "header_too_large",
    "request_timeout",
    "connection_limit",
    "stream_limit",
    "instance_not_running",
    "quota_exceeded",
    "upgrade_not_possible",
    "host_port_taken",
    "tap_in_use",
    "guest_address_in_use",
    "precondition_failed",
    "session_mismatch",
    "idempotency_key_reused",
    "idempotent_answer_gone",
    "port_pool_exhausted",
    "rate_limited",
    "store_unavailable",
    "resource_exhausted",
    "draining",
    "node_unreachable",
    "internal",
});
static_assert(kNames.size() == kErrorCodes, "every ErrorCode has its name, in the same order");

constexpr std::size_t kQuotedMax = 64;

}  // namespace

std::string_view to_string(ErrorCode code) {
  return kNames[static_cast<std::size_t>(code)];
}

std::string in_quotes(std::string_view text) {
  std::string out(text.substr(0, kQuotedMax));
  std::replace_if(
      out.begin(), out.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  if (text.size() > kQuotedMax) out += "...";
  return '"' + out + '"';
}

void throw_exception_from_error(const Error& error, const boost::source_location& where) {
  throw std::logic_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) +
                         ": unexpected " + std::string(to_string(error.code)) + ": " + error.detail);
}

}  // namespace portway
