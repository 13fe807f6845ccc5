#include "client/command.h"

#include <charconv>

namespace portway {

std::string Command::full_name() const {
  return verb.empty() ? std::string(noun) : std::string(noun) + " " + std::string(verb);
}

void Arguments::set(std::string_view name, std::vector<std::string> values, Origin origin) {
  values_.insert_or_assign(std::string(name), std::move(values));
  origins_.insert_or_assign(std::string(name), origin);
}

Origin Arguments::origin(std::string_view name) const {
  const auto found = origins_.find(name);
  return found == origins_.end() ? Origin::kNone : found->second;
}

const std::string& Arguments::text(std::string_view name) const {
  static const std::string none;
  const auto found = values_.find(name);
  return found == values_.end() || found->second.empty() ? none : found->second.front();
}

const std::vector<std::string>& Arguments::all(std::string_view name) const {
  static const std::vector<std::string> none;
  const auto found = values_.find(name);
  return found == values_.end() ? none : found->second;
}

std::optional<long> Arguments::number(std::string_view name) const {
  const std::string& digits = text(name);
  long value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return error == std::errc() && !digits.empty() ? std::optional(value) : std::nullopt;
}

Format Invocation::format() const {
  const std::string& name = arguments.text("--output");
  if (name == "json") return Format::kJson;
  if (name == "yaml") return Format::kYaml;
  return name == "wide" || arguments.given("--wide") ? Format::kWide : Format::kTable;
}

}  // namespace portway
