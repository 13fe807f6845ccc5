// The API's contract, api/openapi.yaml, as the JSON of GET /openapi.json. Made by the build.
#pragma once

#include <string_view>

namespace portway {

/// An OpenAPI 3.1 document. Any thread.
std::string_view openapi_json();

}  // namespace portway
