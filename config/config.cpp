#include "config/config.h"

#include <fmt/core.h>
#include <toml++/toml.h>
#include <unistd.h>
#include <algorithm>

#include <array>
#include <cctype>
#include <cerrno>
#include <climits>
#include <fstream>
#include <system_error>
#include <utility>

#include "config/config_keys.h"
#include "config/config_value.h"
#include "config/listener_keys.h"

namespace portway {
namespace {

constexpr std::size_t kFileMaxBytes = 1 << 20;

Error invalid_config(std::string detail, std::string_view key = {}) {
  return {ErrorCode::kInvalidConfig, std::move(detail), std::string(key)};
}

std::string lowered(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

class Loader {
 public:
  explicit Loader(std::string_view source_name) : source_name_(source_name) {}

  Result<void> read_table(const toml::table& table, const std::string& prefix);
  Result<void> read_override(const Override& over);
  Result<Config> finish();

 private:
  std::string place_of(const toml::source_region& source) const {
    return fmt::format("{}:{}", source_name_, source.begin.line);
  }
  std::string place_of_key(const std::string& key) const;
  static Error unknown(const std::string& place, std::string_view what, std::string_view name);

  Result<void> read_listener_list(const toml::array& entries);
  template <class Source>
  Result<void> assign(const ConfigKey& key, const std::string& name, const Source& source,
                      std::string_view got, const std::string& place);

  std::string_view source_name_;
  Config config_;
  std::map<std::string, std::string> places_;  // by key: where it was set last
};

/// Where it, or the entry that it belongs to, was set last.
std::string Loader::place_of_key(const std::string& key) const {
  for (std::string name = key;;) {
    if (const auto found = places_.find(name); found != places_.end()) return found->second;
    const std::size_t end = name.find_last_of(".[");
    if (end == std::string::npos) return std::string(source_name_);
    name.resize(end);
  }
}

Error Loader::unknown(const std::string& place, std::string_view what, std::string_view name) {
  return invalid_config(
      fmt::format("{}: unknown {} {}; {}", place, what, in_quotes(name), config_key_remedy(name)), name);
}

Result<void> Loader::read_table(const toml::table& table, const std::string& prefix) {
  for (const auto& [key, node] : table) {
    const std::string name = prefix + std::string(key.str());
    const std::string place = place_of(key.source());
    // A quoted key may hold dots, and would look like a path.
    const bool bare = is_profile_name(key.str());
    if (name == kListenKey && bare && node.is_array()) {
      if (auto done = read_listener_list(*node.as_array()); !done) return done;
      places_[name] = place;
    } else if (const ConfigKey* known = bare ? find_config_key(name) : nullptr) {
      if (auto done = assign(*known, name, node, kind_of(node), place); !done) return done;
    } else if (!bare || !is_config_table(name)) {
      return unknown(place, node.is_table() ? "table" : "key", name);
    } else if (const toml::table* inner = node.as_table()) {
      if (const std::string_view profile = profile_in(name); !profile.empty()) {
        config_.profiles.try_emplace(std::string(profile));
      }
      if (auto done = read_table(*inner, name + "."); !done) return done;
    } else {
      return invalid_config(
          fmt::format("{}: {}: is a table; write [{}] and its keys below", place, name, name), name);
    }
  }
  return {};
}

Result<void> Loader::read_listener_list(const toml::array& entries) {
  const auto note_place = [this](const std::string& key, const toml::source_region& source) {
    places_[key] = place_of(source);
  };
  const auto wrong = read_listeners(entries, config_.api.listen, note_place);
  if (!wrong) return {};
  return invalid_config(fmt::format("{}: {}: {}", place_of(wrong->source), wrong->key, wrong->problem),
                        wrong->key);
}

Result<void> Loader::read_override(const Override& over) {
  if (over.key == kListenKey) {
    if (const auto wrong = read_listeners(over.value, config_.api.listen)) {
      return invalid_config(fmt::format("{}: {}: {}", over.origin, wrong->key, wrong->problem), wrong->key);
    }
    std::erase_if(places_, [](const auto& known) { return known.first.starts_with(kListenKey); });
    places_[over.key] = over.origin;
    return {};
  }
  const ConfigKey* key = find_config_key(over.key);
  const std::string_view profile = profile_in(over.key);
  if (key == nullptr || (!profile.empty() && !is_profile_name(profile))) {
    return unknown(over.origin, "key", over.key);
  }
  return assign(*key, over.key, std::string_view(over.value), in_quotes(over.value), over.origin);
}

template <class Source>
Result<void> Loader::assign(const ConfigKey& key, const std::string& name, const Source& source,
                            std::string_view got, const std::string& place) {
  const std::string_view profile = profile_in(name);
  const auto value = value_from(source, key.default_value);
  if (!value) {
    return invalid_config(fmt::format("{}: {}: must be {} like {}, not {}", place, name,
                                      kind_of(key.default_value), as_toml(key.default_value), got),
                          name);
  }
  Profile& target = config_.profiles[profile.empty() ? "default" : std::string(profile)];
  if (const auto problem = set_key(config_, target, key, *value)) {
    return invalid_config(fmt::format("{}: {}: {}", place, name, *problem), name);
  }
  places_[name] = place;
  return {};
}

Result<Config> Loader::finish() {
  if (const auto conflict = find_conflict(config_)) {
    return invalid_config(
        fmt::format("{}: {}: {}", place_of_key(conflict->key), conflict->key, conflict->problem),
        conflict->key);
  }
  if (config_.node.public_hostname.empty()) {
    std::array<char, HOST_NAME_MAX + 1> name{};
    if (gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') {
      return invalid_config("This machine has no name; set node.public_hostname.", "node.public_hostname");
    }
    config_.node.public_hostname = name.data();
  }
  return std::move(config_);
}

Result<toml::table> parse_toml(std::string_view text, std::string_view source_name) {
  try {
    return toml::parse(text, source_name);
  } catch (const toml::parse_error& error) {
    return invalid_config(fmt::format("{}:{}: not TOML: {} (column {})", source_name,
                                      error.source().begin.line, error.description(),
                                      error.source().begin.column));
  }
}

}  // namespace

std::vector<Override> environment_overrides(const char* const* environment) {
  constexpr std::string_view kPrefix = "PORTWAY_";
  constexpr std::size_t kTypingErrors = 2;
  std::vector<Override> overrides;
  for (; *environment != nullptr; ++environment) {
    const std::string_view entry = *environment;
    const std::size_t equals = entry.find('=');
    if (!entry.starts_with(kPrefix) || equals == std::string_view::npos) continue;
    const std::string_view name = entry.substr(0, equals);
    for (const ConfigKey& key : config_keys()) {
      const std::size_t distance = edit_distance(environment_name(key), name);
      if (distance > kTypingErrors) continue;
      // A name that is nearly right is kept as it is: parse_config refuses it.
      std::string dotted = distance == 0 ? default_name(key) : lowered(name.substr(kPrefix.size()));
      overrides.push_back({std::move(dotted), std::string(entry.substr(equals + 1)),
                           "environment variable " + std::string(name)});
      break;
    }
  }
  return overrides;
}

Result<Override> parse_override(std::string_view assignment) {
  const std::size_t equals = assignment.find('=');
  if (equals == 0 || equals == std::string_view::npos) {
    return invalid_config("--set " + in_quotes(assignment) +
                          ": write it as table.key=value, e.g. api.listen=127.0.0.1:8080");
  }
  return Override{std::string(assignment.substr(0, equals)), std::string(assignment.substr(equals + 1)),
                  "--set"};
}

Result<Config> parse_config(std::string_view text, std::string_view source_name,
                            std::span<const Override> overrides) {
  const auto table = parse_toml(text, source_name);
  if (!table) return table.error();
  Loader loader(source_name);
  if (const auto done = loader.read_table(*table, ""); !done) return done.error();
  for (const Override& over : overrides) {
    if (const auto done = loader.read_override(over); !done) return done.error();
  }
  return loader.finish();
}

Result<Config> load_config(const std::string& path, std::span<const Override> overrides) {
  std::string text(kFileMaxBytes + 1, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    return invalid_config(path + ": cannot be read: " + std::system_category().message(errno) +
                          "; name a readable file with --config");
  }
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.size() > kFileMaxBytes) {
    return invalid_config(path + ": is larger than 1 MiB; is it the right file?");
  }
  return parse_config(text, path, overrides);
}

std::vector<std::string> take_live_keys(Config& running, const Config& wanted) {
  const std::vector<ConfigValue> before = key_values(running);
  const std::vector<ConfigValue> after = key_values(wanted);
  Profile unused;
  std::vector<std::string> need_restart;
  for (std::size_t i = 0; i < after.size(); ++i) {
    const ConfigKey& key = config_keys()[i];
    if (profile_in(key.name) == "*") continue;  // all profiles, below
    if (before[i] == after[i]) continue;
    if (key.live) {
      (void)set_key(running, unused, key, after[i]);  // it was good enough for `wanted`
    } else {
      need_restart.emplace_back(key.name);
    }
  }
  running.profiles = wanted.profiles;
  return need_restart;
}

std::string key_beside(const Config& config, std::span<const std::string_view> tables) {
  const Config defaults;
  const std::vector<ConfigValue> before = key_values(defaults);
  const std::vector<ConfigValue> after = key_values(config);
  for (std::size_t i = 0; i < after.size(); ++i) {
    const std::string_view name = config_keys()[i].name;
    const bool is_inside = std::ranges::find(tables, name.substr(0, name.find('.'))) != tables.end();
    if (!is_inside && before[i] != after[i]) return default_name(config_keys()[i]);
  }
  return config.profiles == defaults.profiles ? "" : "profiles";
}

}  // namespace portway
