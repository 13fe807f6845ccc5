// HTTP requests over TCP, TLS or a Unix socket, one at a time, each on its own connection.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/failure.h"
#include "client/server_address.h"

namespace portway {

struct HttpRequest {
  std::string method = "GET";
  std::string target = "/";  // path and query, escaped
  std::vector<std::pair<std::string, std::string>> headers = {};
  std::string body = {};  // JSON; empty: no body
};

struct HttpAnswer {
  unsigned status = 0;
  std::string content_type = {};
  std::string retry_after = {};
  std::string body = {};
  std::string broke_off = {};  // of a stream: why it ended before the server finished it
};

struct HttpOptions {
  ServerAddress server;
  std::string key = {};  // the bearer key; empty: none is sent
  std::string ca_file = {};
  std::string server_certificate_file = {};  // the only trusted certificate, for any host name
  std::string certificate_file = {};
  std::string private_key_file = {};
  std::chrono::seconds timeout{30};  // without progress
};

class HttpClient {
 public:
  explicit HttpClient(HttpOptions options) : options_(std::move(options)) {}

  const HttpOptions& options() const { return options_; }

  /// The answer, whatever its status, of at most 64 MiB. kUnreachable if there is none; kUsage if a
  /// certificate file cannot be read.
  Outcome<HttpAnswer> send(const HttpRequest& request) const;

  /// For an answer without an end: if its status is 200, passes its body to `on_data` as it arrives, without
  /// a timeout, until that returns false or the connection ends (broke_off). Any other status is handled as
  /// in send().
  using OnData = std::function<bool(std::string_view data)>;
  Outcome<HttpAnswer> stream(const HttpRequest& request, const OnData& on_data) const;

 private:
  HttpOptions options_;
};

}  // namespace portway
