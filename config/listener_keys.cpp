#include "config/listener_keys.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <utility>

#include "config/config_keys.h"
#include "config/config_value.h"

namespace portway {
namespace {

constexpr std::string_view kLikeAddress = "\"127.0.0.1:8080\"";

std::string name_of_entry(std::size_t index) {
  return fmt::format("{}[{}]", kListenKey, index);
}

bool is_given(const ListenAddress&) {
  return true;
}

template <class T>
bool is_given(const std::optional<T>& own) {
  return own.has_value();
}

/// As the table that it could be written as; an address alone as a string.
std::string show_listener(const ApiListener& listener) {
  if (listener == ApiListener{.address = listener.address}) return to_string(listener.address);
  std::vector<std::string> keys;
  visit_listener_keys(listener, [&](std::string_view name, const auto& member, const auto& rule) {
    if (is_given(member)) keys.push_back(fmt::format("{} = {}", name, as_toml(rule.get(member))));
  });
  return fmt::format("{{ {} }}", fmt::join(keys, ", "));
}

/// The problem of a key that no listener has.
std::string unknown_listener_key(std::string_view name) {
  std::vector<std::string_view> names;
  const ApiListener any;
  visit_listener_keys(any, [&](std::string_view known, const auto&, const auto&) { names.push_back(known); });
  for (const std::string_view known : names) {
    if (edit_distance(known, name) <= 2)
      return fmt::format("is no key of a listener; did you mean {}?", known);
  }
  return fmt::format("is no key of a listener; these are: {}", fmt::join(names, ", "));
}

Problem set_listener_key(ApiListener& listener, std::string_view name, const toml::node& node) {
  Problem problem = unknown_listener_key(name);
  visit_listener_keys(listener, [&](std::string_view known, auto& member, const auto& rule) {
    if (known != name) return;
    const ConfigValue like = rule.get(member);
    const auto value = value_from(node, like);
    problem =
        value ? rule.set(member, *value) : fmt::format("must be {}, not {}", kind_of(like), kind_of(node));
  });
  return problem;
}

Problem count_problem(std::size_t count) {
  if (count >= 1 && count <= ApiListeners::kMax) return std::nullopt;
  return fmt::format("{} listeners; there must be 1 to {}", count, ApiListeners::kMax);
}

}  // namespace

ConfigValue ApiListeners::get(const std::vector<ApiListener>& member) const {
  std::vector<std::string> shown;
  shown.reserve(member.size());
  for (const ApiListener& listener : member) shown.push_back(show_listener(listener));
  if (shown.size() == 1) return shown.front();
  return shown;
}

Problem ApiListeners::set(std::vector<ApiListener>& member, const ConfigValue& value) const {
  ApiListener listener;
  Problem problem = kListen.set(listener.address, value);
  if (!problem) member = {std::move(listener)};
  return problem;
}

std::optional<ListenerProblem> read_listeners(
    const toml::array& entries, std::vector<ApiListener>& listeners,
    const std::function<void(const std::string&, const toml::source_region&)>& found) {
  if (const auto problem = count_problem(entries.size())) {
    return ListenerProblem{std::string(kListenKey), *problem, entries.source()};
  }
  std::vector<ApiListener> read;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const toml::node& entry = entries[i];
    const std::string name = name_of_entry(i);
    found(name, entry.source());
    ApiListener& listener = read.emplace_back();
    if (entry.is_string()) {
      if (const auto problem = set_listener_key(listener, "address", entry)) {
        return ListenerProblem{name, *problem, entry.source()};
      }
      continue;
    }
    const toml::table* const table = entry.as_table();
    if (table == nullptr) {
      return ListenerProblem{name,
                             fmt::format("must be a string like {}, or a table with an address, not {}",
                                         kLikeAddress, kind_of(entry)),
                             entry.source()};
    }
    for (const auto& [key, node] : *table) {
      const std::string full = name + "." + std::string(key.str());
      found(full, key.source());
      if (const auto problem = set_listener_key(listener, key.str(), node)) {
        return ListenerProblem{full, *problem, key.source()};
      }
    }
    if (!table->contains("address")) {
      return ListenerProblem{
          name + ".address",
          fmt::format("is missing; say where this listener is, e.g. address = {}", kLikeAddress),
          entry.source()};
    }
  }
  listeners = std::move(read);
  return std::nullopt;
}

std::optional<ListenerProblem> read_listeners(std::string_view text, std::vector<ApiListener>& listeners) {
  const auto addresses = std::get<std::vector<std::string>>(*value_from(text, std::vector<std::string>{}));
  if (addresses.size() <= 1) {  // also none: then the text is no address
    if (const auto problem = ApiListeners{}.set(listeners, std::string(text))) {
      return ListenerProblem{std::string(kListenKey), *problem};
    }
    return std::nullopt;
  }
  if (const auto problem = count_problem(addresses.size())) {
    return ListenerProblem{std::string(kListenKey), *problem};
  }
  std::vector<ApiListener> read;
  for (const std::string& address : addresses) {
    ApiListener& listener = read.emplace_back();
    if (const auto problem = kListen.set(listener.address, address)) {
      return ListenerProblem{name_of_entry(read.size() - 1), *problem};
    }
  }
  listeners = std::move(read);
  return std::nullopt;
}

}  // namespace portway
