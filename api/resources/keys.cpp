// /api-keys: who may call.

#include <boost/json.hpp>
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

const auto kKeyCursor = cursor_parameter<Uuid>(parse_uuid);

Result<Response> list_keys(const ApiContext& api, const Call& call) {
  const auto limit = call.query[kPageLimit];
  const Uuid after = call.query[kKeyCursor];
  boost::json::array list;
  boost::json::object body;
  for (const ApiKey* key : api.control.keys().all()) {
    if (key->id <= after) continue;
    if (list.size() == limit) {
      body["next_cursor"] = list.back().at("id");
      break;
    }
    list.push_back(to_json(*key));
  }
  body["api_keys"] = std::move(list);
  return json_response(200, body);
}

Result<Response> create_key(const ApiContext& api, const Call& call) {
  if (call.request.headers.contains("idempotency-key")) {
    return Error{
        ErrorCode::kInvalidRequest,
        "A secret is shown only once, so this answer cannot be repeated: leave Idempotency-Key out. If an "
        "answer is lost, delete its key and create another.",
        "idempotency-key"};
  }
  JsonFields fields(call.request);
  const std::string role_name = fields.string("role");
  std::string owner = fields.string("owner");
  if (auto error = fields.finish()) return *error;
  const auto role = parse_role(role_name);
  if (!role) return Error{ErrorCode::kInvalidRequest, "role must be admin or tenant.", "role"};
  const auto created = api.control.create_key(*role, std::move(owner), call.caller);
  if (!created) return created.error();
  Response response = json_response(201, {{"api_key", to_json(created->key)}, {"secret", created->secret}});
  response.headers.emplace_back("Location", "/api-keys/" + to_string(created->key.id));
  return response;
}

Result<Response> delete_key(const ApiContext& api, const Call& call) {
  const auto id = parse_uuid(call.path[0]);
  if (!id) return Error{ErrorCode::kNotFound, "There is no API key with this id."};
  if (auto deleted = api.control.delete_key(*id, call.caller); !deleted) return deleted.error();
  return no_content();
}

}  // namespace

std::vector<Route> key_routes() {
  return {
      {"GET", "/api-keys", Access::kAdmin, {kPageLimit, kKeyCursor}, list_keys},
      {"POST", "/api-keys", Access::kAdmin, {}, create_key},
      {"DELETE", "/api-keys/{id}", Access::kAdmin, {}, delete_key},
  };
}

}  // namespace portway
