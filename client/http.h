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
  std::string etag = {};
  std::string body = {};
  bool streamed = false;       // the body went to on_data
  std::string broke_off = {};  // of a stream: why it ended before the server finished it
};

struct HttpOptions {
  ServerAddress server;
  std::string key = {};  // the bearer key; empty: none is sent
  std::string ca_file = {};
  std::string server_certificate_file = {};  // the only trusted certificate, for any host name
  std::string certificate_file = {};
  std::string private_key_file = {};
  std::chrono::seconds timeout{30};     // without progress
  bool trusts_any_certificate = false;  // of the server; only without a key
};

class HttpClient {
 public:
  explicit HttpClient(HttpOptions options) : options_(std::move(options)) {}

  const HttpOptions& options() const { return options_; }

  /// The answer, whatever its status, of at most 64 MiB. kUnreachable if there is none; kUsage if a
  /// certificate file cannot be read.
  Outcome<HttpAnswer> send(const HttpRequest& request) const;

  /// For an answer without an end: if its status is 200 and its type is `media_type`, calls `on_data` with
  /// nothing and then with the body as it arrives, until that returns false, the connection ends or nothing
  /// arrives for `silence_max` (broke_off; 0: without a limit). Any other answer is handled as in send().
  using OnData = std::function<bool(std::string_view data)>;
  Outcome<HttpAnswer> stream(const HttpRequest& request, std::string_view media_type, const OnData& on_data,
                             std::chrono::seconds silence_max = {}) const;

 private:
  HttpOptions options_;
};

}  // namespace portway
