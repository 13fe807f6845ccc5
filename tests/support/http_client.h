// One HTTP request on one connection, for tests of the API.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <map>
#include <string>

#include "tests/support/network.h"

namespace portway::test {

struct HttpRequest {
  std::string method = "GET";
  std::string target = "/";
  std::string key = "";   // a bearer key; none if empty
  std::string body = "";  // JSON; none if empty
};

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;

  /// The body; throws boost::system::system_error if it is not JSON.
  boost::json::value json() const;
};

/// Throws std::system_error or std::runtime_error if no complete answer comes.
HttpResponse http_request(const NetworkNamespace& network, const std::string& address, std::uint16_t port,
                          const HttpRequest& request);

}  // namespace portway::test
