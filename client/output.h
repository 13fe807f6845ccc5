// What people see: tables and pretty JSON. What comes from the server is shown without control characters,
// which a terminal would obey.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "client/command.h"

namespace portway {

/// Indented by two spaces, members in their order, with a newline at the end.
std::string pretty_json(const boost::json::value& value);

/// The member as people read it, "a.b" being member b of object a: strings without quotation marks, lists
/// with commas. Empty when it is missing, null or empty.
std::string text_of(const boost::json::object& object, std::string_view member);

/// Columns as wide as they must be; the first row is the titles.
std::string aligned(const std::vector<std::vector<std::string>>& rows);

// How answers are shown (Command::show).

/// The list in the command's columns, bytes scaled and objects as "name=value"; those that are empty in every
/// row are left out.
void show_list(const Command& command, const boost::json::object& answer, Console& console);
/// The same for forwards, with the endpoint: the answer's host name and the host port.
void show_forwards(const Command& command, const boost::json::object& answer, Console& console);
/// A line for each member.
void show_resource(const Command& command, const boost::json::object& answer, Console& console);
/// A line for each step of a check.
void show_check(const Command& command, const boost::json::object& answer, Console& console);
/// "compute-1.example:38492", for $(portway forwards create ...).
void show_endpoint(const Command& command, const boost::json::object& answer, Console& console);
/// The secret alone on standard output, for a redirection into a file; the rest on standard error.
void show_secret(const Command& command, const boost::json::object& answer, Console& console);

}  // namespace portway
