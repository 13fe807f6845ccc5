#include "fleet/claim.h"

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <utility>

#include "fleet/fleet_keys.h"

namespace portway {
namespace {

constexpr std::string_view kHeld = "held";
constexpr std::string_view kEnded = "ended";

std::optional<std::string> text_in(const boost::json::object& object, std::string_view name) {
  const auto* value = object.if_contains(name);
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return std::string(value->get_string());
}

}  // namespace

std::string to_json(const Claim& claim) {
  return boost::json::serialize(boost::json::object{{"node", claim.node},
                                                    {"session_id", to_string(claim.session_id)},
                                                    {"began", to_rfc3339(claim.began)},
                                                    {"state", claim.ended ? kEnded : kHeld}});
}

std::optional<Claim> parse_claim(std::string_view json) {
  boost::system::error_code error;
  const auto value = boost::json::parse(json, error);
  if (error || !value.is_object()) return std::nullopt;
  const auto& object = value.get_object();
  const auto node = text_in(object, "node");
  const auto session = parse_uuid(text_in(object, "session_id").value_or(""));
  const auto began = parse_rfc3339(text_in(object, "began").value_or(""));
  const auto state = text_in(object, "state");
  if (!node || !is_fleet_id(*node) || !session || !began || (state != kHeld && state != kEnded)) {
    return std::nullopt;
  }
  return Claim{.node = *node, .session_id = *session, .began = *began, .ended = state == kEnded};
}

ClaimVerdict judge(const Claim& own, const std::optional<Claim>& found) {
  if (!found) return ClaimVerdict::kFree;
  if (found->session_id == own.session_id) {
    if (found->ended) return ClaimVerdict::kLosing;
    return found->node == own.node ? ClaimVerdict::kMine : ClaimVerdict::kTwin;
  }
  if (found->node == own.node) return ClaimVerdict::kFree;
  const bool is_later = std::pair(own.began, own.session_id) > std::pair(found->began, found->session_id);
  return is_later ? ClaimVerdict::kFree : ClaimVerdict::kLosing;
}

}  // namespace portway
