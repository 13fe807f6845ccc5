// Errors: what went wrong, in words for whoever can fix it.
//
// Exceptions do not cross our functions: what can fail returns a Result. An ErrorCode is stable: it is the
// `code` of the API's problem documents, and becomes an HTTP status in exactly one place
// (api/http/problem.cpp).
#pragma once

#include <boost/system/result.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace portway {

enum class ErrorCode : std::uint8_t {
  kInvalidConfig,        // the config file, a flag or an environment variable
  kMalformedRequest,     // bytes that are not HTTP, or HTTP that two readers could understand differently
  kMalformedJson,        // a body that is not JSON
  kInvalidRequest,       // a body or query whose fields do not fit (`field` says which)
  kUnknownField,         // a field that is not in the contract
  kInvalidPort,          // not 1-65535
  kInvalidLabel,         //
  kInvalidAddress,       // a guest address that is no address, or outside guests.networks, or the node's own
  kUnsupportedProtocol,  // anything but tcp
  kBlockedPort,          // guest port 22
  kPrivilegedPort,       // a guest port below 1024, without role admin
  kUnauthorized,         // no key, or an unknown one
  kForbidden,            // the key's role does not allow the call
  kNotFound,             // not found, or owned by someone else
  kMethodNotAllowed,
  kUnsupportedMediaType,
  kBodyTooLarge,
  kHeaderTooLarge,
  kRequestTimeout,   // a request that comes too slowly
  kConnectionLimit,  // too many clients of the API at once
  kStreamLimit,      // the caller's owner has its share of open streams
  kInstanceNotRunning,
  kQuotaExceeded,
  kUpgradeNotPossible,    // the process cannot be replaced by another one now
  kHostPortTaken,         // the requested host port is in use
  kTapInUse,              // another running instance has it
  kGuestAddressInUse,     // another running instance has it behind the same device
  kPreconditionFailed,    // the resource is not as If-Match or If-None-Match says
  kSessionMismatch,       // the instance's session is not the one named in the request
  kIdempotencyKeyReused,  // the same Idempotency-Key with a different request
  kIdempotentAnswerGone,  // the same key and request, but what it created is gone
  kPortPoolExhausted,     // no host port left in the range
  kRateLimited,
  kStoreUnavailable,   // the disk is full, read-only or broken: nothing was changed
  kResourceExhausted,  // descriptors or memory ran out
  kDraining,           // the daemon is shutting down, or the node is being drained
  kNodeUnreachable,    // at a gateway: the node that it is about is lost, or does not answer
  kInternal,           // a mistake of ours
};
inline constexpr std::size_t kErrorCodes = static_cast<std::size_t>(ErrorCode::kInternal) + 1;

/// The code as the API and the log write it, e.g. "quota_exceeded".
std::string_view to_string(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string detail = {};  // what happened and what to do about it, one or two sentences
  std::string field = {};   // the offending field, key or header; empty: none
  std::optional<std::int64_t> limit = std::nullopt;                // for quotas and pools
  std::optional<std::int64_t> current = std::nullopt;              // how much of the limit is in use
  std::optional<std::chrono::seconds> retry_after = std::nullopt;  // of a 429 or 503; empty: a few seconds
};

template <class T>
using Result = boost::system::result<T, Error>;

/// `text` in quotation marks, safe for a detail or a log line: cut after 64 bytes, and every byte that is
/// not printable ASCII becomes '?'.
std::string in_quotes(std::string_view text);

/// Result::value() calls it if nobody checked for an error first: a mistake of ours.
[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location& where);

}  // namespace portway
