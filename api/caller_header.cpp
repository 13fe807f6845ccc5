#include "api/caller_header.h"

#include <boost/json.hpp>
#include <utility>

#include "control/policy.h"

namespace portway {
namespace {

std::string_view text_of(const boost::json::object& object, std::string_view name) {
  const auto* member = object.if_contains(name);
  return member != nullptr && member->is_string() ? std::string_view(member->get_string())
                                                  : std::string_view();
}

bool is_possible(const Principal& caller) {
  const bool has_key = !caller.key_id.is_nil();
  return check_owner(caller.owner) && check_key_reach(caller.role, caller.scope, caller.instance_id) &&
         (caller.instance_id.empty() || check_instance_id(caller.instance_id)) &&
         (has_key || (caller.role == Role::kAdmin && caller.scope == KeyScope::kFull));
}

}  // namespace

std::string caller_header(const Principal& caller) {
  boost::json::object members{
      {"role", to_string(caller.role)}, {"owner", caller.owner}, {"scope", to_string(caller.scope)}};
  if (!caller.instance_id.empty()) members["instance_id"] = caller.instance_id;
  if (!caller.key_id.is_nil()) members["key_id"] = to_string(caller.key_id);
  return boost::json::serialize(members);
}

std::optional<Principal> parse_caller_header(std::string_view value) {
  if (value.size() > kCallerHeaderMax) return std::nullopt;
  boost::system::error_code error;
  const boost::json::value parsed = boost::json::parse(value, error);
  if (error || !parsed.is_object()) return std::nullopt;
  const boost::json::object& members = parsed.get_object();
  const auto role = parse_role(text_of(members, "role"));
  const auto scope = parse_key_scope(text_of(members, "scope"));
  const auto key_id = parse_uuid(text_of(members, "key_id"));
  if (!role || !scope) return std::nullopt;
  Principal caller{.key_id = key_id.value_or(Uuid{}),
                   .role = *role,
                   .owner = std::string(text_of(members, "owner")),
                   .scope = *scope,
                   .instance_id = std::string(text_of(members, "instance_id"))};
  // What else there is, or is there twice, makes another line.
  if (!is_possible(caller) || caller_header(caller) != value) return std::nullopt;
  return caller;
}

}  // namespace portway
