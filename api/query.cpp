#include "api/query.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace portway {
namespace {

Error unknown(const std::string& name, const QueryParameters& parameters) {
  std::vector<std::string_view> known;
  known.reserve(parameters.listed().size());
  for (const QueryParameters::Each& each : parameters.listed()) known.push_back(each.name);
  return {ErrorCode::kUnknownField,
          fmt::format("There is no query parameter {}{}{}.", in_quotes(name),
                      known.empty() ? " here" : "; known are: ", fmt::join(known, ", ")),
          name};
}

}  // namespace

const Parameter<std::size_t> kPageLimit = integer_parameter<std::size_t>("limit", 100, 1, 1000);

Parameter<std::optional<std::string>> text_parameter(std::string_view name) {
  const auto any = [](std::string_view text) -> std::optional<std::optional<std::string>> {
    return std::string(text);
  };
  return {name, std::nullopt, any, ""};
}

Parameter<std::optional<Uuid>> uuid_parameter(std::string_view name, std::string rule) {
  const auto parse = [](std::string_view text) -> std::optional<std::optional<Uuid>> {
    const auto uuid = parse_uuid(text);
    if (!uuid) return std::nullopt;
    return uuid;
  };
  return {name, std::nullopt, parse, std::move(rule)};
}

std::string choice_rule(const std::vector<std::string_view>& words) {
  std::string rule = fmt::format("must be {} (the default)", words.front());
  for (std::size_t i = 1; i < words.size(); ++i) {
    rule += fmt::format("{}{}", i + 1 == words.size() ? " or " : ", ", words[i]);
  }
  return rule + ".";
}

std::string range_rule(std::uint64_t least, std::uint64_t most) {
  return fmt::format("must be a whole number from {} to {}.", least, most);
}

Error does_not_fit(std::string_view name, std::string_view rule, ErrorCode refusal) {
  return {refusal, fmt::format("{} {}", name, rule), std::string(name)};
}

QueryParameters QueryParameters::ignored() {
  QueryParameters parameters({});
  parameters.ignored_ = true;
  return parameters;
}

bool QueryParameters::lists(std::string_view name) const {
  return std::ranges::find(parameters_, name, &Each::name) != parameters_.end();
}

Result<Query> read_query(const boost::urls::url_view& url, const QueryParameters& parameters) {
  Query query;
  for (const auto& parameter : url.params()) {
    const auto [entry, is_new] = query.texts_.emplace(parameter.key, parameter.value);
    if (is_new) continue;
    return Error{ErrorCode::kInvalidRequest, fmt::format("{} is given twice.", in_quotes(entry->first)),
                 entry->first};
  }
  if (parameters.are_ignored()) return query;
  for (const auto& [name, text] : query.texts_) {
    if (!parameters.lists(name)) return unknown(name, parameters);
  }
  for (const QueryParameters::Each& each : parameters.listed()) {
    const auto found = query.texts_.find(each.name);
    if (found == query.texts_.end()) continue;
    if (auto error = each.check(found->second)) return *error;
  }
  return query;
}

}  // namespace portway
