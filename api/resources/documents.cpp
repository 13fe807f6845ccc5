// What is carried inside the daemon: the contract and the page.

#include <string>
#include <string_view>
#include <vector>

#include "api/openapi.h"
#include "api/resources.h"
#include "api/ui.h"

namespace portway {
namespace {

Result<Response> contract(const NoContext&, const Call&) {
  return Response{.status = 200, .body = {}, .headers = {}, .lasting_body = openapi_json()};
}

Result<Response> page(const NoContext&, const Call& call) {
  const std::string_view name = call.path.empty() ? "index.html" : std::string_view(call.path[0]);
  for (const UiFile& file : ui_files()) {
    if (file.name != name) continue;
    return Response{.status = 200,
                    .body = {},
                    .content_type = std::string(file.content_type),
                    .headers = {{"Content-Security-Policy", std::string(kUiPolicy)},
                                {"X-Content-Type-Options", "nosniff"},
                                {"Referrer-Policy", "no-referrer"},
                                {"Cache-Control", "no-cache"}},
                    .lasting_body = file.body};
  }
  return Error{ErrorCode::kNotFound, "The page has no such file; it starts at /ui."};
}

}  // namespace

std::vector<DocumentRoute> document_routes() {
  return {
      {"GET", "/openapi.json", Access::kPublic, QueryParameters::ignored(), contract},
      {"GET", "/ui", Access::kPublic, QueryParameters::ignored(), page},
      {"GET", "/ui/{file}", Access::kPublic, QueryParameters::ignored(), page},
  };
}

}  // namespace portway
