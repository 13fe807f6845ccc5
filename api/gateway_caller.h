// Who is calling, if a gateway says so. A gateway is whoever has shown a verified certificate with one of the
// names in fleet.gateways.
//
// Belongs to the control thread.
#pragma once

#include <optional>

#include "api/http/message.h"
#include "base/error.h"
#include "control/auth.h"

namespace portway {

/// The caller that the request's Portway-Caller names, with the gateway's name in `via`. kForbidden if the
/// request is not a gateway's, kMalformedRequest if the header is not what api/caller_header.h writes.
/// Nothing if there is no such header: then it is a request like any other.
std::optional<Result<Principal>> caller_by_gateway(const Request& request, const KeyRing& keys);

}  // namespace portway
