// What a configuration key can hold, and how a member is read from it and shown: the rules that
// config/visit_keys.h names.
//
// A rule has get(member), set(member, value), which returns what is wrong with the value or sets the member,
// and note(), the range for operators.
#pragma once

#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "config/config.h"

namespace portway {

/// The value of a key, from the file or from text.
using ConfigValue =
    std::variant<std::int64_t, std::string, std::vector<std::string>, std::vector<std::int64_t>, bool>;

/// What is wrong with a value; none: it is good.
using Problem = std::optional<std::string>;

/// An integer, or a duration in its type's unit.
struct Number {
  std::int64_t min;
  std::int64_t max;
  // Of one in the file, in the member; for integers.
  std::uint32_t unit = 1;
  // Numbers within the range that are not allowed, and why.
  std::vector<std::int64_t> excluded = {};
  std::string_view why = {};

  ConfigValue get(std::uint32_t member) const { return std::int64_t{member / unit}; }
  ConfigValue get(std::uint64_t member) const { return static_cast<std::int64_t>(member / unit); }
  template <class Rep, class Period>
  ConfigValue get(std::chrono::duration<Rep, Period> member) const {
    return std::int64_t{member.count()};
  }
  template <class T>
  Problem set(T& member, const ConfigValue& value) const {
    const auto number = std::get<std::int64_t>(value);
    Problem problem = check(number);
    if (!problem) member = static_cast<T>(number * unit);
    return problem;
  }
  Problem check(std::int64_t number) const;
  std::string note() const { return fmt::format(" ({} to {})", min, max); }
};

struct Flag {
  ConfigValue get(bool member) const { return member; }
  Problem set(bool& member, const ConfigValue& value) const {
    member = std::get<bool>(value);
    return std::nullopt;
  }
  std::string note() const { return {}; }
};

/// A string that stands for a T.
template <class T>
struct Text {
  Result<T> (*parse)(std::string_view);
  std::string (*show)(const T&);

  ConfigValue get(const T& member) const { return show(member); }
  Problem set(T& member, const ConfigValue& value) const {
    Result<T> parsed = parse(std::get<std::string>(value));
    if (!parsed) return parsed.error().detail;
    member = std::move(*parsed);
    return std::nullopt;
  }
  std::string note() const { return {}; }
};

/// Different strings that stand for a T each.
template <class T>
struct List {
  std::size_t min;
  std::size_t max;
  Result<T> (*parse)(std::string_view);
  std::string (*show)(const T&);

  ConfigValue get(const std::vector<T>& member) const {
    std::vector<std::string> texts;
    texts.reserve(member.size());
    for (const T& item : member) texts.push_back(show(item));
    return texts;
  }
  Problem set(std::vector<T>& member, const ConfigValue& value) const {
    const auto& texts = std::get<std::vector<std::string>>(value);
    if (texts.size() < min || texts.size() > max) {
      return fmt::format("{} entries; there must be {} to {}", texts.size(), min, max);
    }
    std::vector<T> items;
    items.reserve(texts.size());
    for (const std::string& text : texts) {
      Result<T> parsed = parse(text);
      if (!parsed) return parsed.error().detail;
      if (std::find(items.begin(), items.end(), *parsed) != items.end()) {
        return fmt::format("{} is there twice; leave one out", in_quotes(text));
      }
      items.push_back(std::move(*parsed));
    }
    member = std::move(items);
    return std::nullopt;
  }
  std::string note() const { return fmt::format(" ({} to {} entries)", min, max); }
};

/// Numeric ids of users.
struct Uids {
  std::size_t max;

  ConfigValue get(const std::vector<std::uint32_t>& member) const {
    return std::vector<std::int64_t>(member.begin(), member.end());
  }
  Problem set(std::vector<std::uint32_t>& member, const ConfigValue& value) const;
  std::string note() const { return fmt::format(" (0 to {} entries)", max); }
};

/// A rule for what may be left out.
template <class Rule>
struct Own {
  Rule rule;

  template <class T>
  ConfigValue get(const std::optional<T>& member) const {
    return rule.get(member.value_or(T{}));
  }
  template <class T>
  Problem set(std::optional<T>& member, const ConfigValue& value) const {
    T own{};
    Problem problem = rule.set(own, value);
    if (!problem) member = std::move(own);
    return problem;
  }
};

/// The API's listeners as a value: a string, if there is one that is an address only. The loader reads lists
/// of them (config/listener_keys.h).
struct ApiListeners {
  static constexpr std::size_t kMax = 16;

  ConfigValue get(const std::vector<ApiListener>& member) const;
  Problem set(std::vector<ApiListener>& member, const ConfigValue& value) const;
  std::string note() const { return fmt::format(" (1 to {} listeners)", kMax); }
};

extern const Text<std::string> kHostname;
extern const Text<std::string> kPath;
extern const Text<std::string> kOptionalPath;
extern const Text<ListenAddress> kListen;
extern const Text<std::optional<ListenAddress>> kOptionalListen;
extern const Text<PortRange> kHostPorts;
extern const Text<IoBackend> kIoBackend;
extern const Text<LogLevel> kLogLevel;
extern const Text<LogFormat> kLogFormat;
extern const Text<SourceMode> kSourceMode;
extern const Text<std::string> kFleetUser;
extern const Text<std::string> kFleetPrefix;
extern const Text<std::string> kFleetNodeId;
extern const Text<std::string> kOptionalUrl;
extern const List<std::string> kUrls;
extern const List<std::string> kGateways;
extern const List<IpAddress> kPublicAddresses;
extern const List<Cidr> kNetworks;
extern const List<std::string> kDirectories;

}  // namespace portway
