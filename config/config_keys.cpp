#include "config/config_keys.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <utility>

#include "config/visit_keys.h"

namespace portway {
namespace {

constexpr std::size_t kProfileNameMaxBytes = 64;

/// "api" of "api.listen", "profiles.default" of "profiles.default.max_forwarded_ports".
std::string_view table_of(std::string_view name) {
  return name.substr(0, std::min(name.rfind('.'), name.size()));
}

std::string_view last_part(std::string_view name) {
  return name.substr(name.rfind('.') + 1);
}

/// The key's name with a certain profile for the '*'.
std::string name_for(const ConfigKey& key, std::string_view profile) {
  std::string name(key.name);
  if (const std::size_t star = name.find('*'); star != std::string::npos) name.replace(star, 1, profile);
  return name;
}

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = [] {
    std::vector<ConfigKey> all;
    const Config defaults;
    const Profile profile;
    visit_keys(defaults, profile, [&](const KeyText& key, const auto& member, const auto& rule) {
      const char* reload = key.live ? " Reloaded on SIGHUP." : "";
      all.push_back({key.name, std::string(key.help) + rule.note() + reload, rule.get(member), key.live});
    });
    return all;
  }();
  return keys;
}

std::vector<ConfigValue> key_values(const Config& config) {
  std::vector<ConfigValue> values;
  visit_keys(
      config, config.profiles.at("default"),
      [&](const KeyText&, const auto& member, const auto& rule) { values.push_back(rule.get(member)); });
  return values;
}

Problem set_key(Config& config, Profile& profile, const ConfigKey& key, const ConfigValue& value) {
  Problem problem;
  visit_keys(config, profile, [&](const KeyText& each, auto& member, const auto& rule) {
    if (each.name == key.name) problem = rule.set(member, value);
  });
  return problem;
}

const ConfigKey* find_config_key(std::string_view name) {
  const std::string_view profile = profile_in(name);
  for (const ConfigKey& key : config_keys()) {
    if (key.name == name || (!profile.empty() && name_for(key, profile) == name)) return &key;
  }
  return nullptr;
}

std::string_view profile_in(std::string_view name) {
  constexpr std::string_view kPrefix = "profiles.";
  if (!name.starts_with(kPrefix)) return {};
  name.remove_prefix(kPrefix.size());
  return name.substr(0, name.find('.'));
}

bool is_profile_name(std::string_view name) {
  return !name.empty() && name.size() <= kProfileNameMaxBytes &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; });
}

bool is_config_table(std::string_view name) {
  if (name == "profiles" || (table_of(name) == "profiles" && !profile_in(name).empty())) return true;
  return std::any_of(config_keys().begin(), config_keys().end(),
                     [&](const ConfigKey& key) { return table_of(key.name) == name; });
}

std::string config_key_remedy(std::string_view name) {
  const std::string_view profile = is_profile_name(profile_in(name)) ? profile_in(name) : "default";
  std::set<std::string> names;  // of keys and of tables
  std::set<std::string> siblings;
  std::string namesake;  // of another table
  for (const ConfigKey& key : config_keys()) {
    const std::string known = name_for(key, profile);
    names.insert(known);
    names.emplace(table_of(known));
    if (table_of(known) == table_of(name)) siblings.emplace(last_part(known));
    if (last_part(known) == last_part(name)) namesake = known;
  }
  const auto closest = std::min_element(names.begin(), names.end(), [&](const auto& a, const auto& b) {
    return edit_distance(a, name) < edit_distance(b, name);
  });
  if (edit_distance(*closest, name) <= 1 + name.size() / 5) return "did you mean " + *closest + "?";
  if (!namesake.empty()) return "did you mean " + namesake + "?";
  if (!siblings.empty())
    return fmt::format("the keys of [{}] are {}", table_of(name), fmt::join(siblings, ", "));
  std::erase_if(names, [](const std::string& known) { return !is_config_table(known); });
  return fmt::format("the tables are {}", fmt::join(names, ", "));
}

std::string default_name(const ConfigKey& key) {
  return name_for(key, "default");
}

std::string environment_name(const ConfigKey& key) {
  std::string name = "PORTWAY_" + default_name(key);
  for (char& c : name) c = c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  constexpr std::size_t kLongest = 128;  // longer than any key, so a longer name is near none
  if (a.size() > kLongest || b.size() > kLongest) return std::max(a.size(), b.size());
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = std::exchange(row[j + 1], std::min({replaced, row[j] + 1, row[j + 1] + 1}));
    }
  }
  return row[b.size()];
}

}  // namespace portway
