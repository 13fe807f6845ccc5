// For whom a gateway calls a node: the header Portway-Caller, in which the gateway names the caller whose key
// it has checked.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "control/auth.h"

namespace portway {

/// As Request::headers has it.
inline constexpr std::string_view kCallerHeader = "portway-caller";
/// Of its value; no caller's is longer.
inline constexpr std::size_t kCallerHeaderMax = 1024;

/// One line of ASCII, a JSON object: role, owner and scope; instance_id and key_id if the caller has them.
/// The owner has check_owner()'s shape. What else a Principal has is not in it.
std::string caller_header(const Principal& caller);

/// Of exactly what caller_header() writes: there is one spelling of a caller. Nothing if it is anything else,
/// or if a key could not be so (check_key_reach()); who has no key is an admin of full scope.
std::optional<Principal> parse_caller_header(std::string_view value);

}  // namespace portway
