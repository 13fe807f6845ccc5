// The query of a request. A route lists the parameters that it takes, each with its type and range; what does
// not fit, and any other parameter, is refused by name before the handler runs.
//
// Parameters are constants; a Query belongs to its call.
#pragma once

#include <boost/url/url_view.hpp>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/forward.h"

namespace portway {

/// A parameter whose value is a T.
template <typename T>
struct Parameter {
  std::string_view name;
  T fallback;                                               // its value if the query does not have it
  std::function<std::optional<T>(std::string_view)> parse;  // nullopt: the text does not fit
  std::string rule;                                         // what a text must be: "must be ..."
  ErrorCode refusal = ErrorCode::kInvalidRequest;           // of a text that does not fit
};

/// Any text; nullopt if it is absent.
Parameter<std::optional<std::string>> text_parameter(std::string_view name);
/// A whole number; absent or empty: `fallback`.
template <typename T>
Parameter<T> integer_parameter(std::string_view name, T fallback, T least, T most);
/// `rule` as in Parameter; nullopt if it is absent.
Parameter<std::optional<Uuid>> uuid_parameter(std::string_view name, std::string rule);

/// One of a few words; absent: the first.
template <typename T>
Parameter<T> choice_parameter(std::string_view name, std::vector<std::pair<std::string_view, T>> choices,
                              ErrorCode refusal = ErrorCode::kInvalidRequest);

// --- Of lists that are read page by page.

/// "limit": how many entries a page has at most.
extern const Parameter<std::size_t> kPageLimit;

/// "cursor": the `next_cursor` of the page before; absent or empty: T{}, from the start.
template <typename T>
Parameter<T> cursor_parameter(std::function<std::optional<T>(std::string_view)> parse);

// --- What a route takes.

/// The parameters that a route takes.
class QueryParameters {
 public:
  /// A Parameter<T> without its type.
  struct Each {
    template <typename T>
    Each(const Parameter<T>& parameter);  // NOLINT(google-explicit-constructor): so that a route lists them
    std::string_view name;
    std::function<std::optional<Error>(std::string_view)> check;  // nothing if the text fits
  };

  /// These and no others.
  QueryParameters(std::initializer_list<Each> parameters) : parameters_(parameters) {}
  /// For a route that does not look at its query: whatever is in it.
  static QueryParameters ignored();

  /// These and one more.
  QueryParameters with(const Each& parameter) const {
    QueryParameters more = *this;
    more.parameters_.push_back(parameter);
    return more;
  }

  bool are_ignored() const { return ignored_; }
  const std::vector<Each>& listed() const { return parameters_; }
  bool lists(std::string_view name) const;

 private:
  std::vector<Each> parameters_;
  bool ignored_ = false;
};

/// The parameters of one request. Made by read_query only, so that all of them fit.
class Query {
 public:
  /// The value of a parameter that the route lists.
  template <typename T>
  T operator[](const Parameter<T>& parameter) const {
    const auto found = texts_.find(parameter.name);
    return found == texts_.end() ? parameter.fallback : parameter.parse(found->second).value();
  }

 private:
  friend Result<Query> read_query(const boost::urls::url_view& url, const QueryParameters& parameters);

  std::map<std::string, std::string, std::less<>> texts_;  // by name, decoded
};

/// The query of `url` for a route that takes `parameters`. kInvalidRequest if a name is given twice,
/// kUnknownField for one that is not listed, else the refusal of the first listed one that does not fit.
Result<Query> read_query(const boost::urls::url_view& url, const QueryParameters& parameters);

// --- Templates.

/// "must be a (the default), b or c."
std::string choice_rule(const std::vector<std::string_view>& words);
std::string range_rule(std::uint64_t least, std::uint64_t most);
Error does_not_fit(std::string_view name, std::string_view rule, ErrorCode refusal);

template <typename T>
Parameter<T> integer_parameter(std::string_view name, T fallback, T least, T most) {
  const auto parse = [=](std::string_view text) -> std::optional<T> {
    if (text.empty()) return fallback;
    T number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    return whole && number >= least && number <= most ? std::optional(number) : std::nullopt;
  };
  return {name, fallback, parse, range_rule(least, most)};
}

template <typename T>
Parameter<T> choice_parameter(std::string_view name, std::vector<std::pair<std::string_view, T>> choices,
                              ErrorCode refusal) {
  std::vector<std::string_view> words;
  words.reserve(choices.size());
  for (const auto& [word, value] : choices) words.push_back(word);
  const T first = choices.front().second;
  const auto parse = [choices = std::move(choices)](std::string_view text) -> std::optional<T> {
    for (const auto& [word, value] : choices) {
      if (word == text) return value;
    }
    return std::nullopt;
  };
  return {name, first, parse, choice_rule(words), refusal};
}

template <typename T>
Parameter<T> cursor_parameter(std::function<std::optional<T>(std::string_view)> parse) {
  const auto or_start = [parse = std::move(parse)](std::string_view text) {
    return text.empty() ? std::optional<T>(T{}) : parse(text);
  };
  return {"cursor", T{}, or_start, "must be the next_cursor of an earlier answer."};
}

template <typename T>
QueryParameters::Each::Each(const Parameter<T>& parameter)
    : name(parameter.name), check([parameter](std::string_view text) -> std::optional<Error> {
        if (parameter.parse(text)) return std::nullopt;
        return does_not_fit(parameter.name, parameter.rule, parameter.refusal);
      }) {}

}  // namespace portway
