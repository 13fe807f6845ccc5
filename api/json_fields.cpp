#include "api/json_fields.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <utility>

#include "api/unique_keys.h"

namespace portway {
namespace {

constexpr std::chrono::seconds kTtlMax = std::chrono::hours(24) * 3650;

bool is_json(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  std::string lower(type.substr(0, type.find_last_not_of(" \t") + 1));
  std::ranges::transform(lower, lower.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return lower == "application/json";
}

}  // namespace

JsonFields::JsonFields(const Request& request) {
  if (!is_json(request.header("content-type"))) {
    error_ = Error{ErrorCode::kUnsupportedMediaType,
                   "Send the body as JSON with \"Content-Type: application/json\".", "content-type"};
    return;
  }
  boost::system::error_code parse_error;
  boost::json::value value = boost::json::parse(request.body, parse_error);
  if (parse_error) {
    error_ = Error{ErrorCode::kMalformedJson, "The body is not JSON: " + parse_error.message() + "."};
  } else if (!value.is_object()) {
    error_ = Error{ErrorCode::kMalformedJson, "The body must be a JSON object."};
  } else if (auto twice = duplicate_key(request.body)) {
    error_ = Error{ErrorCode::kMalformedJson, fmt::format("The body names {} twice.", in_quotes(*twice)),
                   std::move(*twice)};
  } else {
    object_ = std::move(value.get_object());
  }
}

std::string JsonFields::string(std::string_view name) {
  const boost::json::value* value = find(name, true);
  if (value == nullptr) return {};
  if (!value->is_string()) {
    fail(ErrorCode::kInvalidRequest, name, fmt::format("{} must be a string.", full(name)));
    return {};
  }
  return std::string(value->get_string());
}

std::string JsonFields::string_or(std::string_view name, std::string_view fallback) {
  return find(name, false) == nullptr ? std::string(fallback) : string(name);
}

std::optional<std::string> JsonFields::string_or_none(std::string_view name) {
  if (find(name, false) == nullptr) return std::nullopt;
  return string(name);
}

std::int64_t JsonFields::integer(std::string_view name, std::int64_t least, std::int64_t most,
                                 ErrorCode code) {
  const boost::json::value* value = find(name, true);
  if (value == nullptr) return 0;
  const std::int64_t* number = value->if_int64();
  if (number == nullptr || *number < least || *number > most) {
    fail(code, name, fmt::format("{} must be a whole number from {} to {}.", full(name), least, most));
    return 0;
  }
  return *number;
}

std::optional<std::int64_t> JsonFields::integer_or_none(std::string_view name, std::int64_t least,
                                                        std::int64_t most, ErrorCode code) {
  if (find(name, false) == nullptr) return std::nullopt;
  return integer(name, least, most, code);
}

std::vector<Cidr> JsonFields::networks(std::string_view name, std::size_t most) {
  std::vector<Cidr> list;
  const boost::json::value* value = find(name, false);
  if (value == nullptr) return list;
  const boost::json::array* texts = value->if_array();
  if (texts == nullptr || texts->size() > most) {
    fail(ErrorCode::kInvalidRequest, name,
         fmt::format("{} must be a list of at most {} networks, e.g. [\"203.0.113.0/24\"].", full(name),
                     most));
    return list;
  }
  for (const boost::json::value& text : *texts) {
    const auto network = text.is_string() ? Cidr::parse(std::string_view(text.get_string()))
                                          : Result<Cidr>(Error{.detail = "a network is a string"});
    if (!network) {
      fail(ErrorCode::kInvalidRequest, name,
           fmt::format("{}: {}; write networks as \"203.0.113.0/24\" or \"2001:db8::/32\".", full(name),
                       network.error().detail));
      return list;
    }
    list.push_back(*network);
  }
  return list;
}

std::vector<IpAddress> JsonFields::addresses(std::string_view name, std::size_t most) {
  std::vector<IpAddress> list;
  const boost::json::value* value = find(name, false);
  if (value == nullptr) return list;
  const boost::json::array* texts = value->if_array();
  if (texts == nullptr || texts->empty() || texts->size() > most) {
    fail(ErrorCode::kInvalidRequest, name,
         fmt::format("{} must be a list of 1 to {} addresses, e.g. [\"198.18.0.2\", \"fd00::2\"].",
                     full(name), most));
    return list;
  }
  for (const boost::json::value& text : *texts) {
    const auto address = text.is_string() ? parse_address(std::string_view(text.get_string()))
                                          : Result<IpAddress>(Error{.detail = "an address is a string"});
    if (!address) {
      fail(ErrorCode::kInvalidAddress, name, fmt::format("{}: {}.", full(name), address.error().detail));
      return {};
    }
    list.push_back(*address);
  }
  return list;
}

bool JsonFields::boolean_or(std::string_view name, bool fallback) {
  const boost::json::value* value = find(name, false);
  if (value == nullptr) return fallback;
  if (const bool* flag = value->if_bool()) return *flag;
  fail(ErrorCode::kInvalidRequest, name, fmt::format("{} must be true or false.", full(name)));
  return fallback;
}

MetadataChange JsonFields::strings(std::string_view name, bool nulls) {
  MetadataChange strings;
  const boost::json::value* value = find(name, false);
  if (value == nullptr) return strings;
  const boost::json::object* object = value->if_object();
  if (object == nullptr) {
    fail(ErrorCode::kInvalidRequest, name, fmt::format("{} must be an object of strings.", full(name)));
    return strings;
  }
  for (const auto& [key, each] : *object) {
    const boost::json::string* text = each.if_string();
    if (text == nullptr && !(nulls && each.is_null())) {
      fail(ErrorCode::kInvalidRequest, name,
           fmt::format("{} of {} must be a string{}.", in_quotes(key), full(name),
                       nulls ? ", or null to remove it" : ""));
      break;
    }
    strings[key] = text != nullptr ? std::optional<std::string>(*text) : std::nullopt;
  }
  return strings;
}

std::optional<Timestamp> JsonFields::time_or_none(std::string_view name) {
  const auto text = string_or_none(name);
  if (!text) return std::nullopt;
  const auto time = parse_rfc3339(*text);
  if (!time) {
    refuse(name, fmt::format("{} {} must be a time as RFC 3339 has it, \"2030-01-31T12:00:00Z\".", name,
                             in_quotes(*text)));
  }
  return time;
}

std::optional<Timestamp> JsonFields::expiry(Timestamp now) {
  const auto at = time_or_none("expires_at");
  const auto ttl = integer_or_none("ttl_seconds", 1, kTtlMax.count());
  if (at && ttl) refuse("ttl_seconds", "Give expires_at or ttl_seconds, not both.");
  return ttl ? std::optional(now + std::chrono::seconds(*ttl)) : at;
}

void JsonFields::object(std::string_view name,
                        const std::function<std::optional<Error>(JsonFields fields)>& read) {
  const boost::json::value* value = find(name, false);
  if (value == nullptr) return;
  const boost::json::object* object = value->if_object();
  if (object == nullptr)
    return fail(ErrorCode::kInvalidRequest, name, fmt::format("{} must be an object.", full(name)));
  auto error = read(JsonFields(*object, full(name) + "."));
  if (error && !error_) error_ = std::move(error);
}

std::optional<Target> JsonFields::target(std::string_view name, bool needs_port) {
  std::optional<Target> target;
  object(name, [&](JsonFields fields) {
    const auto kind = parse_target_kind(fields.string("kind"));
    if (!kind) fields.refuse("kind", fmt::format("{}.kind must be tcp, unix or firecracker_vsock.", name));
    target.emplace().kind = kind.value_or(TargetKind::kTcp);
    if (!kind) (void)fields.given("socket"), (void)fields.given("port");  // the kind is what is wrong
    if (!target->is_tcp()) target->socket = fields.string("socket");
    if (target->kind == TargetKind::kFirecrackerVsock && (needs_port || fields.given("port"))) {
      target->port =
          static_cast<std::uint32_t>(fields.integer("port", 1, kVsockPortMax, ErrorCode::kInvalidPort));
    }
    return fields.finish();
  });
  return target;
}

void JsonFields::each(std::string_view name, std::size_t least, std::size_t most,
                      const std::function<std::optional<Error>(JsonFields fields)>& read) {
  const boost::json::value* value = find(name, true);
  if (value == nullptr) return;
  const boost::json::array* list = value->if_array();
  if (list == nullptr || list->size() < least || list->size() > most) {
    return fail(ErrorCode::kInvalidRequest, name,
                fmt::format("{} must be a list of {} to {} objects.", full(name), least, most));
  }
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string place = fmt::format("{}[{}]", name, i);
    const boost::json::object* object = (*list)[i].if_object();
    if (object == nullptr) {
      return fail(ErrorCode::kInvalidRequest, place, fmt::format("{} must be an object.", full(place)));
    }
    if (auto error = read(JsonFields(*object, full(place) + "."))) {
      if (!error_) error_ = std::move(error);
      return;
    }
  }
}

std::optional<Error> JsonFields::finish() {
  // Before other errors: a mistyped name explains the missing field.
  for (const auto& [key, value] : object_) {
    if (std::ranges::find(known_, std::string_view(key)) != known_.end()) continue;
    return Error{
        ErrorCode::kUnknownField,
        fmt::format("There is no field {}; known are: {}.", in_quotes(full(key)), fmt::join(known_, ", ")),
        full(key)};
  }
  return error_;
}

const boost::json::value* JsonFields::find(std::string_view name, bool required) {
  if (std::ranges::find(known_, name) == known_.end()) known_.emplace_back(name);
  const boost::json::value* value = object_.if_contains(name);
  if (value != nullptr && value->is_null()) value = nullptr;  // null means "not given"
  if (value == nullptr && required)
    fail(ErrorCode::kInvalidRequest, name, fmt::format("{} is required.", full(name)));
  return value;
}

void JsonFields::fail(ErrorCode code, std::string_view name, std::string detail) {
  if (!error_) error_ = Error{code, std::move(detail), full(name)};
}

}  // namespace portway
