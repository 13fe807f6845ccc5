// /api-keys and /whoami: who may call, and who does.

#include <fmt/format.h>

#include <boost/json.hpp>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/answers.h"
#include "api/json.h"
#include "api/json_fields.h"
#include "api/resources.h"

namespace portway {
namespace {

using boost::asio::awaitable;

const auto kKeyCursor = cursor_parameter<Uuid>(parse_uuid);

Result<Response> list_keys(KeyAdmin& admin, const Call& call) {
  const auto limit = call.query[kPageLimit];
  const Uuid after = call.query[kKeyCursor];
  boost::json::array list;
  boost::json::object body;
  for (const ApiKey* key : admin.keys().all()) {
    if (key->id <= after) continue;
    if (list.size() == limit) {
      body["next_cursor"] = list.back().at("id");
      break;
    }
    list.push_back(to_json(admin.keys().status_of(*key)));
  }
  body["api_keys"] = std::move(list);
  return json_response(200, body);
}

/// Of calls that show a secret.
Result<void> refuse_idempotency_key(const Call& call) {
  if (!call.request.headers.contains("idempotency-key")) return {};
  return Error{
      ErrorCode::kInvalidRequest,
      "A secret is shown only once, so this answer cannot be repeated: leave Idempotency-Key out. If an "
      "answer is lost, delete its key and create another.",
      "idempotency-key"};
}

/// The value of a field of names; `parse` gives nothing for what is none of `names`.
template <class Parse>
auto read_name(JsonFields& fields, std::string_view field, const std::string& text, Parse parse,
               std::string_view names) {
  const auto parsed = parse(text);
  if (!parsed) fields.refuse(field, fmt::format("{} must be {}.", field, names));
  return parsed;
}

/// `now` is when a `ttl_seconds` begins.
Result<KeySpec> read_spec(const Request& request, Timestamp now) {
  JsonFields fields(request);
  KeySpec spec;
  const std::string role = fields.string("role");
  spec.owner = fields.string("owner");
  spec.description = fields.string_or("description", "");
  const std::string scope = fields.string_or("scope", "full");
  const auto instance_id = fields.string_or_none("instance_id");
  spec.expires_at = fields.expiry(now);
  const auto known_role = read_name(fields, "role", role, parse_role, "admin or tenant");
  const auto known_scope = read_name(fields, "scope", scope, parse_key_scope, "full, read or metrics");
  if (instance_id && instance_id->empty()) {
    fields.refuse("instance_id", "instance_id must not be empty; leave it out for all of the owner's.");
  }
  if (auto error = fields.finish()) return *error;
  spec.role = *known_role;
  spec.scope = *known_scope;
  spec.instance_id = instance_id.value_or("");
  return spec;
}

Response secret_response(unsigned status, const NewKey& key) {
  Response response = json_response(status, {{"api_key", to_json(key.status)}, {"secret", key.secret}});
  response.headers.emplace_back("Cache-Control", "no-store");
  return response;
}

awaitable<Result<Response>> create_key(KeyAdmin& admin, const Call& call) {
  if (auto allowed = refuse_idempotency_key(call); !allowed) co_return allowed.error();
  auto spec = read_spec(call.request, admin.keys().now());
  if (!spec) co_return spec.error();
  const auto created = co_await admin.create_key(std::move(*spec), call.caller);
  if (!created) co_return created.error();
  Response response = secret_response(201, *created);
  response.headers.emplace_back("Location", "/api-keys/" + to_string(created->status.key.id));
  co_return response;
}

Result<Uuid> read_id(const Call& call) {
  const auto id = parse_uuid(call.path[0]);
  if (!id) return Error{ErrorCode::kNotFound, "There is no API key with this id."};
  return *id;
}

Result<Response> get_key(KeyAdmin& admin, const Call& call) {
  const auto id = read_id(call);
  if (!id) return id.error();
  const KeyRing& keys = admin.keys();
  const ApiKey* key = keys.find(*id);
  if (key == nullptr) return Error{ErrorCode::kNotFound, "There is no API key with this id."};
  return json_response(200, {{"api_key", to_json(keys.status_of(*key))}});
}

awaitable<Result<Response>> change_key(KeyAdmin& admin, const Call& call) {
  JsonFields fields(call.request);
  ApiKeyChange change;
  if (fields.given("description")) change.description = fields.string_or("description", "");
  if (fields.given("expires_at")) change.expires_at = fields.time_or_none("expires_at");
  if (auto error = fields.finish()) co_return *error;
  const auto id = read_id(call);
  if (!id) co_return id.error();
  const auto changed = co_await admin.change_key(*id, change, call.caller);
  if (!changed) co_return changed.error();
  co_return json_response(200, {{"api_key", to_json(*changed)}});
}

awaitable<Result<Response>> rotate_key(KeyAdmin& admin, const Call& call) {
  if (auto allowed = refuse_idempotency_key(call); !allowed) co_return allowed.error();
  std::int64_t overlap = 0;
  if (!call.request.body.empty()) {
    JsonFields fields(call.request);
    overlap = fields.integer_or_none("overlap_seconds", 0, KeyAdmin::kOverlapMax.count()).value_or(0);
    if (auto error = fields.finish()) co_return *error;
  }
  const auto id = read_id(call);
  if (!id) co_return id.error();
  const auto rotated = co_await admin.rotate_key(*id, std::chrono::seconds(overlap), call.caller);
  if (!rotated) co_return rotated.error();
  co_return secret_response(200, *rotated);
}

awaitable<Result<Response>> delete_key(KeyAdmin& admin, const Call& call) {
  const auto id = read_id(call);
  if (!id) co_return id.error();
  if (auto deleted = co_await admin.delete_key(*id, call.caller); !deleted) co_return deleted.error();
  co_return no_content();
}

/// Of whoever calls, and of its key.
Result<Response> who_am_i(KeyAdmin& admin, const Call& call) {
  const Principal& caller = call.caller;
  boost::json::object body{
      {"role", to_string(caller.role)}, {"owner", caller.owner}, {"scope", to_string(caller.scope)}};
  if (!caller.instance_id.empty()) body["instance_id"] = caller.instance_id;
  if (!caller.key_id.is_nil()) body["key_id"] = to_string(caller.key_id);
  const KeyRing& keys = admin.keys();
  if (const ApiKey* key = keys.find(caller.key_id)) {
    if (key->expires_at) body["expires_at"] = to_rfc3339(*key->expires_at);
    const auto old_until = keys.status_of(*key).old_secret_valid_until;
    if (old_until && caller.via.empty() && caller.secret_sha256 != key->secret_sha256)
      body["secret_valid_until"] = to_rfc3339(*old_until);
  }
  return json_response(200, {{"whoami", std::move(body)}});
}

}  // namespace

std::vector<KeyRoute> key_routes() {
  return {
      {"GET", "/api-keys", Access::kAdmin, {kPageLimit, kKeyCursor}, list_keys},
      {"POST", "/api-keys", Access::kAdmin, {}, create_key},
      {"GET", "/api-keys/{id}", Access::kAdmin, {}, get_key},
      {"PATCH", "/api-keys/{id}", Access::kAdmin, {}, change_key},
      {"DELETE", "/api-keys/{id}", Access::kAdmin, {}, delete_key},
      {"POST", "/api-keys/{id}/rotate", Access::kAdmin, {}, rotate_key},
      {"GET", "/v1/whoami", Access::kAnyKey, {}, who_am_i},
      {"GET", "/whoami", Access::kAnyKey, {}, who_am_i},
  };
}

}  // namespace portway
