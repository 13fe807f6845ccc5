// Output for people: tables and indented JSON. Control characters in the server's text are replaced, because
// a terminal would execute them.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "client/command.h"

namespace portway {

/// Indented by two spaces, members in their original order, with a trailing newline.
std::string pretty_json(const boost::json::value& value);

/// The member as text: strings without quotation marks, lists with commas. "a.b" is member b of object a.
/// Empty if it is missing, null or empty.
std::string text_of(const boost::json::object& object, std::string_view member);

/// Aligned columns, each as wide as its widest cell; the first row holds the titles.
std::string aligned(const std::vector<std::vector<std::string>>& rows);

// How answers are shown (Command::show).

/// The list in the command's columns, with bytes scaled and objects as "name=value". Columns that are empty
/// in every row are left out.
void show_list(const Command& command, const boost::json::object& answer, Console& console);
/// The same for forwards, with the endpoint: the answer's host name and the host port.
void show_forwards(const Command& command, const boost::json::object& answer, Console& console);
/// One line per member.
void show_resource(const Command& command, const boost::json::object& answer, Console& console);
/// One line per step of a check.
void show_check(const Command& command, const boost::json::object& answer, Console& console);
/// "compute-1.example:38492", for $(portway forwards create ...).
void show_endpoint(const Command& command, const boost::json::object& answer, Console& console);
/// Only the secret on standard output, so that it can be redirected into a file; the rest on standard error.
void show_secret(const Command& command, const boost::json::object& answer, Console& console);

}  // namespace portway
