// Values of keys: read from TOML and from text, and written as TOML. Used by config/ only.
#pragma once

#include <toml++/toml.h>

#include <optional>
#include <string>
#include <string_view>

#include "config/key_rules.h"

namespace portway {

/// "an integer", "a list of strings".
std::string_view kind_of(const ConfigValue& value);
std::string_view kind_of(const toml::node& node);

std::string as_toml(const ConfigValue& value);

/// The node, or the text of an override, as a value of the same kind as `like`; none if it is of another.
std::optional<ConfigValue> value_from(const toml::node& node, const ConfigValue& like);
std::optional<ConfigValue> value_from(std::string_view text, const ConfigValue& like);

}  // namespace portway
