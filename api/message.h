// A request and its answer as the handlers see them: HTTP without its transport.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/endpoint.h"

namespace portway {

struct Request {
  std::string id;      // made by the server for every request; the answer's X-Request-Id
  std::string method;  // "GET"
  std::string target;  // as sent: path and query, still percent-encoded
  std::map<std::string, std::string, std::less<>> headers;  // by lower-case name; the last one wins
  std::string body;
  IpAddress peer;  // unspecified for a Unix socket

  /// Empty when there is none; `name` in lower case.
  std::string_view header(std::string_view name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? std::string_view() : std::string_view(found->second);
  }
};

struct Response {
  unsigned status = 200;
  std::string body;  // not sent for HEAD and 204; its length is
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
};

}  // namespace portway
