#include "config/profile_fields.h"

#include <string>

#include "config/config_keys.h"

namespace portway {
namespace {

constexpr std::string_view kOfAProfile = "profiles.*.";

}  // namespace

std::vector<std::pair<std::string_view, ConfigValue>> profile_values(const Profile& profile) {
  Config config;
  config.profiles["default"] = profile;
  std::vector<ConfigValue> all = key_values(config);
  std::vector<std::pair<std::string_view, ConfigValue>> values;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string_view name = config_keys()[i].name;
    if (name.starts_with(kOfAProfile))
      values.emplace_back(name.substr(kOfAProfile.size()), std::move(all[i]));
  }
  return values;
}

Problem set_profile_value(Profile& profile, std::string_view name, const ConfigValue& value) {
  Config unused;
  return set_key(unused, profile, *find_config_key("profiles.default." + std::string(name)), value);
}

}  // namespace portway
