#include "config/config_value.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>
#include <vector>

namespace portway {
namespace {

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

}  // namespace

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

}  // namespace portway
