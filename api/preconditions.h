// What a caller requires of a resource before it changes it, so that a delayed or repeated request does not
// hit something newer: `If-Match` with the entity tag that the caller has seen (RFC 9110, 13.1.1),
// `If-None-Match: *` to create only (13.1.2), and `?session_id=`.
//
// An entity tag stands for what a request can set, and for the session. What only the node changes, such as
// counters, does not change it.
#pragma once

#include <optional>
#include <string>

#include "api/router.h"
#include "base/error.h"
#include "base/forward.h"
#include "control/change.h"

namespace portway {

/// With their quotes, as in ETag.
std::string etag_of(const Instance& instance);
std::string etag_of(const Forward& forward);

/// kInvalidRequest if a header is not well-formed. The precondition fails with kSessionMismatch if the
/// instance has another session, or none, and with kPreconditionFailed if its tag, or its session's id in
/// quotes, is not in If-Match.
Result<Precondition<Instance>> instance_precondition(const Call& call, const std::optional<Uuid>& session);
/// kPreconditionFailed, likewise.
Result<Precondition<Forward>> forward_precondition(const Call& call);

}  // namespace portway
