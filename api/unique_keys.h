// A JSON object may name a member twice, and parsers differ in which one counts (RFC 8259, section 4): one
// program would check a value that another does not use.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace portway {

/// The first name that an object in `json`, at any depth, has twice; nothing if there is none or if `json` is
/// not JSON.
std::optional<std::string> duplicate_key(std::string_view json);

}  // namespace portway
