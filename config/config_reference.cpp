#include <fmt/core.h>

#include "config/config_keys.h"
#include "config/config_value.h"

namespace portway {
namespace {

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

}  // namespace

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
    text += as_comment(key.help) + name.substr(dot + 1) + " = " + as_toml(key.default_value) + "\n";
  }
  return text;
}

}  // namespace portway
