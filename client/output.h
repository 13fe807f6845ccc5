// Output for people, tables, and for programs: JSON and YAML. Control characters in the server's text are
// replaced, because a terminal would execute them.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "client/command.h"

namespace portway {

/// As JSON that is indented by two spaces, or as YAML (client/yaml.h); members in their original order, with
/// a trailing newline.
std::string as_data(Format format, const boost::json::value& value);
/// One of a sequence of values, such as events: a line of JSON (for jq), or a YAML document that begins with
/// "---".
std::string as_data_item(Format format, const boost::json::value& value);

/// The member as text: strings without quotation marks, lists with commas. "a.b" is member b of object a.
/// Empty if it is missing, null or empty.
std::string text_of(const boost::json::object& object, std::string_view member);

/// Cursor home, then erase to the end of the screen (ECMA-48): redraws without flicker.
inline constexpr const char* kRedraw = "\x1b[H\x1b[J";

/// Aligned columns, each as wide as its widest cell; the first row holds the titles.
std::string aligned(const std::vector<std::vector<std::string>>& rows);

// How answers are shown (Command::show).

/// The list in the command's columns, with bytes scaled and objects as "name=value". Columns that are empty
/// in every row are left out.
void show_list(const Command& command, const boost::json::object& answer, Format format, Console& console);
/// The same for forwards, with the endpoint: the host name of the forward or else of the
/// answer, and the host port.
void show_forwards(const Command& command, const boost::json::object& answer, Format format,
                   Console& console);
/// One line per member, and in wide format the ETag.
void show_resource(const Command& command, const boost::json::object& answer, Format format,
                   Console& console);
/// The same for the daemon's process, with what the answer says of the node.
void show_node(const Command& command, const boost::json::object& answer, Format format, Console& console);
/// One line per step of a check.
void show_check(const Command& command, const boost::json::object& answer, Format format, Console& console);
/// The strings of the list, one in each line.
void show_ids(const Command& command, const boost::json::object& answer, Format format, Console& console);
/// "compute-1.example:38492", for $(portway forwards create ...).
void show_endpoint(const Command& command, const boost::json::object& answer, Format format,
                   Console& console);
/// Only the secret on standard output, so that it can be redirected into a file; the rest on standard error.
void show_secret(const Command& command, const boost::json::object& answer, Format format, Console& console);

}  // namespace portway
