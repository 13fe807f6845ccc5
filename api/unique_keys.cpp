#include "api/unique_keys.h"

#include <boost/json/basic_parser_impl.hpp>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

namespace portway {
namespace {

/// Boost.JSON's parser calls it for each part; returning false stops the parser.
struct KeyChecker {
  using Error = boost::system::error_code;
  using Text = boost::json::string_view;
  static constexpr std::size_t max_object_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_array_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_key_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_string_size = std::numeric_limits<std::size_t>::max();

  bool on_object_begin(Error&) {
    levels.emplace_back();
    return true;
  }
  bool on_object_end(std::size_t, Error&) {
    levels.pop_back();
    return true;
  }
  bool on_key_part(Text part, std::size_t, Error&) {
    key.append(part.data(), part.size());
    return true;
  }
  bool on_key(Text part, std::size_t, Error& error) {
    key.append(part.data(), part.size());
    if (!levels.back().insert(key).second) {
      duplicate = key;
      error = boost::json::error::exception;
      return false;
    }
    key.clear();
    return true;
  }

  static bool on_document_begin(Error&) { return true; }
  static bool on_document_end(Error&) { return true; }
  static bool on_array_begin(Error&) { return true; }
  static bool on_array_end(std::size_t, Error&) { return true; }
  static bool on_string_part(Text, std::size_t, Error&) { return true; }
  static bool on_string(Text, std::size_t, Error&) { return true; }
  static bool on_number_part(Text, Error&) { return true; }
  static bool on_int64(std::int64_t, Text, Error&) { return true; }
  static bool on_uint64(std::uint64_t, Text, Error&) { return true; }
  static bool on_double(double, Text, Error&) { return true; }
  static bool on_bool(bool, Error&) { return true; }
  static bool on_null(Error&) { return true; }
  static bool on_comment_part(Text, Error&) { return true; }
  static bool on_comment(Text, Error&) { return true; }

  std::vector<std::set<std::string>> levels;  // the names seen in the enclosing objects, outermost first
  std::string key;                            // the part of it that was parsed
  std::optional<std::string> duplicate;
};

}  // namespace

std::optional<std::string> duplicate_key(std::string_view json) {
  boost::json::basic_parser<KeyChecker> parser{boost::json::parse_options()};
  boost::system::error_code error;
  parser.write_some(false, json.data(), json.size(), error);
  return parser.handler().duplicate;
}

}  // namespace portway
