#include "client/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <cctype>
#include <ostream>
#include <utility>

#include "client/yaml.h"

namespace portway {
namespace {

namespace json = boost::json;

constexpr std::size_t kGap = 2;

void write_pretty(const json::value& value, const std::string& indent, std::string& out) {
  const std::string deeper = indent + "  ";
  const char* separator = "";
  if (const json::object* object = value.if_object(); object != nullptr && !object->empty()) {
    out += "{";
    for (const auto& [key, member] : *object) {
      out += std::exchange(separator, ",");
      out += "\n" + deeper + json::serialize(json::string(key)) + ": ";
      write_pretty(member, deeper, out);
    }
    out += "\n" + indent + "}";
  } else if (const json::array* array = value.if_array(); array != nullptr && !array->empty()) {
    out += "[";
    for (const json::value& item : *array) {
      out += std::exchange(separator, ",");
      out += "\n" + deeper;
      write_pretty(item, deeper, out);
    }
    out += "\n" + indent + "]";
  } else {
    out += json::serialize(value);
  }
}

bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U;
}

/// Control characters, C1 included (U+0080-U+009F: C2 80 - C2 9F), become '?'.
std::string printable(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool c1 = byte == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c1) ++i;
    out += c1 || byte < 0x20 || byte == 0x7F ? '?' : text[i];
  }
  return out;
}

std::string as_text(const json::value& value) {
  if (value.is_null()) return {};
  if (value.is_string()) return printable(value.get_string());
  if (value.is_double()) return fmt::format("{:.3f}", value.get_double());
  if (!value.is_array()) return printable(json::serialize(value));
  std::string list;
  for (const json::value& item : value.get_array()) list += (list.empty() ? "" : ",") + as_text(item);
  return list;
}

/// "512 B", "1.5 MiB".
std::string scaled_bytes(double bytes) {
  constexpr auto kUnits = std::to_array<std::string_view>({"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"});
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  std::size_t unit = 0;
  // A value that would round up to 1024 takes the next unit.
  for (bytes /= 1024; bytes >= 1023.95 && unit + 1 < kUnits.size(); ++unit) bytes /= 1024;
  return fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

/// The text of a table cell: bytes scaled (recognized by the member's name), objects as "name=value, ...".
std::string cell_of(std::string_view name, const json::value& value) {
  const bool rate = name.ends_with("bytes_per_second");
  if ((rate || name.ends_with("_bytes")) && value.is_number()) {
    return scaled_bytes(value.to_number<double>()) + (rate ? "/s" : "");
  }
  std::string cell;
  if (const json::object* object = value.if_object()) {
    for (const auto& [key, member] : *object) {
      const std::string text = cell_of(key, member);
      if (!text.empty()) cell += (cell.empty() ? "" : ", ") + printable(key) + "=" + text;
    }
    return cell;
  }
  const json::array* array = value.if_array();
  if (array == nullptr || array->empty() || !array->front().is_object()) return as_text(value);
  for (const json::value& item : *array) cell += (cell.empty() ? "" : "; ") + cell_of(name, item);
  return cell;
}

std::string cell_in(const json::object& object, std::string_view member) {
  const std::size_t dot = std::min(member.find('.'), member.size());
  const json::value* value = object.if_contains(member.substr(0, dot));
  if (value == nullptr) return {};
  if (dot == member.size()) return cell_of(member, *value);
  return value->is_object() ? cell_in(value->get_object(), member.substr(dot + 1)) : std::string();
}

/// Columns on a terminal, approximated by the number of code points.
std::size_t width_of(std::string_view text) {
  return text.size() - static_cast<std::size_t>(std::ranges::count_if(text, is_continuation));
}

std::string title_of(std::string_view member) {
  std::string title;
  for (const char c : member) {
    title += c == '_' || c == '.' ? ' ' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return title;
}

struct OwnedColumn {
  std::string title;
  std::string member;
};

std::vector<OwnedColumn> columns_of(const Command& command, const json::array& list, Format format) {
  std::vector<OwnedColumn> columns;
  for (const Column& column : command.columns) {
    if (column.wide && format != Format::kWide) continue;
    columns.push_back({std::string(column.title), std::string(column.member)});
  }
  if (!columns.empty() || list.empty() || !list.front().is_object()) return columns;
  for (const auto& [key, member] : list.front().get_object()) columns.push_back({title_of(key), key});
  return columns;
}

json::array list_in(const json::object& answer, std::string_view envelope) {
  const json::value* list = answer.if_contains(envelope);
  return list != nullptr && list->is_array() ? list->get_array() : json::array();
}

json::object object_in(const json::object& answer, std::string_view envelope) {
  const json::value* object = answer.if_contains(envelope);
  return object != nullptr && object->is_object() ? object->get_object() : json::object();
}

std::string endpoint_of(const json::object& answer, const json::object& forward) {
  const std::string own = text_of(forward, "hostname");  // in a gateway's list
  return (own.empty() ? text_of(answer, "hostname") : own) + ":" + text_of(forward, "host_port");
}

void print_table(const std::vector<OwnedColumn>& columns, const json::array& list, Console& console) {
  std::vector<std::vector<std::string>> rows(list.size() + 1);
  for (const OwnedColumn& column : columns) {
    std::vector<std::string> cells;
    for (const json::value& item : list) {
      cells.push_back(item.is_object() ? cell_in(item.get_object(), column.member) : "");
    }
    const bool empty = std::ranges::all_of(cells, [](const std::string& cell) { return cell.empty(); });
    if (empty && !list.empty()) continue;
    rows[0].push_back(column.title);
    for (std::size_t i = 0; i < cells.size(); ++i) rows[i + 1].push_back(cells[i].empty() ? "-" : cells[i]);
  }
  console.out << aligned(rows);
}

}  // namespace

std::string as_data(Format format, const json::value& value) {
  if (format == Format::kYaml) return as_yaml(value);
  std::string out;
  write_pretty(value, "", out);
  return out + "\n";
}

std::string as_data_item(Format format, const json::value& value) {
  return format == Format::kYaml ? "---\n" + as_yaml(value) : json::serialize(value) + "\n";
}

std::string text_of(const json::object& object, std::string_view member) {
  const std::size_t dot = std::min(member.find('.'), member.size());
  const json::value* value = object.if_contains(member.substr(0, dot));
  if (value == nullptr) return {};
  if (dot == member.size()) return as_text(*value);
  return value->is_object() ? text_of(value->get_object(), member.substr(dot + 1)) : std::string();
}

std::string aligned(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::string out;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      out += row[i];
      if (i + 1 < row.size()) out += std::string(widths[i] - width_of(row[i]) + kGap, ' ');
    }
    out += "\n";
  }
  return out;
}

void show_list(const Command& command, const json::object& answer, Format format, Console& console) {
  const json::array list = list_in(answer, command.envelope);
  print_table(columns_of(command, list, format), list, console);
}

void show_forwards(const Command& command, const json::object& answer, Format format, Console& console) {
  json::array list = list_in(answer, command.envelope);
  for (json::value& item : list) {
    if (item.is_object()) item.get_object()["endpoint"] = endpoint_of(answer, item.get_object());
  }
  print_table(columns_of(command, list, format), list, console);
}

void show_resource(const Command& command, const json::object& answer, Format format, Console& console) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& [key, value] : object_in(answer, command.envelope)) {
    rows.push_back({std::string(key) + ":", cell_of(key, value)});
  }
  if (answer.contains("hostname")) rows.push_back({"hostname:", text_of(answer, "hostname")});
  if (format == Format::kWide && answer.contains("etag")) rows.push_back({"etag:", text_of(answer, "etag")});
  console.out << aligned(rows);
}

void show_node(const Command& command, const json::object& answer, Format format, Console& console) {
  json::object both = object_in(answer, command.envelope);
  for (const auto& [key, value] : object_in(answer, "node")) both[key] = value;
  show_resource(command, {{command.envelope, std::move(both)}}, format, console);
}

void show_check(const Command& command, const json::object& answer, Format /*format*/, Console& console) {
  std::vector<std::vector<std::string>> rows;
  for (const json::value& step : list_in(object_in(answer, command.envelope), "steps")) {
    if (!step.is_object()) continue;
    const bool ok = text_of(step.get_object(), "ok") == "true";
    rows.push_back(
        {ok ? "ok" : "NOT OK", text_of(step.get_object(), "step"), text_of(step.get_object(), "detail")});
  }
  console.out << aligned(rows);
}

void show_ids(const Command& command, const json::object& answer, Format /*format*/, Console& console) {
  for (const json::value& id : list_in(answer, command.envelope)) {
    if (id.is_string()) console.out << std::string_view(id.get_string()) << "\n";
  }
}

void show_endpoint(const Command& command, const json::object& answer, Format /*format*/, Console& console) {
  console.out << endpoint_of(answer, object_in(answer, command.envelope)) << "\n";
}

void show_secret(const Command& command, const json::object& answer, Format /*format*/, Console& console) {
  const json::object key = object_in(answer, command.envelope);
  console.err << "portway: key " << text_of(key, "id") << " (" << text_of(key, "role") << ", "
              << text_of(key, "owner") << "); its secret is not shown again\n";
  console.out << text_of(answer, "secret") << "\n";
}

}  // namespace portway
