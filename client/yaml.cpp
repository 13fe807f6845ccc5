#include "client/yaml.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cctype>
#include <string_view>

namespace portway {
namespace {

namespace json = boost::json;

bool is_letter(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) != 0;
}

/// Words that a reader takes for a boolean or for nothing (YAML 1.1 included).
bool is_reserved(std::string_view text) {
  constexpr auto kWords =
      std::to_array<std::string_view>({"true", "false", "yes", "no", "on", "off", "y", "n", "null"});
  return std::ranges::any_of(kWords, [&](std::string_view word) {
    return std::ranges::equal(text, word, {},
                              [](char c) { return std::tolower(static_cast<unsigned char>(c)); });
  });
}

/// Whether the text needs no quotation marks: a word of letters, digits and a few signs that begins with a
/// letter. A number, a time or an address is quoted.
bool is_plain(std::string_view text) {
  if (text.empty() || !is_letter(text.front()) || is_reserved(text)) return false;
  return std::ranges::all_of(text, [](char c) {
    return is_letter(c) || std::isdigit(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' ||
           c == '.' || c == '/';
  });
}

/// A JSON string is a double-quoted YAML string, but DEL and C1 are not printable there.
std::string quoted_text(std::string_view text) {
  const std::string quoted = json::serialize(json::string(text));
  std::string out;
  for (std::size_t i = 0; i < quoted.size(); ++i) {
    const auto byte = static_cast<unsigned char>(quoted[i]);
    const auto next = static_cast<unsigned char>(i + 1 < quoted.size() ? quoted[i + 1] : '\0');
    if (byte == 0x7F) {
      out += "\\x7f";
    } else if (byte == 0xC2 && next < 0xA0) {
      out += fmt::format("\\x{:02x}", next);
      ++i;
    } else {
      out += quoted[i];
    }
  }
  return out;
}

std::string scalar(const json::value& value) {
  if (const json::string* text = value.if_string())
    return is_plain(*text) ? std::string(*text) : quoted_text(*text);
  if (!value.is_double()) return json::serialize(value);  // an empty list or object too
  std::string number = fmt::format("{}", value.get_double());
  const std::size_t exponent = number.find('e');
  // YAML 1.1 reads a number with an exponent only if it has a point.
  if (exponent != std::string::npos && number.find('.') == std::string::npos) number.insert(exponent, ".0");
  return number;
}

bool is_block(const json::value& value) {
  return (value.is_object() && !value.get_object().empty()) ||
         (value.is_array() && !value.get_array().empty());
}

/// Writes lines that are each indented, but for the first one, which continues the present line.
void write_block(const json::value& value, const std::string& indent, std::string& out) {
  bool first = true;
  const auto begin_line = [&] {
    if (!first) out += indent;
    first = false;
  };
  if (const json::array* list = value.if_array()) {
    for (const json::value& item : *list) {
      begin_line();
      out += "- ";
      if (is_block(item)) {
        write_block(item, indent + "  ", out);
      } else {
        out += scalar(item) + "\n";
      }
    }
    return;
  }
  for (const auto& [key, member] : value.get_object()) {
    begin_line();
    out += (is_plain(key) ? std::string(key) : quoted_text(key)) + ":";
    if (is_block(member)) {
      const std::string deeper = member.is_object() ? indent + "  " : indent;
      out += "\n" + deeper;
      write_block(member, deeper, out);
    } else {
      out += " " + scalar(member) + "\n";
    }
  }
}

}  // namespace

std::string as_yaml(const json::value& value) {
  if (!is_block(value)) return scalar(value) + "\n";
  std::string out;
  write_block(value, "", out);
  return out;
}

}  // namespace portway
