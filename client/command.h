// The commands of `portway`, as data. One table (commands.cpp) defines the command line, the help, the man
// page and the shells' completions, and for most commands also the request and how its answer is shown. A new
// command is a new row.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <iosfwd>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/failure.h"

namespace portway {

struct Invocation;
struct Console;

/// Where an argument goes in the request. kBodyNull: each value, "max-connections", is the name of a body
/// parameter without its dashes, whose field becomes null. kBodyEntryNull: each value is the name of an entry
/// of the object `field`, which becomes null. kNode: the node that a gateway passes the request on to.
enum class Place : std::uint8_t { kLocal, kPath, kBody, kBodyNull, kBodyEntryNull, kQuery, kHeader, kNode };

/// Which server answers a command.
enum class AnsweredBy : std::uint8_t { kAny, kNode, kGateway };

enum class Kind : std::uint8_t {
  kText,
  kPort,   // 1-65535
  kCount,  // 1-2,147,483,647, or to Parameter::most
  kFile,
  kFlag,   // an option without a value
  kBool,   // "true" or "false", the choices
  kEntry,  // "KEY=VALUE", repeatable: an object
};

/// Of the output (--output).
enum class Format : std::uint8_t { kTable, kWide, kJson, kYaml };

/// Whether it is for programs: the API's answers with all their members.
constexpr bool is_data(Format format) {
  return format == Format::kJson || format == Format::kYaml;
}

struct Parameter {
  std::string_view name;  // "INSTANCE" is positional, "--label" is an option
  std::string_view help;  // a sentence or two
  Kind kind = Kind::kText;
  std::string_view value = "TEXT";  // the placeholder of the value in the help
  Place place = Place::kLocal;
  // Its name in the body, the query or the header; "target.kind" in an object of the body.
  std::string_view field = {};
  char letter = 0;                                               // "-o"
  std::int64_t most = std::numeric_limits<std::int32_t>::max();  // of a kCount
  bool required = false;              // positional parameters are, but for the next line
  bool optional = false;              // positional, the last one: it may be left out
  bool repeatable = false;            // in a body: a list
  std::string_view fallback = {};     // the default value
  std::string_view environment = {};  // the variable that can replace it
  std::vector<std::string_view> choices = {};

  bool positional() const { return !name.starts_with('-'); }
};

/// A column of a table: its title and the member of each object, "port_forwards.current" for a nested one.
struct Column {
  std::string_view title;
  std::string_view member;
  bool wide = false;  // shown by --output wide only
};

struct Command {
  using Show = void (*)(const Command&, const boost::json::object& answer, Format, Console&);

  std::string_view noun;
  std::string_view verb;  // empty if the noun is the command
  std::string_view summary;
  std::vector<Parameter> parameters = {};

  // For commands that send one request:
  std::string_view method = {};
  std::string_view path = {};  // "/instances/{INSTANCE}"
  AnsweredBy answered_by = AnsweredBy::kAny;
  bool paged = false;  // a list that may come in several pages
  /// The member of the answer that holds the resource or the list; empty: 204 without a body.
  std::string_view envelope = {};
  std::vector<Column> columns = {};  // of a list; empty: the members of its first object
  Show show = nullptr;               // for -o table and wide; nullptr: prints nothing
  std::string_view verdict = {};     // the member of the resource that makes the command fail if it is false

  Outcome<void> (*run)(const Invocation&, Console&);
  bool hidden = false;

  std::string full_name() const;  // "forwards create"
};

struct Noun {
  std::string_view name;
  std::string_view summary;
  std::string_view usual_verb = {};  // is meant if there is none
};

/// In the order of the help.
std::span<const Command> commands();
/// The nouns that have verbs.
std::span<const Noun> nouns();
/// Options that every command takes.
std::span<const Parameter> global_parameters();

using Environment = std::map<std::string, std::string, std::less<>>;

/// Where the value of a parameter is from.
enum class Origin : std::uint8_t { kNone, kOption, kEnvironment, kFallback };

/// The arguments by parameter name, including fallbacks and values from environment variables.
class Arguments {
 public:
  void set(std::string_view name, std::vector<std::string> values, Origin origin = Origin::kOption);

  Origin origin(std::string_view name) const;
  /// Whether the user gave it, as an option or in the environment.
  bool given(std::string_view name) const { return has(name) && origin(name) != Origin::kFallback; }
  bool has(std::string_view name) const { return values_.contains(name); }
  /// Empty if it was not given.
  const std::string& text(std::string_view name) const;
  const std::vector<std::string>& all(std::string_view name) const;
  std::optional<long> number(std::string_view name) const;  // of a kPort or kCount

 private:
  std::map<std::string, std::vector<std::string>, std::less<>> values_;
  std::map<std::string, Origin, std::less<>> origins_;  // of each of values_
};

/// One run of one command.
struct Invocation {
  const Command* command = nullptr;
  Arguments arguments;
  Environment environment;

  Format format() const;
  bool wants_data() const { return is_data(format()); }
};

/// Where output goes; tests capture it.
struct Console {
  std::ostream& out;
  std::ostream& err;
  bool terminal = false;  // `out` is a terminal and can be redrawn
};

}  // namespace portway
