// The configuration keys by name, and access to their members: what the loader, the environment's names and
// the operators' reference are made from. For config/, and for whoever reads a profile
// (config/profile_fields.h). The keys themselves are in
// config/visit_keys.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "config/key_rules.h"

namespace portway {

struct ConfigKey {
  // Dotted; '*' stands for a profile's name.
  std::string_view name;
  // For operators, a paragraph.
  std::string help;
  ConfigValue default_value;
  // Can change while the daemon runs.
  bool live = false;
};

/// In the order of the reference.
const std::vector<ConfigKey>& config_keys();

/// The values of all keys, in the order of config_keys(); of the default profile for those of a profile.
std::vector<ConfigValue> key_values(const Config& config);

/// Sets the key's member in `config`, or in `profile` if it is a profile's. `value` has the alternative of
/// default_value. Returns what is wrong with it; then nothing is set.
Problem set_key(Config& config, Profile& profile, const ConfigKey& key, const ConfigValue& value);

/// The key with this dotted name, a profile's by any name ("profiles.small.max_forwarded_ports"); nullptr
/// when unknown.
const ConfigKey* find_config_key(std::string_view name);

/// The profile's name in "profiles.NAME" or "profiles.NAME.key"; empty when `name` is not of that kind.
std::string_view profile_in(std::string_view name);

/// 1-64 of [A-Za-z0-9_-].
bool is_profile_name(std::string_view name);

/// True for "api" and the like, "profiles" and "profiles.NAME".
bool is_config_table(std::string_view name);

/// For an unknown key or table: "did you mean api.listen?", or the choices.
std::string config_key_remedy(std::string_view name);

/// The dotted name with "default" for the '*'.
std::string default_name(const ConfigKey& key);

/// "PORTWAY_API_LISTEN".
std::string environment_name(const ConfigKey& key);

/// The least number of characters to insert, delete or replace (Levenshtein).
std::size_t edit_distance(std::string_view a, std::string_view b);

/// What is wrong with several keys together, and the key to blame.
struct ConfigConflict {
  std::string key;
  std::string problem;
};
std::optional<ConfigConflict> find_conflict(const Config& config);

}  // namespace portway
