#include "config/config.h"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <climits>
#include <fstream>
#include <system_error>
#include <utility>

#include "config/config_keys.h"

namespace portway {
namespace {

constexpr std::size_t kFileMaxBytes = 1 << 20;

Error invalid_config(std::string detail, std::string_view key = {}) {
  return {ErrorCode::kInvalidConfig, std::move(detail), std::string(key)};
}

// --- Values, from TOML and from text, and as TOML.

std::string_view kind_of(const ConfigValue& value) {
  constexpr auto kKinds = std::to_array<std::string_view>(
      {"an integer", "a string", "a list of strings", "a list of integers", "a boolean"});
  static_assert(kKinds.size() == std::variant_size_v<ConfigValue>);
  return kKinds[value.index()];
}

std::string_view kind_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return node.is_homogeneous(toml::node_type::string)    ? "a list of strings"
             : node.is_homogeneous(toml::node_type::integer) ? "a list of integers"
                                                             : "a list of other things";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a fraction";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date or time";
  }
}

std::string as_toml(const ConfigValue& value) {
  if (const auto* number = std::get_if<std::int64_t>(&value)) return std::to_string(*number);
  if (const auto* text = std::get_if<std::string>(&value)) return '"' + *text + '"';
  if (const auto* yes = std::get_if<bool>(&value)) return *yes ? "true" : "false";
  if (const auto* numbers = std::get_if<std::vector<std::int64_t>>(&value)) {
    return fmt::format("[{}]", fmt::join(*numbers, ", "));
  }
  const auto& texts = std::get<std::vector<std::string>>(value);
  return texts.empty() ? "[]" : fmt::format("[\"{}\"]", fmt::join(texts, "\", \""));
}

/// A paragraph as lines of at most 100 columns.
std::string as_comment(std::string_view paragraph) {
  constexpr std::size_t kColumns = 98;
  std::string lines;
  while (!paragraph.empty()) {
    const bool last = paragraph.size() <= kColumns;
    const std::size_t end = last ? paragraph.size() : paragraph.rfind(' ', kColumns);
    lines += fmt::format("# {}\n", paragraph.substr(0, end));
    paragraph.remove_prefix(last ? end : end + 1);
  }
  return lines;
}

ConfigValue default_of(const ConfigKey& key) {
  Config defaults;
  return key.get({defaults, defaults.profiles["default"]});
}

/// The items of an array that are all of one type; nothing when some are not.
template <class T>
std::optional<ConfigValue> list_from(const toml::node& node) {
  const auto* array = node.as_array();
  if (array == nullptr) return std::nullopt;
  std::vector<T> items;
  for (const toml::node& item : *array) {
    const auto* value = item.as<T>();
    if (value == nullptr) return std::nullopt;
    items.push_back(value->get());
  }
  return items;
}

/// The node as a value of the same kind as `like`; nothing when it is of another.
std::optional<ConfigValue> value_from(const toml::node& node, const ConfigValue& like) {
  if (std::holds_alternative<std::int64_t>(like)) {
    const auto* number = node.as_integer();
    return number != nullptr ? std::optional<ConfigValue>(number->get()) : std::nullopt;
  }
  if (std::holds_alternative<std::string>(like)) {
    const auto* text = node.as_string();
    return text != nullptr ? std::optional<ConfigValue>(text->get()) : std::nullopt;
  }
  if (std::holds_alternative<bool>(like)) {
    const auto* yes = node.as_boolean();
    return yes != nullptr ? std::optional<ConfigValue>(yes->get()) : std::nullopt;
  }
  return std::holds_alternative<std::vector<std::int64_t>>(like) ? list_from<std::int64_t>(node)
                                                                 : list_from<std::string>(node);
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = std::min(text.find_first_not_of(' '), text.size());
  text.remove_prefix(first);
  return text.substr(0, text.find_last_not_of(' ') + 1);
}

std::optional<std::int64_t> number_from(std::string_view text) {
  std::int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  return error == std::errc{} && rest == end ? std::optional(number) : std::nullopt;
}

/// "a, b" is two.
std::vector<std::string> split_list(std::string_view text) {
  std::vector<std::string> texts;
  if (trimmed(text).empty()) return texts;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t comma = std::min(text.find(',', start), text.size());
    texts.emplace_back(trimmed(text.substr(start, comma - start)));
    start = comma + 1;
  }
  return texts;
}

std::optional<ConfigValue> value_from(std::string_view text, const ConfigValue& like) {
  if (std::holds_alternative<std::string>(like)) return std::string(text);
  if (std::holds_alternative<bool>(like)) {
    return text == "true" || text == "false" ? std::optional<ConfigValue>(text == "true") : std::nullopt;
  }
  if (std::holds_alternative<std::int64_t>(like)) {
    const auto number = number_from(text);
    return number ? std::optional<ConfigValue>(*number) : std::nullopt;
  }
  std::vector<std::string> texts = split_list(text);
  if (std::holds_alternative<std::vector<std::string>>(like)) return texts;
  std::vector<std::int64_t> numbers;
  for (const std::string& item : texts) {
    const auto number = number_from(item);
    if (!number) return std::nullopt;
    numbers.push_back(*number);
  }
  return numbers;
}

std::string lowered(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// --- The loader.

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
  static Error unknown(const std::string& place, std::string_view what, std::string_view name);

  template <class Source>
  Result<void> assign(const ConfigKey& key, const std::string& name, const Source& source,
                      std::string_view got, const std::string& place);

  std::string_view source_name_;
  Config config_;
  std::map<std::string, std::string> places_;  // by key: where it was set last
};

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
    if (const ConfigKey* known = bare ? find_config_key(name) : nullptr) {
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

Result<void> Loader::read_override(const Override& over) {
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
  const ConfigTarget target{config_, config_.profiles[profile.empty() ? "default" : std::string(profile)]};
  const ConfigValue example = default_of(key);
  const auto value = value_from(source, example);
  if (!value) {
    return invalid_config(fmt::format("{}: {}: must be {} like {}, not {}", place, name, kind_of(example),
                                      as_toml(example), got),
                          name);
  }
  if (const auto problem = key.set(target, *value)) {
    return invalid_config(fmt::format("{}: {}: {}", place, name, *problem), name);
  }
  places_[name] = place;
  return {};
}

Result<Config> Loader::finish() {
  if (const auto conflict = find_conflict(config_)) {
    return invalid_config(fmt::format("{}: {}: {}", places_[conflict->key], conflict->key, conflict->problem),
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
      // A name that is nearly right goes on as it is: parse_config refuses it.
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
  Config source = wanted;  // the table's fields are not const
  Profile any;
  std::vector<std::string> need_restart;
  for (const ConfigKey& key : config_keys()) {
    if (profile_in(key.name) == "*") continue;  // all profiles, below
    const ConfigValue value = key.get({source, any});
    if (key.get({running, any}) == value) continue;
    if (key.live) {
      (void)key.set({running, any}, value);  // it was good enough for `wanted`
    } else {
      need_restart.emplace_back(key.name);
    }
  }
  running.profiles = wanted.profiles;
  return need_restart;
}

std::vector<std::string> config_warnings(const Config& config) {
  std::vector<std::string> warnings;
  if (config.guests.networks.empty()) {
    warnings.emplace_back(
        "guests.networks is empty: no instance can be registered. List the networks the guests live in.");
  }
  const auto* endpoint = std::get_if<Endpoint>(&config.api.listen);
  if (endpoint != nullptr && !endpoint->address().is_loopback() && config.api.tls_certificate.empty()) {
    warnings.push_back("api.listen " + to_string(config.api.listen) +
                       " is not on loopback: keys cross the network in clear text; set api.tls_certificate.");
  }
  if (endpoint != nullptr && !config.api.admin_uids.empty()) {
    warnings.emplace_back(
        "api.admin_uids has no effect: who is calling is known on a Unix socket only; set api.listen to "
        "unix:/PATH, or leave the list empty.");
  }
  const auto warn_of_port = [&](std::string_view key, const ListenAddress& listen) {
    const auto* tcp = std::get_if<Endpoint>(&listen);
    if (tcp == nullptr || !config.ports.range.contains(tcp->port())) return;
    warnings.push_back(
        fmt::format("{} {} lies in ports.range {}: a forward may have the port when the daemon starts.", key,
                    to_string(listen), to_string(config.ports.range)));
  };
  warn_of_port("api.listen", config.api.listen);
  if (config.metrics.listen) warn_of_port("metrics.listen", *config.metrics.listen);
  return warnings;
}

std::string config_reference() {
  std::string text = as_comment(
      "Portway's configuration. Every key is here with its default: a file needs only those that differ.");
  text += as_comment(
      "A flag --set table.key=value wins over an environment variable PORTWAY_<TABLE>_<KEY>, e.g. "
      "PORTWAY_API_LISTEN, which wins over the file; in both, lists are separated by commas. A key that is "
      "not known stops the daemon.");
  std::string table;
  for (const ConfigKey& key : config_keys()) {
    const std::string name = default_name(key);
    const std::size_t dot = name.rfind('.');
    if (name.substr(0, dot) != table) {
      table = name.substr(0, dot);
      text += "\n[" + table + "]\n";
    }
    text += as_comment(key.help) + name.substr(dot + 1) + " = " + as_toml(default_of(key)) + "\n";
  }
  return text;
}

}  // namespace portway
