#include "process/log_line.h"

#include <fmt/format.h>

#include <array>
#include <boost/json.hpp>
#include <cctype>
#include <cstdint>

#include "base/forward.h"

namespace portway {
namespace {

std::string time_of(const LogLine& line) {
  return to_rfc3339(std::chrono::time_point_cast<Timestamp::duration>(line.time));
}

/// Of syslog(3).
int priority_of(LogLevel level) {
  constexpr std::array kPriorities = {7, 6, 4, 3};
  return kPriorities[static_cast<std::size_t>(level)];
}

/// A value with a line feed is preceded by its size, in 64 bits, little endian.
void add_journal_field(std::string& entry, std::string_view name, std::string_view value) {
  entry += name;
  if (value.find('\n') == std::string_view::npos) {
    entry += '=';
  } else {
    entry += '\n';
    for (int bit = 0; bit < 64; bit += 8)
      entry += static_cast<char>(std::uint64_t{value.size()} >> bit & 0xff);
  }
  entry += value;
  entry += '\n';
}

}  // namespace

std::string to_text(const LogLine& line) {
  std::string text = fmt::format("{} {} {}", time_of(line), to_string(line.level), line.text);
  std::string_view before = " (";
  for (const auto& [name, value] : line.fields) {
    if (value.empty()) continue;
    text += fmt::format("{}{}={}", before, name, value);
    before = ", ";
  }
  text += before == ", " ? ")\n" : "\n";
  return text;
}

std::string to_json(const LogLine& line) {
  boost::json::object json{{"time", time_of(line)}, {"level", to_string(line.level)}, {"message", line.text}};
  for (const auto& [name, value] : line.fields) {
    if (!value.empty()) json[name] = value;
  }
  return boost::json::serialize(json) + '\n';
}

std::string to_journal(const LogLine& line) {
  std::string entry = fmt::format("SYSLOG_IDENTIFIER=portwayd\nPRIORITY={}\n", priority_of(line.level));
  add_journal_field(entry, "MESSAGE", line.text);
  for (const auto& [name, value] : line.fields) {
    if (value.empty()) continue;
    std::string upper = "PORTWAY_";
    for (const char c : name) upper += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    add_journal_field(entry, upper, value);
  }
  return entry;
}

}  // namespace portway
