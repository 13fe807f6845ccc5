#include "api/idempotency.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace portway {
namespace {

constexpr std::size_t kKeyMax = 255;
constexpr std::string_view kReplayed = "Idempotency-Replayed";

/// The ids of the forwards in an answer; nullopt for one that cannot be read.
std::vector<std::optional<Uuid>> forwards_in(const IdempotentAnswer& answer) {
  std::vector<std::optional<Uuid>> ids;
  const auto add = [&ids](const boost::json::value& forward) {
    const auto* object = forward.if_object();
    const auto* id = object == nullptr ? nullptr : object->if_contains("id");
    ids.push_back(id != nullptr && id->is_string() ? parse_uuid(id->get_string()) : std::nullopt);
  };
  boost::system::error_code error;
  const boost::json::value body = boost::json::parse(answer.body, error);
  if (error || !body.is_object()) return ids;
  if (const auto* one = body.get_object().if_contains("port_forward")) add(*one);
  const auto* list = body.get_object().if_contains("port_forwards");
  if (list != nullptr && list->is_array()) std::ranges::for_each(list->get_array(), add);
  return ids;
}

/// Whether all that the answer promises still exists, in the same session.
Result<void> check_holds(const ApiContext& api, const IdempotentAnswer& answer, const Instance& instance) {
  const std::vector<std::optional<Uuid>> ids = forwards_in(answer);
  const auto exists = [&](const std::optional<Uuid>& id) {
    return id && api.control.has_forward(instance, *id);
  };
  const auto gone = std::ranges::count_if(ids, std::not_fn(exists));
  if (gone == 0 && !ids.empty()) return {};
  return Error{
      ErrorCode::kIdempotentAnswerGone,
      fmt::format("Of the {} port forwards that this Idempotency-Key created, {} have ended since: they "
                  "were deleted, or their session is over. Use a new Idempotency-Key to create new ones.",
                  ids.size(), gone),
      "idempotency-key"};
}

/// Who shares idempotency keys. What a key for one instance does is nothing to its owner's other keys; no
/// owner has a space in its name.
std::string scope_of(const Principal& caller) {
  const std::string account = account_of(caller);
  return caller.instance_id.empty() ? account : account + " " + caller.instance_id;
}

/// Who shares what is remembered: an orchestrator's flood must not make another one's answers be forgotten,
/// whatever names their keys have.
std::string payer_of(const Principal& caller) {
  const bool is_admin_key = caller.role == Role::kAdmin && !caller.key_id.is_nil();
  return is_admin_key ? "key " + to_string(caller.key_id) : scope_of(caller);
}

Response replay_of(const IdempotentAnswer& answer) {
  Response response{.status = 201, .body = answer.body, .headers = {{std::string(kReplayed), "true"}}};
  if (!answer.location.empty()) response.headers.emplace_back("Location", answer.location);
  if (!answer.etag.empty()) response.headers.emplace_back("ETag", answer.etag);
  return response;
}

}  // namespace

Result<std::optional<IdempotentAnswer>> idempotent_request(const Call& call) {
  const auto header = call.request.headers.find("idempotency-key");
  if (header == call.request.headers.end()) return std::optional<IdempotentAnswer>();
  const std::string& key = header->second;
  if (key.empty() || key.size() > kKeyMax ||
      !std::ranges::all_of(key, [](char c) { return ' ' <= c && c <= '~'; })) {
    return Error{
        ErrorCode::kInvalidRequest,
        fmt::format("Idempotency-Key must be 1 to {} printable ASCII characters, e.g. a random UUID.",
                    kKeyMax),
        "idempotency-key"};
  }
  return std::optional(IdempotentAnswer{
      .scope = scope_of(call.caller),
      .key = key,
      .payer = payer_of(call.caller),
      .request_sha256 =
          sha256(fmt::format("{}\n{}\n{}", call.request.method, call.request.target, call.request.body)),
      .location = {},
      .body = {},
      .created_at = now()});
}

boost::asio::awaitable<Result<std::optional<Response>>> find_replay(const ApiContext& api, const Call& call,
                                                                    IdempotentAnswer asked) {
  const auto known = co_await api.control.find_answer(asked.scope, asked.key);
  // Before anything else: the instance may have passed to another owner.
  const auto instance = api.control.find_instance(call.caller, call.path[0]);
  if (!instance) co_return instance.error();
  if (!known) co_return known.error();
  if (!*known) co_return std::optional<Response>();
  if ((*known)->request_sha256 != asked.request_sha256) {
    co_return Error{ErrorCode::kIdempotencyKeyReused,
                    "This Idempotency-Key was used for another request; use a new one for each request.",
                    "idempotency-key"};
  }
  if (auto holds = check_holds(api, **known, **instance); !holds) co_return holds.error();
  co_return std::optional(replay_of(**known));
}

IdempotentAnswer with_answer(IdempotentAnswer asked, const Response& response) {
  asked.body = response.body;
  for (const auto& [name, value] : response.headers) {
    if (name == "Location") asked.location = value;
    if (name == "ETag") asked.etag = value;
  }
  return asked;
}

bool is_replay(const Response& response) {
  return std::ranges::any_of(response.headers, [](const auto& each) { return each.first == kReplayed; });
}

}  // namespace portway
