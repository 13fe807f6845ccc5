// JSON's objects may name a member twice, and readers differ in which one counts (RFC 8259, section 4): what
// one checks another would not use.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace portway {

/// The first name that an object in `json`, at any depth, gives twice; nothing when none does or where `json`
/// is not JSON.
std::optional<std::string> duplicate_key(std::string_view json);

}  // namespace portway
