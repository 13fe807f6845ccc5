// The members of a profile by the names that they have in the configuration and in the API, with the ranges
// of the configuration. A profile's name is one for which is_profile_name() (config/config_keys.h) is true.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "config/config_keys.h"
#include "config/key_rules.h"

namespace portway {

/// In the order of the reference.
std::vector<std::pair<std::string_view, ConfigValue>> profile_values(const Profile& profile);

/// `value` has the alternative of profile_values(). What is wrong with it; then nothing is set. There must be
/// such a member.
Problem set_profile_value(Profile& profile, std::string_view name, const ConfigValue& value);

}  // namespace portway
