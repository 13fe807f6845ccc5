// The table of configuration keys: names, meanings, ranges and fields. Used by config.cpp only: the loader,
// the environment's names and the operators' reference are all made from it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/config.h"

namespace portway {

/// What a key can hold, whatever it came from.
using ConfigValue =
    std::variant<std::int64_t, std::string, std::vector<std::string>, std::vector<std::int64_t>, bool>;

/// Where a key writes to. The profile matters to profiles.*.* only.
struct ConfigTarget {
  Config& config;
  Profile& profile;
};

struct ConfigKey {
  std::string_view name;  // dotted; '*' stands for a profile's name
  std::string help;       // for operators, a paragraph
  std::function<ConfigValue(ConfigTarget)> get;
  /// `value` has the alternative that get() returns. Returns what is wrong with it, or nothing and has set
  /// the field.
  std::function<std::optional<std::string>(ConfigTarget, const ConfigValue& value)> set;
  bool live = false;  // can change while the daemon runs
};

/// In the order of the reference.
const std::vector<ConfigKey>& config_keys();

/// The key with this dotted name, a profile's by any name ("profiles.small.max_forwarded_ports"); nullptr
/// when unknown.
const ConfigKey* find_config_key(std::string_view name);

/// The profile's name in "profiles.NAME" or "profiles.NAME.key"; empty when `name` is not of that kind.
std::string_view profile_in(std::string_view name);

/// 1-64 of [A-Za-z0-9_-].
bool is_profile_name(std::string_view name);

/// True for "api" and the like, "profiles" and "profiles.NAME".
bool is_config_table(std::string_view name);

/// For an unknown key or table: "did you mean api.listen?", or what there is to choose from.
std::string config_key_remedy(std::string_view name);

/// The dotted name with "default" for the '*'.
std::string default_name(const ConfigKey& key);

/// "PORTWAY_API_LISTEN".
std::string environment_name(const ConfigKey& key);

/// The least number of characters to insert, delete or replace (Levenshtein).
std::size_t edit_distance(std::string_view a, std::string_view b);

/// Checks that concern several keys: what is wrong and the key to blame.
struct ConfigConflict {
  std::string key;
  std::string problem;
};
std::optional<ConfigConflict> find_conflict(const Config& config);

}  // namespace portway
