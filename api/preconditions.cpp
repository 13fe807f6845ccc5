#include "api/preconditions.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "api/json.h"
#include "control/auth.h"

namespace portway {
namespace {

constexpr std::size_t kTagsMax = 32;

/// If-Match or If-None-Match.
struct EntityTags {
  bool any = false;               // "*"
  std::vector<std::string> tags;  // strong ones; a weak one matches nothing (RFC 9110, 8.8.3.2)
};

Error malformed_tags(std::string_view header) {
  return {ErrorCode::kInvalidRequest,
          fmt::format("{} must be * or a list of up to {} entity tags in double quotes, as in ETag.", header,
                      kTagsMax),
          std::string(header)};
}

std::string_view without_spaces(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  return first == std::string_view::npos ? std::string_view() : text.substr(first);
}

Result<std::optional<EntityTags>> read_tags(const Call& call, std::string_view header) {
  const auto found = call.request.headers.find(header);
  if (found == call.request.headers.end()) return std::optional<EntityTags>();
  std::string_view rest = without_spaces(found->second);
  EntityTags tags;
  if (rest.starts_with('*')) {
    tags.any = true;
    if (!without_spaces(rest.substr(1)).empty()) return malformed_tags(header);
    return std::optional(tags);
  }
  for (std::size_t count = 0;; ++count) {
    const bool weak = rest.starts_with("W/");
    if (weak) rest.remove_prefix(2);
    const auto end = rest.starts_with('"') ? rest.find('"', 1) : std::string_view::npos;
    if (end == std::string_view::npos || count == kTagsMax) return malformed_tags(header);
    if (!weak) tags.tags.emplace_back(rest.substr(0, end + 1));
    rest = without_spaces(rest.substr(end + 1));
    if (rest.empty()) return std::optional(tags);
    if (!rest.starts_with(',')) return malformed_tags(header);
    rest = without_spaces(rest.substr(1));
  }
}

std::string tag_of(std::string_view prefix, const boost::json::object& settings) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string digits;
  const Sha256 hash = sha256(boost::json::serialize(settings));
  for (std::size_t i = 0; i < 8; ++i) {
    digits += kDigits[hash[i] >> 4];
    digits += kDigits[hash[i] & 15];
  }
  return fmt::format("\"{}{}\"", prefix, digits);
}

Error changed_meanwhile(std::string_view what, std::string_view tag) {
  return {
      ErrorCode::kPreconditionFailed,
      fmt::format("The {} has changed since: its ETag is {} now. Read it again, and repeat the request if it "
                  "is still what you want.",
                  what, tag),
      "if-match"};
}

Result<void> check_session(const std::optional<Uuid>& meant, const Instance* known) {
  if (!meant || (known != nullptr && known->session_id == *meant)) return {};
  return Error{ErrorCode::kSessionMismatch,
               known == nullptr
                   ? fmt::format("There is no instance with session {}.", to_string(*meant))
                   : fmt::format("Instance {} has session {} now; the one in session_id is over.", known->id,
                                 to_string(known->session_id)),
               "session_id"};
}

bool matches(const EntityTags& wanted, std::string_view tag) {
  return wanted.any || std::ranges::find(wanted.tags, tag) != wanted.tags.end();
}

/// If-Match of an instance may name the session alone.
Result<void> check_match(const EntityTags& wanted, const Instance* known) {
  if (known == nullptr) {
    return Error{ErrorCode::kPreconditionFailed,
                 "There is no such instance, and If-Match requires one; leave the header out to create it.",
                 "if-match"};
  }
  const std::string session = fmt::format("\"{}\"", to_string(known->session_id));
  if (matches(wanted, etag_of(*known)) || matches(wanted, session)) return {};
  return changed_meanwhile("instance", etag_of(*known));
}

}  // namespace

std::string etag_of(const Instance& instance) {
  boost::json::object settings = settings_of(instance);
  settings["state"] = to_string(instance.state);
  return tag_of(to_string(instance.session_id) + ".", settings);
}

std::string etag_of(const Forward& forward) {
  return tag_of("", settings_of(forward));
}

Result<Precondition<Instance>> instance_precondition(const Call& call, const std::optional<Uuid>& session) {
  auto match = read_tags(call, "if-match");
  if (!match) return match.error();
  const auto none_match = read_tags(call, "if-none-match");
  if (!none_match) return none_match.error();
  if (*none_match && !(*none_match)->any) {
    return Error{ErrorCode::kInvalidRequest, "If-None-Match can only be *: create, and change nothing.",
                 "if-none-match"};
  }
  const bool create_only = none_match->has_value();
  return Precondition<Instance>(
      [session, create_only, wanted = std::move(*match)](const Instance* known) -> Result<void> {
        if (auto meant = check_session(session, known); !meant) return meant;
        if (create_only && known != nullptr) {
          return Error{ErrorCode::kPreconditionFailed,
                       fmt::format("Instance {} exists, and If-None-Match: * only creates; its ETag is {}.",
                                   known->id, etag_of(*known)),
                       "if-none-match"};
        }
        return wanted ? check_match(*wanted, known) : Result<void>();
      });
}

Result<Precondition<Forward>> forward_precondition(const Call& call) {
  auto match = read_tags(call, "if-match");
  if (!match) return match.error();
  if (!*match) return Precondition<Forward>();
  return Precondition<Forward>([wanted = std::move(**match)](const Forward* known) -> Result<void> {
    if (matches(wanted, etag_of(*known))) return {};
    return changed_meanwhile("port forward", etag_of(*known));
  });
}

}  // namespace portway
