#include "client/command.h"

#include <charconv>

namespace portway {

std::string Command::full_name() const {
  return verb.empty() ? std::string(noun) : std::string(noun) + " " + std::string(verb);
}

void Arguments::set(std::string_view name, std::vector<std::string> values) {
  values_.insert_or_assign(std::string(name), std::move(values));
}

void Arguments::set_fallback(std::string_view name, std::string_view value) {
  set(name, {std::string(value)});
  fallbacks_.emplace(name);
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

}  // namespace portway
