// A line of the daemon's log in each of its formats.
#pragma once

#include <chrono>
#include <span>
#include <string>
#include <string_view>

#include "base/log_fields.h"
#include "config/config.h"

namespace portway {

struct LogLine {
  std::chrono::system_clock::time_point time{};
  LogLevel level = LogLevel::kInfo;
  std::string_view text = {};
  std::span<const LogField> fields = {};
};

/// "2026-01-31T12:00:00.000Z info text (request_id=..., actor=...)" and a line feed.
std::string to_text(const LogLine& line);
/// An object with time, level, message and the fields, and a line feed.
std::string to_json(const LogLine& line);
/// An entry for journald's socket: PRIORITY, MESSAGE, and each field as PORTWAY_ and its name
/// (https://systemd.io/JOURNAL_NATIVE_PROTOCOL).
std::string to_journal(const LogLine& line);

}  // namespace portway
