// JSON values as YAML 1.2, for people who read it and tools that take it, with the types kept: what YAML 1.1
// would read as something else than a string is quoted, too.
#pragma once

#include <boost/json/value.hpp>
#include <string>

namespace portway {

/// In block style, members in their original order, with a trailing newline.
std::string as_yaml(const boost::json::value& value);

}  // namespace portway
