// HTTP requests, one at a time and each on a connection of its own: over TCP, TLS or a Unix socket.
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
  std::string body = {};  // JSON; none when empty
};

struct HttpAnswer {
  unsigned status = 0;
  std::string content_type = {};
  std::string retry_after = {};
  std::string body = {};
  std::string broke_off = {};  // of a stream: why it ended before the server had ended it
};

struct HttpOptions {
  ServerAddress server;
  std::string key = {};  // the bearer key; none when empty
  std::string ca_file = {};
  std::string server_certificate_file = {};  // the one certificate that is trusted, for any host
  std::string certificate_file = {};
  std::string private_key_file = {};
  std::chrono::seconds timeout{30};  // without progress
};

class HttpClient {
 public:
  explicit HttpClient(HttpOptions options) : options_(std::move(options)) {}

  const HttpOptions& options() const { return options_; }

  /// The answer, whatever its status. kUnreachable when there is none; kUsage for a certificate file that
  /// cannot be read. At most 64 MiB.
  Outcome<HttpAnswer> send(const HttpRequest& request) const;

  /// For an answer without an end: when its status is 200, its body goes to `on_data` as it comes, without a
  /// time limit, until that returns false or the connection ends (broke_off). Another status is answered as
  /// by send().
  using OnData = std::function<bool(std::string_view data)>;
  Outcome<HttpAnswer> stream(const HttpRequest& request, const OnData& on_data) const;

 private:
  HttpOptions options_;
};

}  // namespace portway
